"""The first tables, and full-text search over the chunks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _tasks()
    _knowledge()
    _access()
    if op.get_bind().dialect.name == "sqlite":
        _full_text_sqlite()
    else:
        _full_text_postgresql()


def _tasks() -> None:
    op.create_table(
        "task",
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("phase", sa.Integer),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("task_id", name="pk_task"),
    )
    op.create_index("ix_task_status", "task", ["status"])
    op.create_index("ix_task_created_at", "task", ["created_at"])
    op.create_table(
        "iteration",
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("n", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "n", name="pk_iteration"),
        sa.ForeignKeyConstraint(
            ["task_id"], ["task.task_id"], name="fk_iteration_task_id"
        ),
    )
    op.create_table(
        "task_event",
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "id", name="pk_task_event"),
        sa.ForeignKeyConstraint(
            ["task_id"], ["task.task_id"], name="fk_task_event_task_id"
        ),
    )
    op.create_table(
        "event_outbox",
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("sent_at", sa.String(40)),
        sa.PrimaryKeyConstraint("seq", name="pk_event_outbox"),
        sa.UniqueConstraint("id", name="uq_event_outbox_id"),
    )
    op.create_index("ix_event_outbox_sent_at", "event_outbox", ["sent_at"])


def _knowledge() -> None:
    op.create_table(
        "document",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("collection", sa.String(64), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("added_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_document"),
    )
    op.create_index(
        "uq_document_project_path", "document", ["project", "path"], unique=True
    )
    op.create_table(
        "chunk",
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("document_id", sa.String(64), nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("heading", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("end", sa.Integer, nullable=False),
        sa.Column("indexed", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_chunk"),
        sa.UniqueConstraint("id", name="uq_chunk_id"),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["document.id"],
            name="fk_chunk_document_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_chunk_document_id", "chunk", ["document_id"])
    op.create_index("ix_chunk_indexed", "chunk", ["indexed"])
    op.create_table(
        "chunk_removed",
        sa.Column("id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chunk_removed"),
    )
    op.create_table(
        "counter",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counter"),
    )


def _access() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("revoked_at", sa.String(40)),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
        sa.UniqueConstraint("secret_hash", name="uq_api_key_secret_hash"),
    )
    op.create_table(
        "model_call",
        sa.Column("interaction_id", sa.String(64), nullable=False),
        sa.Column("task_id", sa.String(64)),
        sa.Column("iteration", sa.Integer),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("interaction_id", name="pk_model_call"),
    )
    op.create_index(
        "ix_model_call_task_id_iteration", "model_call", ["task_id", "iteration"]
    )


def _full_text_sqlite() -> None:
    # External content: the text is kept once, in chunk. The triggers run in the
    # statement that changes chunk, so the two cannot drift.
    op.execute(
        "CREATE VIRTUAL TABLE chunk_fts USING fts5(text, heading, "
        "content='chunk', content_rowid='seq', tokenize='porter unicode61')"
    )
    add = (
        "INSERT INTO chunk_fts(rowid, text, heading) "
        "VALUES (new.seq, new.text, new.heading);"
    )
    remove = (
        "INSERT INTO chunk_fts(chunk_fts, rowid, text, heading) "
        "VALUES ('delete', old.seq, old.text, old.heading);"
    )
    for name, when, body in (
        ("chunk_fts_insert", "AFTER INSERT", add),
        ("chunk_fts_delete", "AFTER DELETE", remove),
        ("chunk_fts_update", "AFTER UPDATE OF seq, text, heading", remove + add),
    ):
        op.execute(f"CREATE TRIGGER {name} {when} ON chunk BEGIN {body} END")


def _full_text_postgresql() -> None:
    # English word stems and no stop words, as on SQLite. A vector holds 1 MiB at most,
    # and a text over it could not be stored: the first 200,000 characters are found.
    op.execute(
        "CREATE TEXT SEARCH DICTIONARY nestor_stem"
        " (TEMPLATE = snowball, Language = english)"
    )
    op.execute("CREATE TEXT SEARCH CONFIGURATION nestor (COPY = simple)")
    op.execute(
        "ALTER TEXT SEARCH CONFIGURATION nestor ALTER MAPPING FOR"
        " asciiword, word, numword WITH nestor_stem"
    )
    signs = "!\"#$%&''()*+,-./:;<=>?@[\\]^_`{|}~"  # '' is one quote
    op.execute(
        "CREATE INDEX ix_chunk_full_text ON chunk USING gin (to_tsvector('nestor',"
        " translate(left(heading || ' ' || text, 200000),"
        f" '{signs}', '{' ' * (len(signs) - 1)}')))"
    )
