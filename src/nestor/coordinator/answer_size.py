"""How much a request asks for at most: what is reserved of budgets, and counted a minute."""

from collections.abc import Mapping, Sequence
from typing import Any

from nestor.coordinator.pricing import MAX_TOKENS
from nestor.errors import InvalidInput
from nestor.model.routing import Dialect

MAX_ANSWERS = 128
"""OpenAI's own bound of ``n``."""
_LIMITS: Mapping[Dialect, Sequence[str]] = {
    # The last is llama.cpp's own word, which counts there before the others.
    Dialect.OPENAI: ("max_tokens", "max_completion_tokens", "n_predict"),
    Dialect.ANTHROPIC: ("max_tokens",),
    Dialect.RESPONSES: ("max_output_tokens",),
}
_ANSWERS: Mapping[Dialect, Sequence[str]] = {
    # All that ``best_of`` makes is billed, whatever is shown of it; the last is llama.cpp's.
    Dialect.OPENAI: ("n", "best_of", "n_cmpl"),
}


def limit_of(dialect: Dialect, request: Mapping[str, Any]) -> int | None:
    """Return how many tokens an answer may have; None where the request does not say.

    Only names of the dialect count: what a server does not know it does not keep to.
    Which of two it keeps to is its own affair, so the larger counts. Raises
    ``InvalidInput`` that names the field.
    """
    # 0 is legal there: it fills Anthropic's cache and writes nothing.
    least = 0 if dialect is Dialect.ANTHROPIC else 1
    names = _LIMITS[dialect]
    found = [_number(request, name, least, MAX_TOKENS) for name in names]
    return max((limit for limit in found if limit is not None), default=None)


def answers_of(dialect: Dialect, request: Mapping[str, Any]) -> int:
    """Return how many answers are asked for. Raises ``InvalidInput``."""
    names = _ANSWERS.get(dialect, ())
    found = [_number(request, name, 1, MAX_ANSWERS) for name in names]
    return max((count for count in found if count is not None), default=1)


def _number(request: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput.at(name, f"must be a number from {least}")
    if not least <= value <= most:
        raise InvalidInput.at(name, f"must be a number from {least} to {most}")
    return value
