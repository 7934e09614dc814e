"""Every table. A change here needs a migration; tests/contracts/test_migrations.py compares.

JSON columns hold msgspec-encoded values of ``nestor.model`` as text, so that both
databases keep the same bytes. Times are RFC 3339 UTC text, which sorts as time. Money
is decimal text. The tables of DBOS live in the same database under their own names.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

task = Table(
    "task",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("status", String(32), nullable=False),
    Column("priority", String(8), nullable=False),
    Column("phase", Integer),
    Column("created_at", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_task_status", "status"),
    Index("ix_task_created_at", "created_at"),
)

iteration = Table(
    "iteration",
    metadata,
    Column("task_id", ForeignKey("task.task_id"), primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
)

task_event = Table(
    "task_event",
    metadata,
    Column("task_id", ForeignKey("task.task_id"), primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(32), nullable=False),
    Column("at", String(40), nullable=False),
    Column("data", Text, nullable=False),
)

task_carried = Table(
    "task_carried",
    metadata,
    Column("task_id", ForeignKey("task.task_id"), primary_key=True),
    Column("body", Text, nullable=False),
)
"""What the last iteration of a task left for the next attempt."""

task_dependency = Table(
    "task_dependency",
    metadata,
    Column("task_id", ForeignKey("task.task_id"), primary_key=True),
    Column("needs", String(64), primary_key=True),
    Column("any_owner", Integer, nullable=False, server_default="1"),
    Index("ix_task_dependency_needs", "needs"),
)
"""``needs`` may be a task that is still to be submitted. ``any_owner`` 0: only one that the
same key submitted counts; another's is as if nobody had submitted it."""

task_place = Table(
    "task_place",
    metadata,
    Column("task_id", ForeignKey("task.task_id", ondelete="CASCADE"), primary_key=True),
    Column("submitted_by", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("memory_bytes", BigInteger),
    Column("attempt", Integer, nullable=False),
    Column("waits", Integer, nullable=False),
    Column("ends", Integer, nullable=False),
)
"""What the queue looks at of a task, again and again: beside its row, which may be megabytes.
``waits``: 1 while it waits for other tasks; ``ends``: 1 once its end was asked for."""

audit_log = Table(
    "audit_log",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False),
    Column("actor", String(80), nullable=False),
    Column("action", String(32), nullable=False),
    Column("task_id", String(64), nullable=False),
    Column("data", Text, nullable=False),
    Column("digest", String(64), nullable=False),
)
"""Append-only, which triggers hold; ``digest`` is over the row and the digest before it."""

event_outbox = Table(
    "event_outbox",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("event", Text, nullable=False),
    Column("sent_at", String(40)),
    Index("ix_event_outbox_sent_at", "sent_at"),
)

document = Table(
    "document",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("collection", String(64), nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("added_at", String(40), nullable=False),
    Column("media", String(80), nullable=False, server_default="text/plain"),
    Index("uq_document_project_path", "project", "path", unique=True),
)

chunk = Table(
    "chunk",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column(
        "document_id", ForeignKey("document.id", ondelete="CASCADE"), nullable=False
    ),
    Column("ordinal", Integer, nullable=False),
    Column("heading", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("first_line", Integer),
    Column("last_line", Integer),
    Column("page", Integer),
    Column("digest", String(64), nullable=False, server_default=""),
    Index("ix_chunk_digest", "digest"),
    Index("ix_chunk_document_id", "document_id"),
)

chunk_place = Table(
    "chunk_place",
    metadata,
    Column(
        "seq",
        ForeignKey("chunk.seq", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("indexed", Integer, nullable=False),
    Index("ix_chunk_place_indexed", "indexed", "seq"),
)
"""Where a chunk stands in the search index; see ``knowledge_rows``. Beside ``chunk``, whose
rows are long and have a full-text index that PostgreSQL writes anew at every change."""

embedding = Table(
    "embedding",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("stamp", String(200), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)
"""``vector``: float32, little-endian, of the text whose SHA-256 is ``digest``."""

skill = Table(
    "skill",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("body", Text, nullable=False),
)

chunk_removed = Table(
    "chunk_removed",
    metadata,
    Column("id", String(64), primary_key=True),
)

counter = Table(
    "counter",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Integer, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("scopes", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("revoked_at", String(40)),
    Column("last_used_at", String(40)),
    Column("limits", Text),
)

page_link = Table(
    "page_link",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("expires_at", String(40), nullable=False),
)

page_session = Table(
    "page_session",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("created_at", String(40), nullable=False),
    Column("expires_at", String(40), nullable=False),
)

model_call = Table(
    "model_call",
    metadata,
    Column("interaction_id", String(64), primary_key=True),
    Column("task_id", String(64)),
    Column("iteration", Integer),
    Column("at", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_model_call_task_id_iteration", "task_id", "iteration"),
)

spend = Table(
    "spend",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("task_id", String(64), primary_key=True),
    Column("deployment", String(200), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("side", String(16), primary_key=True),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            *("calls", "failed", "unsettled", "cached", "unpriced"),
            "cost_pico_usd",
        )
    ),
    *(
        Column(name, BigInteger)
        for name in (
            *("input_tokens", "output_tokens", "cached_tokens"),
            *("cache_write_tokens", "reasoning_tokens"),
        )
    ),
    Index("ix_spend_task_id", "task_id"),
)
"""``model_call`` added up, in the transaction that adds a call. "" stands for no key, no task.
Tokens are those that were reported; null: none of the calls reported any.
10^-12 USD is what one token costs at 10^-6 USD per million, the finest price there is."""

journal = Table(
    "journal",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),
)

budget = Table(
    "budget",
    metadata,
    Column("account", String(80), primary_key=True),
    Column("spent_pico_usd", BigInteger, nullable=False),
    Column("spent_tokens", BigInteger, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("account", String(80), primary_key=True),
    Column("holder", String(64), primary_key=True),
    Column("pico_usd", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Index("ix_lease_holder", "holder"),
)
"""What a process (``holder``: its journal) may still spend of a budget."""

interaction = Table(
    "interaction",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("body", Text, nullable=False),
)
"""Answers that were not given here, and routed queries; calls stand in ``model_call``."""

feedback = Table(
    "feedback",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("interaction_id", String(64), nullable=False),
    Column("at", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_feedback_interaction_id", "interaction_id"),
)
"""Append-only; ``seq`` is the order in which it was said, whatever the clocks did.

Full-text search lives beside ``chunk``: ``chunk_fts`` (FTS5) on SQLite, a ``tsvector``
index on PostgreSQL; both are made by the migrations, because no portable type exists."""
