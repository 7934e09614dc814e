"""Spend, budgets, the journal's place, interactions and what people say about them."""

import json
from collections import defaultdict
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEY = ("day", "key_id", "task_id", "deployment", "model", "side")
_COUNTS = ("calls", "failed", "unsettled", "cached", "unpriced", "cost_pico_usd")
_TOKENS = (
    *("input_tokens", "output_tokens", "cached_tokens"),
    *("cache_write_tokens", "reasoning_tokens"),
)
_BATCH = 1000


def _text(name: str, length: int) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=False)


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def upgrade() -> None:
    op.add_column("api_key", sa.Column("limits", sa.Text))
    op.create_table(
        "spend",
        _text("day", 10),
        _text("key_id", 64),
        _text("task_id", 64),
        _text("deployment", 200),
        _text("model", 200),
        _text("side", 16),
        *(_number(name) for name in _COUNTS),
        *(sa.Column(name, sa.BigInteger) for name in _TOKENS),
        sa.PrimaryKeyConstraint(*_KEY, name="pk_spend"),
    )
    op.create_index("ix_spend_task_id", "spend", ["task_id"])
    op.create_table(
        "journal",
        _text("id", 64),
        _number("position"),
        sa.PrimaryKeyConstraint("id", name="pk_journal"),
    )
    op.create_table(
        "budget",
        _text("account", 80),
        _number("spent_pico_usd"),
        _number("spent_tokens"),
        sa.PrimaryKeyConstraint("account", name="pk_budget"),
    )
    op.create_table(
        "lease",
        _text("account", 80),
        _text("holder", 64),
        _number("pico_usd"),
        _number("tokens"),
        sa.PrimaryKeyConstraint("account", "holder", name="pk_lease"),
    )
    op.create_index("ix_lease_holder", "lease", ["holder"])
    op.create_table(
        "interaction",
        _text("id", 64),
        _text("at", 40),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_interaction"),
    )
    op.create_table(
        "feedback",
        sa.Column("seq", sa.Integer, nullable=False),
        _text("id", 64),
        _text("interaction_id", 64),
        _text("at", 40),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_feedback"),
        sa.UniqueConstraint("id", name="uq_feedback_id"),
    )
    op.create_index("ix_feedback_interaction_id", "feedback", ["interaction_id"])
    _add_up_what_is_there()


def _add_up_what_is_there() -> None:
    """Bring the calls of before into ``spend``, and those of tasks into their budgets."""
    connection = op.get_bind()
    spend: dict[tuple[str, ...], dict[str, int | None]] = {}
    budget: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    call = sa.table("model_call", sa.column("at"), sa.column("body"))
    rows = connection.execute(
        sa.select(call.c.at, call.c.body), execution_options={"yield_per": _BATCH}
    )
    for at, text in rows:
        body = json.loads(text)
        row = _row(body)
        key = (
            at[:10],
            "",  # calls of before know no key
            body.get("task_id") or "",
            body["deployment"],
            body["model"],
            body["side"],
        )
        _add(spend.setdefault(key, dict.fromkeys(row)), row)
        if task_id := body.get("task_id"):
            account = budget[f"task:{task_id}"]
            account[0] += row["cost_pico_usd"] or 0
            account[1] += (row["input_tokens"] or 0) + (row["output_tokens"] or 0)
    _write(
        ("spend", (*_KEY, *_COUNTS, *_TOKENS)),
        [dict(zip(_KEY, key, strict=True)) | row for key, row in spend.items()],
    )
    _write(
        ("budget", ("account", "spent_pico_usd", "spent_tokens")),
        [
            {"account": account, "spent_pico_usd": usd, "spent_tokens": tokens}
            for account, (usd, tokens) in budget.items()
        ],
    )


def _row(body: dict[str, Any]) -> dict[str, int | None]:
    cost = body.get("cost_usd")
    pico = Decimal(cost or 0).scaleb(12).to_integral_value(ROUND_HALF_EVEN)
    usage = body.get("usage") or {}
    return {
        "calls": 1,
        "failed": int(not body["ok"]),
        "unsettled": 0,
        "cached": 0,
        "unpriced": int(cost is None),
        "cost_pico_usd": int(pico),
        **{name: usage.get(name) for name in _TOKENS},
    }


def _add(total: dict[str, int | None], row: dict[str, int | None]) -> None:
    for name, count in row.items():
        if count is not None:
            total[name] = (total[name] or 0) + count


def _write(table: tuple[str, tuple[str, ...]], rows: list[dict[str, Any]]) -> None:
    name, columns = table
    if rows:
        op.bulk_insert(sa.table(name, *(sa.column(one) for one in columns)), rows)
