"""The answer cache as a caller of the gateway meets it: whose answer is given to whom."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.servers.coordinator_rig import Answer, Rig, rig
from tests.servers.scripted_model import Rule

from nestor.coordinator.limits import Caller
from nestor.model.routing import CacheScope, Dialect

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
ONE, OTHER = Caller(key_id="k1"), Caller(key_id="k2")


def said(answer: Answer) -> str:
    return str(answer.body["choices"][0]["message"]["content"])


async def asked(
    r: Rig, caller: Caller = ONE, request: dict[str, Any] | None = None
) -> Answer:
    return await r.chat(request or ASK, caller=caller)


async def test_without_being_asked_for_nothing_is_given_again(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="a", times=1), Rule(reply="b")]) as r:
        assert [said(await asked(r)), said(await asked(r))] == ["a", "b"]


async def test_a_private_answer_is_given_again_to_its_own_key_only(
    tmp_path: Path,
) -> None:
    rules = [Rule(reply="a", times=1), Rule(reply="b")]
    async with rig(tmp_path, local=rules, cache=CacheScope.PRIVATE) as r:
        first, again = await asked(r), await asked(r)
        other = await asked(r, OTHER)

        assert again.done.body == first.done.body
        assert (said(first), said(other)) == ("a", "b")
        assert again.headers["x-nestor-cost-usd"] == "0"
        assert len(r.local.chats) == 2


async def test_a_shared_answer_is_given_to_every_key(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="a")], cache=CacheScope.SHARED) as r:
        assert [said(await asked(r)), said(await asked(r, OTHER))] == ["a", "a"]
        assert len(r.local.chats) == 1


async def test_a_kept_answer_is_a_call_that_cost_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="a")], cache=CacheScope.PRIVATE) as r:
        caller = Caller(key_id="k1", task_id="t1", iteration=1)
        await asked(r, caller)
        await asked(r, caller)
        paid, free = sorted(await r.calls(), key=lambda call: call.cached)

        assert (paid.cached, free.cached) == (False, True)
        assert paid.cost_usd != free.cost_usd == Decimal(0)
        assert free.usage.total == 0
        assert free.interaction_id != paid.interaction_id


async def test_a_kept_answer_can_be_streamed(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="a b")], cache=CacheScope.PRIVATE) as r:
        await asked(r)
        again = await asked(r, request={**ASK, "stream": True})
        pieces = b"".join([piece async for piece in again]).decode()

    events = [line[6:] for line in pieces.split("\n\n") if line.startswith("data: ")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "a b"
    assert events[-1] == "[DONE]"
    assert len(r.local.chats) == 1


async def test_what_a_fallback_said_is_not_kept(tmp_path: Path) -> None:
    async with rig(
        tmp_path,
        local=[Rule(status=500, reply="no", times=1), Rule(reply="from local")],
        remote=[Rule(reply="from remote")],
        cache=CacheScope.SHARED,
    ) as r:
        first, second = await asked(r), await asked(r)

    assert [said(first), said(second)] == ["from remote", "from local"]
    assert second.headers["x-nestor-route"] == "local"


async def test_dialects_do_not_share_their_answers(tmp_path: Path) -> None:
    rules = [Rule(reply="a", times=1), Rule(reply="b")]
    async with rig(tmp_path, local=rules, cache=CacheScope.PRIVATE) as r:
        await asked(r)
        request = {**ASK, "max_tokens": 9, "model": "auto"}
        other = await r.chat(request, caller=ONE, dialect=Dialect.ANTHROPIC)

        assert other.body["content"] == [{"type": "text", "text": "b"}]


async def test_what_may_act_is_never_given_again(tmp_path: Path) -> None:
    rules = [Rule(reply="a", times=1), Rule(reply="b")]
    tool = {"type": "function", "function": {"name": "rm", "parameters": {}}}
    request = {**ASK, "tools": [tool]}
    async with rig(tmp_path, local=rules, cache=CacheScope.PRIVATE) as r:
        answers = [said(await asked(r, request=request)) for _ in range(2)]

    assert answers == ["a", "b"]
