"""What must hold after a round: answers, the meter, budgets.

The bills are the scripted models' own; what reached the gateway of them is read here anew
from the bytes that the proxies handed on.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.servers.fault_proxy import STOPS, Given, Kind
from tests.servers.gateway_rig import GatewayRig, until
from tests.servers.gateway_round import NAMES, Asked, Round
from tests.servers.scripted_model import Recorded
from tests.servers.told_answers import End

from nestor.model.routing import Charge, Deployment, Dialect, ModelCall
from nestor.model.task import Usage
from nestor.ports.call_ledger import SpendBy

REFUSALS = {402, 429, 502, 503, 504}
_WORD = re.compile(rb"\b(one|two|three)-(m\d+)-\d+")
_GARBLED = {Kind.GARBAGE, Kind.SPOILT}
_NEVER_READ = re.compile(
    "a kept connection ended before its answer began|said nothing for|no answer within"
)
"""Of a request that was made; on a busy machine its time is over before anybody reads it."""
_HURRIED = "asked more than once"
"""Of what is asked again, the rest of its time: that may be next to nothing."""
_MILLION = Decimal(1_000_000)


async def judge(
    rig: GatewayRig, played: Round, key_id: str, since: datetime
) -> list[ModelCall]:
    """Hold a round that is over to everything; return its calls. ``key_id``: whose."""
    _check_case(played)
    calls = defaultdict[str, list[ModelCall]](list)
    for call in await rig.calls(since):
        calls[call.trace_id].append(call)
        assert call.key_id == key_id
    assert calls.keys() <= {asked.trace_id for asked in played.asked}
    for asked in played.asked:
        mine = calls[asked.trace_id]
        try:
            _check_outcome(played, asked, mine)
            await _check_meter(played, asked, mine, key_id)
        except AssertionError as error:
            raise AssertionError(_told(played, asked, mine, error)) from error
    every = [call for some in calls.values() for call in some]
    await _check_sums(rig, key_id, every)
    return every


def _check_case(played: Round) -> None:
    """Hold the round to its case: nobody else was first to meet what it was for."""
    first = played.asked[0]
    assert played.met, f"nobody was asked: {first.status} {first.raw!r}"
    (met,) = played.met
    assert met.kind is played.case.kind
    assert met in played.given(NAMES[0], first)
    assert met.odd_usage or met.kind is not Kind.ODD_USAGE


def _told(
    played: Round, asked: Asked, calls: Sequence[ModelCall], error: AssertionError
) -> str:
    lines = [
        str(error),
        f"asked {asked.mark}: {asked.dialect} of {asked.target}, stream={asked.stream}",
        f"came to {asked.status} {asked.told} left={asked.left} {asked.broke}",
        f"headers {asked.headers}",
        f"raw {asked.raw[-600:]!r}",
    ]
    for name in played.told_by(asked):
        said = asked.rules[name]
        lines.append(
            f"{name} speaks {played.deployments[name].dialect}, {said.usage_in}"
            f" {said.usage}: {played.given(name, asked)}"
        )
    lines += [
        f"call of {c.deployment} ok={c.ok} {c.usage} {c.error} attempt_of={c.attempt_of}"
        for c in calls
    ]
    return "\n".join(lines)


# (a) Every request ends in an answer, or says why there is none.


def _check_outcome(played: Round, asked: Asked, calls: Sequence[ModelCall]) -> None:
    words = set(_WORD.findall(asked.raw))
    assert {mark.decode() for _, mark in words} <= {asked.mark}, "somebody else's words"
    assert len({name for name, _ in words}) <= 1, "two answers are mixed"
    main = [call for call in calls if call.attempt_of is None]
    assert len(main) == bool(calls), "one call counts"
    for call in calls:
        assert call is main[0] or call.attempt_of == main[0].interaction_id
        assert call is main[0] or not call.ok
    if asked.left:
        return
    assert not asked.broke, "the connection broke"
    told = asked.told
    assert told is not None
    if asked.status != 200:
        assert asked.status in REFUSALS, "an unusual status"
        assert not any(call.ok for call in calls), "a call that answered nobody"
        return
    answered = main[0]
    assert asked.headers["x-nestor-interaction-id"] == answered.interaction_id
    name = asked.headers["x-nestor-model"].removesuffix("-model")
    assert name == answered.deployment
    assert name in played.told_by(asked), "nobody named it as a fallback"
    if name != asked.target:
        assert asked.headers.get("x-nestor-fallback-from"), "a silent fallback"
        assert answered.fallback_from == asked.headers["x-nestor-fallback-from"]
    script = asked.rules[name].reply
    assert told.end is not End.NONE, "it just stops"
    if told.end is End.WHOLE:
        assert told.text == script, "not what the model said"
        assert answered.ok
        if told.usage and answered.usage.output_tokens is not None:
            counts = (answered.usage.input_tokens, answered.usage.output_tokens)
            assert told.usage == counts, "the caller is told of other tokens"
        return
    assert script.startswith(told.text)
    if told.end is End.GARBLED:
        spoke = played.deployments[name].dialect
        assert spoke == asked.dialect, "what was translated can be read"
        assert played.given(name, asked)[-1].kind in _GARBLED
    else:
        assert not answered.ok
        assert answered.error


# (b) The meter knows what the upstream bills, or says that it does not.


async def _check_meter(
    played: Round, asked: Asked, calls: Sequence[ModelCall], key_id: str
) -> None:
    for name, deployment in played.deployments.items():
        mine = [call for call in calls if call.deployment == name]
        given = played.given(name, asked)
        billing = [one for one in given if one.asked]
        await until(
            lambda: len(played.bills(name, asked)) == len(billing),  # noqa: B023 - at once
            lambda: "the proxy asked the model otherwise",
        )
        bills = iter(played.bills(name, asked))
        for call, met in _pairs(asked, mine, given):
            bill = next(bills) if met is not None and met.asked else None
            _check_call(asked, deployment, call, met, bill)
            reserved = _reserved(asked, deployment)
            free = _was_refused(asked, call, met)
            charges = () if free else _charges(played, call, reserved, key_id)
            assert call.charges == charges, f"charged {call.charges}, not {charges}"


def _pairs(
    asked: Asked, calls: Sequence[ModelCall], given: Sequence[Given]
) -> list[tuple[ModelCall, Given | None]]:
    """Say which call met what. A call may have met nothing: its request was never read."""
    assert len(given) <= len(calls), "a request that is no call"
    found: list[tuple[ModelCall, Given | None]] = []
    todo = list(given)
    for at, call in enumerate(calls):
        lost = len(calls) - at > len(todo)
        gone = asked.left and at == len(calls) - 1
        if lost and (gone or _NEVER_READ.search(call.error or "")):
            found.append((call, None))
            continue
        assert todo, "a call of which the upstream knows nothing"
        found.append((call, todo.pop(0)))
    return found


def _check_call(
    asked: Asked,
    deployment: Deployment,
    call: ModelCall,
    met: Given | None,
    bill: Recorded | None,
) -> None:
    if met is None or bill is None:
        assert call.usage == Usage(), "counts of what nobody was asked"
        assert not call.ok
        assert call.cost_usd == (0 if _was_refused(asked, call, met) else None)
        return
    billed = bill.billed or Usage()
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        count, real = getattr(call.usage, name), getattr(billed, name)
        assert count is None or count == real, f"{name}: {count}, the bill says {real}"
    if bill.billed is not None and _is_known(asked, deployment, call, met):
        assert call.usage.input_tokens == billed.input_tokens, "it was told the input"
        assert call.usage.output_tokens == billed.output_tokens, "it was told"
    assert call.cost_usd == _cost(deployment, call.usage), "not the price"


def _was_refused(asked: Asked, call: ModelCall, met: Given | None) -> bool:
    """Tell whether the gateway knows that this cost nothing: it read the refusal."""
    if met is None or met.asked:
        return False
    read = re.search(r"HTTP (429|500)", call.error or "") is not None
    assert read or asked.left or _HURRIED in (call.error or ""), "it had time to read"
    return read


def _is_known(
    asked: Asked, deployment: Deployment, call: ModelCall, met: Given
) -> bool:
    """Tell whether the gateway was told all counts, for certain."""
    if asked.left:
        return False
    if met.kind in STOPS:
        if not (asked.stream and met.was_read):
            return False
        if _HURRIED in (call.error or ""):
            return False  # it had no time left to read
        return _told_counts(deployment.dialect, bytes(met.sent))
    return call.ok and met.kind is not Kind.SPOILT


def _told_counts(dialect: Dialect, sent: bytes) -> bool:
    """Tell whether a part of a stream says, for good, what the answer took.

    Of one that broke before its first token nothing is kept: it counts as unknown.
    """
    *events, _ = sent.split(b"\n\n")
    data: list[dict[str, Any]] = [
        json.loads(line[6:])
        for event in events
        for line in event.splitlines()
        if line.startswith(b"data: {")
    ]
    if not _WORD.search(b"".join(event + b"\n\n" for event in events)):
        return False
    if dialect is Dialect.ANTHROPIC:
        deltas = [one for one in data if one["type"] == "message_delta"]
        ended = any(one["type"] == "message_stop" for one in data)
        return any("usage" in one for one in deltas) or (bool(deltas) and ended)
    counted = [one for one in data if one.get("usage")]
    finished = any(
        choice.get("finish_reason") for one in data for choice in one["choices"]
    )
    return any(not one["choices"] for one in counted) or bool(counted and finished)


def _cost(deployment: Deployment, usage: Usage) -> Decimal | None:
    """Price a call; None where a count is not known."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    price_in, price_out = deployment.price_input, deployment.price_output
    assert price_in is not None
    assert price_out is not None
    cached = usage.cached_tokens or 0
    price_cached = deployment.price_cached
    parts = (
        price_in * (usage.input_tokens - cached),
        (price_in if price_cached is None else price_cached) * cached,
        price_out * usage.output_tokens,
    )
    return sum(parts, Decimal(0)) / _MILLION


