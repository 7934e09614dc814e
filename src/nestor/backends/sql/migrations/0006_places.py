"""What admission looks at of a task, beside its long row; whose tasks one may wait for."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_PAGE = 20
"""A task may be megabytes."""


def upgrade() -> None:
    op.add_column(
        "task_dependency",
        sa.Column("any_owner", sa.Integer, nullable=False, server_default="1"),
    )
    place = op.create_table(
        "task_place",
        _text("task_id", 64),
        _text("submitted_by"),
        _text("backend"),
        sa.Column("memory_bytes", sa.BigInteger),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("waits", sa.Integer, nullable=False),
        sa.Column("ends", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("task_id", name="pk_task_place"),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["task.task_id"],
            name="fk_task_place_task_id",
            ondelete="CASCADE",
        ),
    )
    _fill(place)


def _fill(place: sa.Table) -> None:
    connection = op.get_bind()
    task = sa.table("task", sa.column("task_id"), sa.column("body"))
    query = sa.select(task.c.task_id, task.c.body).order_by(task.c.task_id)
    last = ""
    while True:
        page = query.where(task.c.task_id > last).limit(_PAGE)
        rows = connection.execute(page).all()
        if not rows:
            return
        connection.execute(
            place.insert(), [_placed(row.task_id, json.loads(row.body)) for row in rows]
        )
        last = rows[-1].task_id


def _placed(task_id: str, body: dict[str, Any]) -> dict[str, Any]:
    sandbox = body["spec"].get("sandbox") or {}
    return {
        "task_id": task_id,
        "submitted_by": body.get("submitted_by", "admin"),
        "backend": body["backend"],
        "memory_bytes": sandbox.get("memory_bytes"),
        "attempt": body.get("attempt", 1),
        "waits": int(bool(body.get("waits_for"))),
        "ends": int(body.get("cancel_requested", False)),
    }


def _text(name: str, length: int | None = None) -> sa.Column[str]:
    """Make a column that orders as bytes, whatever the language of the database."""
    collation = "C" if op.get_bind().dialect.name == "postgresql" else None
    if length is None:
        return sa.Column(name, sa.Text(collation=collation), nullable=False)
    return sa.Column(name, sa.String(length, collation=collation), nullable=False)
