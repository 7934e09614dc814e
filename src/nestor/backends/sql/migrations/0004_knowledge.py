"""Vectors, where a chunk stands, what a document was read as, and learned patterns."""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BATCH = 1000


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
    _fill_digests()


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
