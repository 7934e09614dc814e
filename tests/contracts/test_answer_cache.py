"""What ``ports.answer_cache.AnswerCache`` promises, in this process and on a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.servers import redis_server
from tests.servers.redis_server import RedisServer

from nestor.backends.redis.answer_cache import (
    KEY_PREFIX,
    MAX_VALUE_BYTES,
    RedisAnswers,
)
from nestor.backends.redis.connection import RECOVERY_S, RedisConnection
from nestor.coordinator.answer_cache import MAX_ANSWER_BYTES, AnswerCaching, cache_key
from nestor.model.health import HealthStatus
from nestor.model.routing import Dialect
from nestor.ports.answer_cache import AnswerCache
from nestor.resilience.answer_cache import MemoryAnswers

KEY = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path / "redis") as server:
        yield server


def on(server: RedisServer, local: MemoryAnswers | None = None) -> RedisAnswers:
    return RedisAnswers(
        RedisConnection(server.url, user="answers"), local=local or MemoryAnswers()
    )


@dataclass
class Kept:
    put: AnswerCache
    get: AnswerCache
    """The same, or, on Redis, that of another process."""


@pytest.fixture(params=["process", "redis", "redis, another process"])
async def kept(request: pytest.FixtureRequest) -> AsyncIterator[Kept]:
    if request.param == "process":
        memory = MemoryAnswers()
        yield Kept(memory, memory)
        return
    server = request.getfixturevalue("redis")
    assert server.ask("FLUSHALL") == "+OK"
    one = on(server)
    two = one if request.param == "redis" else on(server)
    yield Kept(one, two)
    await one.close()
    await two.close()


async def test_what_was_put_is_given_back_byte_for_byte(kept: Kept) -> None:
    answer = bytes(range(256)) * 100
    await kept.put.put(KEY, answer, ttl_s=60)

    assert await kept.get.get(KEY) == answer
    assert await kept.get.get(OTHER) is None


async def test_the_newest_stands(kept: Kept) -> None:
    await kept.put.put(KEY, b"one", ttl_s=60)
    await kept.put.put(KEY, b"two", ttl_s=60)

    assert await kept.get.get(KEY) == b"two"


async def test_an_answer_ends_with_its_time(kept: Kept) -> None:
    await kept.put.put(KEY, b"short", ttl_s=0.3)
    await kept.put.put(OTHER, b"long", ttl_s=60)
    assert await kept.get.get(KEY) == b"short"
    await asyncio.sleep(0.5)

    assert await kept.get.get(KEY) is None
    assert await kept.get.get(OTHER) == b"long"


async def test_no_time_is_no_answer(kept: Kept) -> None:
    await kept.put.put(KEY, b"one", ttl_s=0)

    assert await kept.get.get(KEY) is None


async def test_it_tells_where_answers_are_kept_and_closes_twice(kept: Kept) -> None:
    for one in await kept.get.dependencies():
        assert one.status is HealthStatus.HEALTHY
        assert one.last_observed is not None
    await kept.put.close()
    await kept.put.close()


# In this process


async def test_memory_is_bounded_and_what_was_not_used_longest_goes() -> None:
    memory = MemoryAnswers(max_bytes=10_000)
    for number in range(8):
        await memory.put(f"k{number}", b"x" * 800, ttl_s=60)
        await memory.get("k0")
        assert memory.bytes_kept <= 10_000
    for number in range(8, 30):
        await memory.put(f"k{number}", b"x" * 800, ttl_s=60)
        await memory.get("k0")
        assert memory.bytes_kept <= 10_000

    assert await memory.get("k0") is not None
    assert await memory.get("k1") is None
    assert await memory.get("k29") is not None


async def test_an_answer_larger_than_all_the_room_throws_nothing_out() -> None:
    memory = MemoryAnswers(max_bytes=10_000)
    await memory.put("small", b"x", ttl_s=60)
    await memory.put("large", b"x" * 10_000, ttl_s=60)

    assert await memory.get("small") == b"x"
    assert await memory.get("large") is None


async def test_time_in_this_process_is_the_monotonic_clocks() -> None:
    now = 100.0
    memory = MemoryAnswers(clock=lambda: now)
    await memory.put(KEY, b"one", ttl_s=10)
    now = 109.9
    assert await memory.get(KEY) == b"one"
    now = 110.0
    assert await memory.get(KEY) is None
    assert memory.bytes_kept == 0


# On Redis


async def test_without_redis_each_process_gives_its_own_answers_again(
    own_redis: RedisServer,
) -> None:
    one, two = on(own_redis), on(own_redis)
    own_redis.stop()
    async with asyncio.timeout(5):
        for _ in range(20):
            await one.put(KEY, b"one", ttl_s=60)
            assert await one.get(KEY) == b"one"
            assert await two.get(KEY) is None
    (away,) = await one.dependencies()
    assert away.status is HealthStatus.DEGRADED
    assert "its own answers" in away.message

    own_redis.start()
    await asyncio.sleep(RECOVERY_S + 0.2)
    await two.put(OTHER, b"two", ttl_s=60)
    async with asyncio.timeout(10):
        while await one.get(OTHER) != b"two":
            await asyncio.sleep(0.1)
            await two.put(OTHER, b"two", ttl_s=60)
    await one.close()
    await two.close()


async def test_a_value_of_anothers_making_fills_no_memory_and_breaks_nothing(
    own_redis: RedisServer,
) -> None:
    cache = on(own_redis)
    size = MAX_VALUE_BYTES * 8
    assert own_redis.ask("SETRANGE", KEY_PREFIX + KEY, str(size), "x") == f":{size + 1}"
    assert own_redis.ask("LPUSH", KEY_PREFIX + OTHER, "x") == ":1"
    for digest in (KEY, OTHER):
        for _ in range(10):
            assert await cache.get(digest) is None
    (there,) = await cache.dependencies()
    assert there.status is HealthStatus.HEALTHY
    await cache.put(OTHER, b"mine", ttl_s=60)

    assert own_redis.ask("GET", KEY_PREFIX + OTHER).endswith("mine")
    await cache.close()


async def test_what_redis_keeps_has_an_end_and_a_size(own_redis: RedisServer) -> None:
    cache = on(own_redis)
    await cache.put(KEY, b"one", ttl_s=60)
    await cache.put(OTHER, b"x" * (MAX_VALUE_BYTES + 1), ttl_s=60)

    assert own_redis.ask("DBSIZE") == ":1"
    assert 0 < int(own_redis.ask("PTTL", KEY_PREFIX + KEY)[1:]) <= 60_000
    await cache.close()


# Which answers, and to whom


def chat(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def key(request: dict[str, Any], **how: Any) -> str | None:
    given = {"dialect": Dialect.OPENAI, "owner": "key:1", "group": "g", **how}
    return cache_key(request=request, **given)


def test_the_same_request_has_the_same_key_however_it_is_spelt() -> None:
    spelt = {"messages": [{"content": "hi", "role": "user"}], "model": "m", "top_p": 1}
    assert key(chat(top_p=1)) == key(spelt)
    for field in ("stream", "user", "metadata", "stream_options"):
        assert key({**chat(), field: {"a": "b"}}) == key(chat())
    assert key(chat(n=1, tools=[], tool_choice=None)) is not None


def test_a_key_differs_by_who_asks_whom_for_what() -> None:
    keys = [
        key(chat()),
        key(chat("ho")),
        key(chat(temperature=0)),
        key(chat(max_tokens=5)),
        key(chat(seed=1)),
        key(chat(model="other")),
        key(chat(system="be")),
        key(chat(), owner="key:2"),
        key(chat(), owner=None),
        key(chat(), owner=""),
        key(chat(), group="h"),
        key(chat(), dialect=Dialect.ANTHROPIC),
        key({"model": "m", "input": "hi"}),
    ]
    assert None not in keys
    assert len(set(keys)) == len(keys)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "request_",
    [
        chat(tools=[{"type": "function"}]),
        chat(functions=[{"name": "f"}]),
        chat(n=2),
        chat(web_search_options={"x": 1}),
        chat(mcp_servers=[{"url": "x"}]),
        chat(store=True),
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}]},
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]},
        {"input": [{"type": "function_call_output", "output": "x"}]},
        {"input": "hi", "previous_response_id": "r"},
        {"messages": []},
        {"model": "m"},
        {},
    ],
)
def test_a_request_that_acts_or_leans_on_a_state_has_no_key(
    request_: dict[str, Any],
) -> None:
    assert key(request_) is None


def completion(finish: str = "stop", **message: Any) -> bytes:
    said = {"role": "assistant", "content": "yes", **message}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    return msgspec.json.encode({"choices": [choice]})


def message(reason: str = "end_turn", *kinds: str) -> bytes:
    blocks = [{"type": kind} for kind in kinds or ("text",)]
    return msgspec.json.encode({"stop_reason": reason, "content": blocks})


def response(status: str = "completed", *kinds: str) -> bytes:
    items = [{"type": kind} for kind in kinds or ("message",)]
    return msgspec.json.encode({"status": status, "output": items})


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        (Dialect.OPENAI, completion()),
        (Dialect.OPENAI, completion(reasoning_content="hm", tool_calls=None)),
        (Dialect.ANTHROPIC, message()),
        (Dialect.ANTHROPIC, message("stop_sequence", "thinking", "text")),
        (Dialect.RESPONSES, response()),
        (Dialect.RESPONSES, response("completed", "reasoning", "message")),
    ],
)
async def test_a_whole_answer_is_given_again_and_only_under_its_key(
    dialect: Dialect, answer: bytes
) -> None:
    caching = AnswerCaching(MemoryAnswers())

    assert await caching.keep(KEY, dialect, answer, ttl_s=60)
    assert await caching.lookup(KEY) == answer
    assert await caching.lookup(OTHER) is None


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        (Dialect.OPENAI, completion("length")),
        (Dialect.OPENAI, completion("content_filter")),
        (Dialect.OPENAI, completion("tool_calls", tool_calls=[CALL])),
        (Dialect.OPENAI, completion(tool_calls=[CALL])),
        (Dialect.OPENAI, completion(function_call={"name": "f"})),
        (Dialect.OPENAI, completion(refusal="no")),
        (Dialect.OPENAI, completion(content=None)),
        (Dialect.OPENAI, completion()[:-1]),
        (Dialect.OPENAI, completion(content="x" * MAX_ANSWER_BYTES)),
        (Dialect.OPENAI, b'{"choices": []}'),
        (Dialect.OPENAI, b"null"),
        (Dialect.OPENAI, message()),
        (Dialect.ANTHROPIC, message("max_tokens")),
        (Dialect.ANTHROPIC, message("tool_use", "text", "tool_use")),
        (Dialect.ANTHROPIC, message("end_turn", "text", "server_tool_use")),
        (Dialect.ANTHROPIC, message("refusal")),
        (Dialect.RESPONSES, response("incomplete")),
        (Dialect.RESPONSES, response("completed", "function_call")),
    ],
)
async def test_an_answer_that_was_cut_or_acts_is_not_kept(
    dialect: Dialect, answer: bytes
) -> None:
    caching = AnswerCaching(MemoryAnswers())

    assert not await caching.keep(KEY, dialect, answer, ttl_s=60)
    assert await caching.lookup(KEY) is None


async def test_bytes_that_are_not_what_was_kept_are_no_answer() -> None:
    store = MemoryAnswers()
    caching = AnswerCaching(store)
    await caching.keep(KEY, Dialect.OPENAI, completion(), ttl_s=60)
    whole = await store.get(KEY)
    assert whole is not None
    damaged = [whole[:cut] for cut in range(len(whole))]
    damaged += [b"2" + whole[1:], whole + b" ", completion(), b"\x00" * 100]
    for bad in damaged:
        await store.put(KEY, bad, ttl_s=60)
        assert await caching.lookup(KEY) is None
    await store.put(OTHER, whole, ttl_s=60)
    assert await caching.lookup(OTHER) is None  # an answer to another question
