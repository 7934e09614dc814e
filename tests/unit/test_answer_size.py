"""Which of a request's words are its limit, and what a call of that size is estimated at."""

from decimal import Decimal
from typing import Any

import pytest

from nestor.coordinator.answer_size import MAX_ANSWERS, answers_of, limit_of
from nestor.coordinator.budgets import estimate
from nestor.coordinator.pricing import MAX_COST_USD, MAX_TOKENS, cost_usd
from nestor.model.routing import DEFAULT_MAX_TOKENS, Deployment, Dialect, Side
from nestor.model.task import Usage

OPENAI, ANTHROPIC, RESPONSES = Dialect.OPENAI, Dialect.ANTHROPIC, Dialect.RESPONSES


def priced(output: Decimal | int, **more: Any) -> Deployment:
    return Deployment(
        name="d",
        side=Side.REMOTE,
        model="m",
        base_url="http://x",
        price_input=Decimal(0),
        price_output=Decimal(output),
        **more,
    )


@pytest.mark.parametrize(
    ("dialect", "request_", "limit", "answers"),
    [
        (OPENAI, {}, None, 1),
        (OPENAI, {"max_tokens": 1, "max_completion_tokens": 9}, 9, 1),
        (OPENAI, {"max_tokens": 9, "max_completion_tokens": 1}, 9, 1),
        (OPENAI, {"max_tokens": 1, "n_predict": 9}, 9, 1),
        (OPENAI, {"max_output_tokens": 9}, None, 1),
        (OPENAI, {"n": 3, "best_of": 5, "n_cmpl": 4}, None, 5),
        (OPENAI, {"n": MAX_ANSWERS, "max_tokens": MAX_TOKENS}, MAX_TOKENS, MAX_ANSWERS),
        (ANTHROPIC, {"max_tokens": 0}, 0, 1),
        (ANTHROPIC, {"max_tokens": 1, "max_completion_tokens": 9, "n": 3}, 1, 1),
        (RESPONSES, {"max_tokens": 9, "max_output_tokens": 1, "n": 3}, 1, 1),
        (RESPONSES, {"max_tokens": 9}, None, 1),
    ],
)
def test_only_words_of_the_dialect_count_and_of_two_the_larger(
    dialect: Dialect, request_: dict[str, Any], limit: int | None, answers: int
) -> None:
    assert limit_of(dialect, request_) == limit
    assert answers_of(dialect, request_) == answers


def test_each_answer_may_be_as_long_as_the_limit_and_0_is_one() -> None:
    dear = priced(1_000_000)  # 1 USD a token
    assert estimate(dear, 3, 10, 4) == (Decimal(40), 41)
    assert estimate(dear, 3, 0) == (Decimal(0), 1)
    assert estimate(dear, 3, 0, 4) == (Decimal(0), 1)
    assert estimate(dear, 3, None, 2)[1] == 1 + 2 * DEFAULT_MAX_TOKENS
    assert estimate(priced(1, max_output_tokens=5), 3, None, 2)[1] == 11
    assert estimate(priced(1, max_output_tokens=5), 3, 0)[1] == 1


@pytest.mark.parametrize(
    ("price", "cost"),
    [(100, MAX_COST_USD), (Decimal("100.000001"), None), (1_000_000, None)],
)
def test_what_no_call_can_cost_is_not_known(
    price: Decimal, cost: Decimal | None
) -> None:
    usage = Usage(input_tokens=0, output_tokens=MAX_TOKENS)
    assert cost_usd(priced(price), usage, replayed=False) == cost
