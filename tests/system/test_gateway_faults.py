"""Faults between the gateway and its upstreams: every request ends well or says why not.

One round: up to three deployments behind fault proxies, four to ten requests at once, in
every dialect, some of whose clients leave. See ``tests.servers.gateway_verdict`` for what
must hold. A full run keeps the rounds that passed, so the next one begins with the round
that failed; everything in a round is drawn from the seed and its number.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
from tests.conftest import Rounds
from tests.servers.fault_proxy import Kind
from tests.servers.gateway_rig import GatewayRig, gateway
from tests.servers.gateway_round import PATIENCE_S, Round, ask_all, drawn
from tests.servers.gateway_verdict import judge

from nestor.coordinator.dispatch import utc_now
from nestor.model.routing import ModelCall

SAMPLE = len(Kind)
"""Each fault once; see ``gateway_round.Case``."""


@pytest.mark.heavy
@pytest.mark.timeout(3600)
async def test_whatever_is_between_every_request_ends_and_every_token_is_counted(
    tmp_path: Path, counted: Rounds, seed: int
) -> None:
    seen, rounds = Counter[str](), 0
    async with gateway(tmp_path / "home") as rig:
        for number, draw in counted("gateway-faults", SAMPLE, 500):
            try:
                seen.update(await one_round(rig, draw, number))
            except Exception as error:
                name = type(error).__name__
                message = f"round {number} of seed {seed}: {name}: {error}"
                raise AssertionError(message) from error
            rounds += 1
    print(dict(seen))  # noqa: T201
    if rounds >= SAMPLE:  # a full run that is resumed near its end has few
        assert set(Kind) <= seen.keys()
        assert seen["whole"] > seen["error"] > 0
        assert seen["known"] > seen["unknown"] > 0


async def one_round(rig: GatewayRig, draw: random.Random, number: int) -> Counter[str]:
    rig.remember()
    since = utc_now()
    async with drawn(draw, number) as played:
        rig.load(list(played.deployments.values()), recovery_s=played.recovery_s)
        key_id, secret = await rig.key(played.limits)
        async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE_S):
            await ask_all(session, rig.url, secret, played)
        await rig.is_idle()
        calls = await judge(rig, played, key_id, since)
    await rig.nothing_is_left()
    return came_to(played, calls)


def came_to(played: Round, calls: Sequence[ModelCall]) -> Counter[str]:
    """Count what there was, so that one can see that there was something."""
    seen = Counter[str]()
    for asked in played.asked:
        end = "left" if asked.left else str(asked.told and asked.told.end)
        seen[end] += 1
        seen[f"{asked.dialect} {'stream' if asked.stream else 'whole'}: {end}"] += 1
        seen["fallbacks"] += "x-nestor-fallback-from" in asked.headers
    for proxy in played.proxies.values():
        seen.update(given.kind for given in proxy.given)
    for call in calls:
        seen["unknown" if call.usage.output_tokens is None else "known"] += 1
    return seen
