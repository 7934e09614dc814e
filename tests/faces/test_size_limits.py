"""What a request asks for at most is what is reserved for it, and counted a minute."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.servers.gateway_rig import ADMIN_KEY, GatewayRig, gateway
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.coordinator.answer_size import MAX_ANSWERS
from nestor.coordinator.pricing import MAX_TOKENS
from nestor.model.access import KeyLimits
from nestor.model.routing import Deployment, Dialect, Side

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: HI,
    MESSAGES: {**HI, "max_tokens": 5},
    RESPONSES: {"input": "hi"},
    "/route": {"query": "hi"},
}
SCOPES = ["model", "read", "submit"]
LIMIT_OF = {
    CHAT: "max_tokens",
    MESSAGES: "max_tokens",
    RESPONSES: "max_output_tokens",
    "/route": "max_tokens",
}


@dataclass
class Face:
    rig: GatewayRig
    session: aiohttp.ClientSession
    model: ScriptedModel

    async def post(
        self, path: str, key: str = ADMIN_KEY, **more: Any
    ) -> tuple[int, Any]:
        body = {**BODIES[path], **more}
        if path != "/route":
            body = {"model": "d", **body}
        headers = {"Authorization": f"Bearer {key}"}
        url = self.rig.url + path
        async with self.session.post(url, json=body, headers=headers) as reply:
            return reply.status, await reply.json()

    async def statuses(self, times: int, path: str, key: str, **more: Any) -> list[int]:
        return [(await self.post(path, key, **more))[0] for _ in range(times)]


@asynccontextmanager
async def face(
    folder: Path, *rules: Rule, dialect: Dialect = Dialect.OPENAI, **more: Any
) -> AsyncIterator[Face]:
    async with (
        gateway(folder) as rig,
        ScriptedModel(list(rules) or [Rule(reply="fine")]) as model,
        aiohttp.ClientSession() as session,
    ):
        fields: dict[str, Any] = {
            "name": "d",
            "side": Side.LOCAL,
            "model": "m",
            "base_url": model.base_url,
            "dialect": dialect,
            "timeout_s": 5,
            "price_input": Decimal(1),
            "price_output": Decimal(10),
        }
        rig.load([Deployment(**(fields | more))], recovery_s=0.01)
        yield Face(rig, session, model)


@pytest.fixture
async def openai(tmp_path: Path) -> AsyncIterator[Face]:
    async with face(tmp_path) as one:
        yield one


def fields_of(body: Any, path: str) -> str:
    """What a refusal says is wrong."""
    if path == "/route":
        return "; ".join(one["field"] for one in body["errors"])
    error = body["error"]
    return str(error.get("param") or error["message"].partition(":")[0])


# A budget of 1 USD is 100,000 tokens of answer.


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_tokens": 200_000}),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 200_000}),
        (CHAT, {"max_tokens": 200_000, "max_completion_tokens": 1}),
        (CHAT, {"max_tokens": 1, "n_predict": 200_000}),
        (CHAT, {"max_tokens": 2_000, "n": 100}),
        (CHAT, {"max_tokens": 2_000, "n": 1, "best_of": 100}),
        (CHAT, {"max_tokens": 2_000, "n_cmpl": 100}),
        (CHAT, {"n": 100}),  # of the default limit
        (MESSAGES, {"max_tokens": 200_000}),
        (MESSAGES, {"max_tokens": 200_000, "max_output_tokens": 1}),
        (RESPONSES, {"max_output_tokens": 200_000}),
        (RESPONSES, {"max_output_tokens": 200_000, "max_tokens": 1}),
        (RESPONSES, {"max_output_tokens": 200_000, "max_completion_tokens": 1}),
    ],
)
async def test_what_is_asked_for_must_be_paid_for_under_any_name(
    openai: Face, path: str, fields: dict[str, int]
) -> None:
    _, key = await openai.rig.key(KeyLimits(usd=Decimal(1)))
    status, body = await openai.post(path, key, **fields)
    assert status == 402
    assert "this call may take up to" in body["error"]["message"]
    assert openai.model.requests == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_tokens": 50_000}),
        (CHAT, {"max_tokens": 20_000, "n": 4}),
        (CHAT, {"n": None, "max_tokens": None, "best_of": None}),
        (MESSAGES, {"max_tokens": 50_000}),
        # Of another dialect: no server that is asked knows it.
        (RESPONSES, {"max_output_tokens": 5, "max_tokens": 200_000, "n": 100}),
    ],
)
async def test_what_can_be_paid_for_is_asked(
    openai: Face, path: str, fields: dict[str, int]
) -> None:
    _, key = await openai.rig.key(KeyLimits(usd=Decimal(1)))
    status, body = await openai.post(path, key, **fields)
    assert status == 200, body
    assert len(openai.model.requests) == 1


async def test_answers_of_which_nobody_knows_the_end_cost_all_that_were_asked_for(
    tmp_path: Path,
) -> None:
    cut = Rule(reply="one two", cut_after_chunks=2)
    async with face(tmp_path, cut) as one:
        key_id, key = await one.rig.key(KeyLimits(usd=Decimal(1)))
        headers = {"Authorization": f"Bearer {key}"}
        asked = {"model": "d", **HI, "max_tokens": 1000, "n": 8, "stream": True}
        url = one.rig.url + CHAT
        async with one.session.post(url, json=asked, headers=headers) as reply:
            await reply.read()
        await one.rig.is_idle()
        await one.rig.nestor.coordinator.metering.fold_now()
        spent = (await one.rig.account(key_id)).usd
        assert Decimal("0.08") < spent < Decimal("0.081")


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("limit", [MAX_TOKENS + 1, 10**17, 2**63 - 1, -1])
async def test_a_limit_that_no_model_has_is_refused_by_its_name(
    openai: Face, path: str, limit: int
) -> None:
    name = LIMIT_OF[path]
    given: dict[str, Any] = {name: limit}
    status, body = await openai.post(path, **given)
    assert (status, fields_of(body, path)) == (400, name)
    assert openai.model.requests == []


@pytest.mark.parametrize("path", list(BODIES))
async def test_the_largest_limit_is_one(openai: Face, path: str) -> None:
    given: dict[str, Any] = {LIMIT_OF[path]: MAX_TOKENS}
    status, body = await openai.post(path, **given)
    assert status == 200, body


@pytest.mark.parametrize("name", ["n", "best_of", "n_cmpl"])
@pytest.mark.parametrize("value", [0, -1, MAX_ANSWERS + 1, 10**30, 1.5, "2", True, []])
async def test_what_is_no_number_of_answers_is_refused_by_its_name(
    openai: Face, name: str, value: Any
) -> None:
    status, body = await openai.post(CHAT, **{name: value})
    assert (status, fields_of(body, CHAT)) == (400, name)
    assert openai.model.requests == []


async def test_anthropics_limit_of_0_reaches_a_server_of_theirs_alone(
    tmp_path: Path,
) -> None:
    """It fills their cache; a chat server writes at least one token."""
    async with face(tmp_path / "a", dialect=Dialect.ANTHROPIC) as one:
        key_id, key = await one.rig.key(KeyLimits(usd=Decimal(1)))
        status, body = await one.post(MESSAGES, key, max_tokens=0)
        assert status == 200, body
        assert one.model.requests[0].body["max_tokens"] == 0
        (held,) = one.rig.nestor.coordinator._budgets._held.values()
        assert held.account.id == f"key:{key_id}"
        assert held.usd.peak < 4096 * 10**7, "no answer was reserved"
    async with face(tmp_path / "b") as one:
        status, body = await one.post(MESSAGES, max_tokens=0)
        assert status == 400
        assert "max_tokens" in body["error"]["message"]
        assert one.model.requests == []


# Tokens a minute: an estimate is about 4,100.


@pytest.mark.parametrize("path", list(BODIES))
async def test_tokens_a_minute_are_those_that_were_used(
    openai: Face, path: str
) -> None:
    _, key = await openai.rig.nestor.keys.create("any", SCOPES, KeyLimits(tpm=9000))
    more = {"max_tokens": 4096} if path == MESSAGES else {}
    assert await openai.statuses(6, path, key, **more) == [200] * 6


@pytest.mark.parametrize("path", list(BODIES))
async def test_what_nobody_answered_takes_no_tokens_of_a_minute(
    tmp_path: Path, path: str
) -> None:
    async with face(tmp_path, Rule(status=400)) as one:
        _, key = await one.rig.nestor.keys.create("any", SCOPES, KeyLimits(tpm=9000))
        more = {"max_tokens": 4096} if path == MESSAGES else {}
        said = await one.statuses(6, path, key, **more)
        assert 429 not in said
        assert len(one.model.requests) == 6


@pytest.mark.parametrize("path", [CHAT, "/route"])
async def test_what_may_be_billed_takes_what_was_asked_for(
    tmp_path: Path, path: str
) -> None:
    late = Rule(reply="late", delay_s=5)
    async with face(tmp_path, late, timeout_s=0.3) as one:
        _, key = await one.rig.nestor.keys.create("any", SCOPES, KeyLimits(tpm=9000))
        said = await one.statuses(3, path, key)
        assert said[:2] != [429, 429]
        assert said[2] == 429