# (c) Budgets are charged what is known, and what is not as it was reserved.


def _reserved(asked: Asked, deployment: Deployment) -> tuple[Decimal, int]:
    """Return the most that a call may cost: three bytes of a request are a token."""
    tokens = -(-len(asked.body) // 3)
    price_in, price_out = deployment.price_input, deployment.price_output
    assert price_in is not None
    assert price_out is not None
    usd = (price_in * tokens + price_out * asked.max_tokens) / _MILLION
    return usd, tokens + asked.max_tokens


def _charges(
    played: Round,
    call: ModelCall,
    reserved: tuple[Decimal, int],
    key_id: str,
) -> tuple[Charge, ...]:
    limits = played.limits
    if limits is None:
        return ()
    usd, tokens = reserved
    if call.cost_usd is not None:
        usd = call.cost_usd
    known = call.usage.input_tokens, call.usage.output_tokens
    if known[0] is not None and known[1] is not None:
        tokens = known[0] + known[1]
    return (Charge(account=f"key:{key_id}", usd=usd, tokens=tokens),)


async def _check_sums(rig: GatewayRig, key_id: str, calls: Sequence[ModelCall]) -> None:
    spent = await rig.account(key_id)
    charges = [charge for call in calls for charge in call.charges]
    assert spent.usd == sum((one.usd for one in charges), Decimal(0))
    assert spent.tokens == sum(one.tokens for one in charges)
    rows = await rig.nestor.ledger.spend(SpendBy.KEY, limit=100_000)
    row = next((one for one in rows if one["by"] == key_id), None)
    if row is None:
        assert not calls
        return
    assert row["calls"] == len(calls)
    assert row["failed"] == sum(not call.ok for call in calls)
    assert row["unpriced"] == sum(call.cost_usd is None for call in calls)
    assert row["cost_usd"] == sum((c.cost_usd or Decimal(0) for c in calls), Decimal(0))
    for name in ("input_tokens", "output_tokens"):
        known = [n for c in calls if (n := getattr(c.usage, name)) is not None]
        assert row[name] == (sum(known) if known else None), name
