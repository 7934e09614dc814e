"""What attempts leave to the next one, what waits for what, and who decided what."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task_carried",
        _text("task_id", 64),
        _text("body"),
        sa.PrimaryKeyConstraint("task_id", name="pk_task_carried"),
        sa.ForeignKeyConstraint(
            ["task_id"], ["task.task_id"], name="fk_task_carried_task_id"
        ),
    )
    op.create_table(
        "task_dependency",
        _text("task_id", 64),
        _text("needs", 64),
        sa.PrimaryKeyConstraint("task_id", "needs", name="pk_task_dependency"),
        sa.ForeignKeyConstraint(
            ["task_id"], ["task.task_id"], name="fk_task_dependency_task_id"
        ),
    )
    op.create_index("ix_task_dependency_needs", "task_dependency", ["needs"])
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.Integer, nullable=False, autoincrement=False),
        _text("at", 40),
        _text("actor", 80),
        _text("action", 32),
        _text("task_id", 64),
        _text("data"),
        _text("digest", 64),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_log"),
    )
    if _is_postgresql():
        _append_only_on_postgresql()
    else:
        _append_only_on_sqlite()


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _text(name: str, length: int | None = None) -> sa.Column[str]:
    """Make a column that orders as bytes, whatever the language of the database."""
    collation = "C" if _is_postgresql() else None
    if length is None:
        return sa.Column(name, sa.Text(collation=collation), nullable=False)
    return sa.Column(name, sa.String(length, collation=collation), nullable=False)


def _append_only_on_sqlite() -> None:
    for what in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_log_no_{what.lower()} BEFORE {what} ON audit_log"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def _append_only_on_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    for when, each in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        op.execute(
            f"CREATE TRIGGER audit_log_no_{each.lower()} BEFORE {when} ON audit_log"
            f" FOR EACH {each} EXECUTE FUNCTION audit_log_refuse()"
        )
