"""Interactions over HTTP: context for a query, answers given elsewhere, feedback, spend."""

from datetime import date
from decimal import Decimal
from typing import Annotated, Any, cast

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from nestor.coordinator.metering import told
from nestor.errors import InvalidInput, NotFound
from nestor.model.access import ADMIN, SERVICE
from nestor.model.interaction import (
    Augmented,
    AugmentRequest,
    Feedback,
    NewFeedback,
    NewInteraction,
    Tracked,
    standing,
)
from nestor.ports.call_ledger import SpendBy
from nestor.telemetry.redact import redact_value
from nestor.web.auth import charge_to
from nestor.web.views import InteractionView, SpendStats, SpendTotal, SpendView
from nestor.wiring import Nestor

MAX_ROWS = 1000
_ALL_DAYS = 1_000_000
_IN_STATS = 20
_COUNTS = ("calls", "failed", "unsettled", "cached", "unpriced")
_TOKENS = (
    *("input_tokens", "output_tokens", "cached_tokens"),
    *("cache_write_tokens", "reasoning_tokens"),
)


def handlers() -> list[HTTPRouteHandler]:
    """Return the routes; the Coordinator serves them."""
    return [feedback, augment_query, track_interaction, interaction, spend]


def _parts(request: Request[Any, Any, Any]) -> Nestor:
    nestor: Nestor = request.app.state.nestor
    return nestor


@post(
    "/feedback",
    status_code=201,
    opt={"scope": "model", "replies": {201: Feedback}, "raises": (NotFound,)},
)
async def feedback(request: Request[Any, Any, Any], data: NewFeedback) -> Feedback:
    """Say how an answer turned out. The key that says it is noted with it.

    Of each key the newest word about an interaction counts; none is ever replaced.
    """
    user = request.user
    interactions = _parts(request).coordinator.interactions
    return await interactions.feedback(
        data, key_id=user.key_id, source=user.name, of_all=user.may(SERVICE)
    )


@post(
    "/augment_query",
    status_code=200,
    opt={"scope": "model", "replies": {200: Augmented}},
)
async def augment_query(
    request: Request[Any, Any, Any], data: AugmentRequest
) -> Augmented:
    """Put what the knowledge base knows before a query, as data. No model is asked."""
    interactions = _parts(request).coordinator.interactions
    return await interactions.augment(data, key_id=request.user.key_id)


@post(
    "/interactions", status_code=201, opt={"scope": "model", "replies": {201: Tracked}}
)
async def track_interaction(
    request: Request[Any, Any, Any], data: NewInteraction
) -> Tracked:
    """Keep an answer that was given elsewhere, so that it can be learned from."""
    charge_to(data.task_id, request.user)
    interactions = _parts(request).coordinator.interactions
    return await interactions.track(data, key_id=request.user.key_id)


@get("/interactions/{interaction_id:str}", opt={"scope": "read"})
async def interaction(
    request: Request[Any, Any, Any], interaction_id: str
) -> InteractionView:
    """Tell what is known of an interaction: its call, its texts, what was said of it."""
    found = await _parts(request).coordinator.interactions.look_up(interaction_id)
    call = None
    if found.call is not None:
        call = {**told(found.call), "at": found.call.at, "task_id": found.call.task_id}
    return {
        "interaction_id": interaction_id,
        "interaction": msgspec.to_builtins(found.interaction),
        "call": redact_value(call),
        "feedback": found.feedback,
        "standing": standing(found.feedback),
    }


@get("/spend", opt={"scope": "read"})
async def spend(
    request: Request[Any, Any, Any],
    by: SpendBy = SpendBy.MODEL,
    since: Annotated[
        str | None, QueryParameter(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
    ] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_ROWS)] = 100,
) -> SpendView:
    """Add up what models cost by model, deployment, task, key or day (UTC).

    The dearest (newest day) first; the total is of all rows, shown or not. ``cost_usd`` is
    of the calls whose price is known, null where none is; ``unpriced`` counts the others.
    """
    parts = _parts(request)
    first = _day(since)
    await parts.coordinator.metering.fold_now()
    rows = await parts.ledger.spend(by, since=first, limit=limit + 1)
    names = await _key_names(parts) if by is SpendBy.KEY else {}
    return {
        "by": by,
        "since": since,
        "rows": [
            {
                "by": row["by"],
                "name": names.get(row["by"], row["by"]),
                **_added_up([row]),
            }
            for row in rows[:limit]
        ],
        "total": await _total(parts, first),
        "truncated": len(rows) > limit,
    }


async def spend_stats(parts: Nestor) -> SpendStats:
    """Return what all calls came to: the dearest models, tasks and keys, the last days."""
    return {
        "total": await _total(parts, None),
        "by_model": await _first(parts, SpendBy.MODEL),
        "by_task": await _first(parts, SpendBy.TASK),
        "by_key": await _first(parts, SpendBy.KEY),
        "by_day": await _first(parts, SpendBy.DAY),
    }


async def _first(parts: Nestor, by: SpendBy) -> dict[str, SpendTotal]:
    """Return the rows that come first; calls of none (no task, no key) are left out."""
    # One more: the row of none may be among them.
    rows = await parts.ledger.spend(by, limit=_IN_STATS + 1)
    named = [row for row in rows if row["by"] is not None]
    return {row["by"]: _added_up([row]) for row in named[:_IN_STATS]}


async def _total(parts: Nestor, since: date | None) -> SpendTotal:
    """Days are few, whatever else is many."""
    days = await parts.ledger.spend(SpendBy.DAY, since=since, limit=_ALL_DAYS)
    return _added_up(days)


def _added_up(rows: list[dict[str, Any]]) -> SpendTotal:
    found: dict[str, Any] = {name: sum(row[name] for row in rows) for name in _COUNTS}
    for name in _TOKENS:
        known = [row[name] for row in rows if row[name] is not None]
        found[name] = sum(known) if known else None
    cost = sum((row["cost_usd"] for row in rows), Decimal(0))
    # Where no price is known, nothing is known of the cost: that is not 0.
    unknown = found["calls"] > 0 and found["unpriced"] == found["calls"]
    found["cost_usd"] = None if unknown else f"{cost:f}"
    return cast("SpendTotal", found)


async def _key_names(parts: Nestor) -> dict[str, str]:
    return {ADMIN: ADMIN} | {key.id: key.name for key in await parts.keys.all()}


def _day(since: str | None) -> date | None:
    if since is None:
        return None
    try:
        return date.fromisoformat(since)
    except ValueError:
        raise InvalidInput.at("since", "is no day (YYYY-MM-DD)") from None
