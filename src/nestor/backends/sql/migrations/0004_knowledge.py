"""Vectors, where a chunk stands, what a document was read as, and learned patterns."""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BATCH = 1000
_TABLES = (
    *("task", "iteration", "task_event", "event_outbox", "document", "chunk"),
    *(
        "chunk_place",
        "embedding",
        "skill",
        "chunk_removed",
        "counter",
        "api_key",
        "page_link",
    ),
    *("page_session", "model_call", "spend", "journal", "budget", "lease"),
    *("interaction", "feedback"),
)
"""Ours: others may stand beside them in the same database."""


def upgrade() -> None:
    op.add_column(
        "document",
        sa.Column("media", sa.String(80), nullable=False, server_default="text/plain"),
    )
    for name in ("first_line", "last_line", "page"):
        op.add_column("chunk", sa.Column(name, sa.Integer))
    op.add_column(
        "chunk", sa.Column("digest", sa.String(64), nullable=False, server_default="")
    )
    op.create_index("ix_chunk_digest", "chunk", ["digest"])
    op.create_table(
        "embedding",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("stamp", sa.String(200), nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", "stamp", name="pk_embedding"),
    )
    op.create_table(
        "skill",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_skill"),
    )
    _places()
    _fill_digests()
    if op.get_bind().dialect.name == "postgresql":
        _compare_as_bytes()


def _places() -> None:
    """All chunks wait: the index of before holds no vectors, and is filled anew."""
    op.create_table(
        "chunk_place",
        sa.Column("seq", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("indexed", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_chunk_place"),
        sa.ForeignKeyConstraint(
            ["seq"], ["chunk.seq"], name="fk_chunk_place_seq", ondelete="CASCADE"
        ),
    )
    op.execute("INSERT INTO chunk_place (seq, indexed) SELECT seq, 0 FROM chunk")
    op.create_index("ix_chunk_place_indexed", "chunk_place", ["indexed", "seq"])
    op.drop_index("ix_chunk_indexed", "chunk")
    op.drop_column("chunk", "indexed")


def _compare_as_bytes() -> None:
    """Order text as SQLite does, whatever the language of the database.

    In a language's order times and ids may not come as they do in bytes.
    """
    columns = (
        op.get_bind()
        .execute(
            sa.text(
                "SELECT table_name, column_name, character_maximum_length AS length"
                " FROM information_schema.columns WHERE table_schema = current_schema()"
                " AND data_type IN ('text', 'character varying')"
                " ORDER BY table_name, ordinal_position"
            )
        )
        .all()
    )
    for table in _TABLES:
        changes = (
            f'ALTER COLUMN "{name}" TYPE {_type(length)} COLLATE "C"'
            for of_table, name, length in columns
            if of_table == table
        )
        if changed := ", ".join(changes):
            op.execute(f'ALTER TABLE "{table}" {changed}')


def _type(length: int | None) -> str:
    return "text" if length is None else f"varchar({length})"


def _fill_digests() -> None:
    """Of chunks that are there: as ``model.knowledge.embedded_text`` has been from the start."""
    chunk = sa.table(
        "chunk",
        *(sa.column(name) for name in ("seq", "heading", "text", "digest")),
    )
    bind = op.get_bind()
    last = -1
    while True:
        rows = bind.execute(
            sa.select(chunk.c.seq, chunk.c.heading, chunk.c.text)
            .where(chunk.c.seq > last)
            .order_by(chunk.c.seq)
            .limit(_BATCH)
        ).all()
        if not rows:
            return
        last = rows[-1].seq
        bind.execute(
            sa.update(chunk)
            .where(chunk.c.seq == sa.bindparam("at"))
            .values(digest=sa.bindparam("sum")),
            [{"at": row.seq, "sum": _digest(row.heading, row.text)} for row in rows],
        )


def _digest(heading: str, text: str) -> str:
    whole = f"{heading}\n{text}" if heading else text
    return hashlib.sha256(whole.encode()).hexdigest()
