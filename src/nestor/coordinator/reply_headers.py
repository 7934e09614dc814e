"""Headers that say how a request was answered."""

from decimal import Decimal
from typing import Any

from nestor.coordinator.dispatch import Answered
from nestor.model.routing import Decision, Deployment, ModelCall

Headers = list[tuple[bytes, bytes]]


def reply_headers(
    answered: Answered[Any],
    decision: Decision,
    *,
    overhead_s: float,
    replayed: bool,
    left_out: tuple[str, ...] = (),
    call: ModelCall | None = None,
) -> Headers:
    """Say what happened. ``call``: settled already, so its cost is known.

    ``overhead_s``: what the request took beside waiting for upstreams. ``left_out``: fields
    that the upstream's dialect has no words for.
    """
    deployment = answered.upstream.deployment
    headers = _of(deployment)
    headers += (
        (b"x-nestor-interaction-id", answered.interaction_id.encode()),
        (b"x-nestor-overhead-ms", b"%.3f" % (overhead_s * 1000)),
    )
    if decision.confidence is not None:
        headers.append((b"x-nestor-confidence", b"%.4f" % decision.confidence))
    if call is not None and call.cost_usd is not None:
        headers.append((b"x-nestor-cost-usd", money(call.cost_usd).encode()))
    if answered.fallback_from is not None:
        headers.append((b"x-nestor-fallback-from", _printable(answered.fallback_from)))
    if left_out:
        headers.append((b"x-nestor-left-out", _printable(", ".join(left_out))))
    if replayed:
        headers.append((b"x-nestor-replayed", b"true"))
    return headers


def headers_of_cached(deployment: Deployment, interaction_id: str) -> Headers:
    """Say that an answer was given before, by whom: nobody was asked, nothing is billed."""
    return [
        *_of(deployment),
        (b"x-nestor-interaction-id", interaction_id.encode()),
        (b"x-nestor-cost-usd", b"0"),
        (b"x-nestor-cached", b"true"),
    ]


def money(value: Decimal) -> str:
    """Render USD without an exponent."""
    return format(value, "f")


def _of(deployment: Deployment) -> Headers:
    return [
        (b"x-nestor-route", deployment.side.encode()),
        (b"x-nestor-model", _printable(deployment.model)),
    ]


def _printable(text: str) -> bytes:
    """Keep a configured name from breaking a header line."""
    if text.isascii() and text.isprintable():
        return text.encode()
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode()
