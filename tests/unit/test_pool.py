"""Which deployments are asked, in which order; and a new configuration, taken over."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.servers.dispatch_rig import deployment, rig
from tests.servers.scripted_model import Rule

from nestor.coordinator.asking import Stream
from nestor.coordinator.dialects.openai import OpenAI
from nestor.coordinator.pool import Pool
from nestor.coordinator.upstream import Upstream
from nestor.errors import Unavailable
from nestor.model.health import HealthStatus
from nestor.model.routing import Deployment, Dialect, Kind, Side
from nestor.ports.model_client import ModelReply, ModelStream
from nestor.resilience.circuit_breaker import BreakerState


class Client:
    """Asks nobody: these tests are about who would be asked."""

    dialect = Dialect.OPENAI

    def __init__(self) -> None:
        self.closed = 0

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        raise NotImplementedError

    async def stream(self, request: dict[str, Any]) -> ModelStream:
        raise NotImplementedError

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed += 1


def pool_of(*deployments: Deployment, draw: Callable[[], float] = lambda: 0.0) -> Pool:
    pool = Pool(draw=draw)
    pool.load([(one, Client()) for one in deployments])
    return pool


def names(order: list[Upstream]) -> list[str]:
    return [upstream.deployment.name for upstream in order]


def client(pool: Pool, name: str) -> Client:
    found = {u.deployment.name: u.client for u in pool.upstreams}[name]
    assert isinstance(found, Client)
    return found


def open_breaker(upstream: Upstream) -> None:
    for _ in range(5):
        upstream.breaker.admit().fail(Unavailable("down"))


A = deployment("a")
B = deployment("b")
C = deployment("c", side=Side.REMOTE)


def test_a_deployments_name_means_that_one_and_a_models_name_each_that_has_it() -> None:
    shared = [deployment(name, model="gpt") for name in ("x", "y")]
    pool = pool_of(*shared, deployment("gpt-old", model="x"))

    assert names(pool.named("x")) == ["x"], "also where a model is called so"
    assert sorted(names(pool.named("gpt"))) == ["x", "y"]
    assert pool.named("nobody") == []


def test_each_is_first_as_often_as_its_weight_says() -> None:
    weights = {"a": 6, "b": 3, "c": 1, "spare": 0}
    shared = [deployment(n, model="m", weight=w) for n, w in weights.items()]
    pool = pool_of(*shared, draw=random.Random(3).random)

    orders = [names(pool.named("m")) for _ in range(5000)]
    first = Counter(order[0] for order in orders)
    for name, weight in weights.items():
        assert abs(first[name] / 5000 - weight / 10) < 0.03
    assert {order[-1] for order in orders} == {"spare"}
    assert all(sorted(order) == sorted(weights) for order in orders)


def test_each_is_followed_by_its_fallbacks_and_nobody_comes_twice() -> None:
    pool = pool_of(
        deployment("a", fallbacks=("d", "b")),
        deployment("b"),
        deployment("c"),
        deployment("d", weight=0, fallbacks=("c",)),
    )

    assert names(pool.named("a")) == ["a", "d", "c", "b"]
    assert names(pool.of_side(Side.LOCAL)) == ["a", "d", "c", "b"]


def test_who_asks_for_a_side_gets_no_fallback_of_the_other() -> None:
    pool = pool_of(
        deployment("near", fallbacks=("far", "spare")),
        deployment("far", side=Side.REMOTE, fallbacks=("last",)),
        deployment("spare"),
        deployment("last"),
    )

    assert names(pool.of_side(Side.LOCAL)) == ["near", "last", "spare"]
    assert names(pool.of_side(Side.REMOTE)) == ["far"]
    assert names(pool.of_side(Side.LOCAL, across=True))[:3] == ["near", "far", "last"]
    assert names(pool.named("near")) == ["near", "far", "last", "spare"]


def test_tags_and_kind_hold_for_fallbacks_too() -> None:
    pool = pool_of(
        deployment("a", tags=("eu", "big"), fallbacks=("b", "c")),
        deployment("b", tags=("eu",)),
        deployment("c", tags=("big", "eu")),
        deployment("e", kind=Kind.EMBEDDINGS, tags=("eu", "big")),
    )

    assert names(pool.named("a", tags=("eu", "big"))) == ["a", "c"]
    assert names(pool.of_side(Side.LOCAL, tags=("eu",))) == ["a", "b", "c"]
    assert pool.named("a", tags=("us",)) == []
    assert pool.named("e") == []
    assert names(pool.named("e", kind=Kind.EMBEDDINGS)) == ["e"]
    assert names(pool.of_side(Side.LOCAL, kind=Kind.EMBEDDINGS)) == ["e"]


def test_embeddings_make_no_side_to_chat_with() -> None:
    assert pool_of(deployment("e", kind=Kind.EMBEDDINGS), C).sides == {Side.REMOTE}


def test_who_is_held_back_comes_last() -> None:
    pool = pool_of(A, B, deployment("d"))
    open_breaker(pool.upstreams[0])

    assert names(pool.of_side(Side.LOCAL)) == ["b", "d", "a"]


def test_who_is_held_back_keeps_its_place_before_its_fallbacks() -> None:
    pool = pool_of(deployment("a", fallbacks=("b",)), B)
    open_breaker(pool.upstreams[0])

    # Passed over in its turn, it is named to the caller: another answered for it.
    assert names(pool.named("a")) == ["a", "b"]


def test_fallbacks_to_nobody_and_in_a_circle_end() -> None:
    pool = pool_of(
        deployment("a", fallbacks=("b", "gone")), deployment("b", fallbacks=("a",))
    )
    assert names(pool.named("a")) == ["a", "b"]


async def test_an_unchanged_deployment_keeps_what_its_breaker_knows() -> None:
    pool = pool_of(A, B)
    kept = pool.upstreams[0]
    open_breaker(kept)
    extra = Client()
    pool.load([(C, Client()), (deployment("a"), extra)])
    await asyncio.sleep(0)

    assert names(list(pool.upstreams)) == ["c", "a"]
    assert pool.upstreams[1] is kept
    assert kept.breaker.state is BreakerState.OPEN
    assert kept.client is not extra
    assert extra.closed == 1, "nobody else would"
    assert pool.sides == {Side.LOCAL, Side.REMOTE}
    assert pool.named("b") == []


async def test_a_changed_deployment_begins_anew_and_its_client_is_closed() -> None:
    pool = pool_of(A)
    before, old = client(pool, "a"), pool.upstreams[0]
    open_breaker(old)
    pool.load([(deployment("a", price_input=Decimal(3)), Client())])
    await asyncio.sleep(0)

    assert pool.upstreams[0] is not old
    assert pool.breakers() == {"model:a": "closed"}
    assert before.closed == 1
    await pool.close()
    assert before.closed == 1


async def test_a_replaced_client_is_closed_once_its_last_call_has_ended() -> None:
    pool = pool_of(A)
    old, held = pool.upstreams[0], client(pool, "a")
    old.enter()
    old.enter()
    pool.load([])
    old.leave()
    await asyncio.sleep(0)
    assert held.closed == 0
    old.leave()
    await asyncio.sleep(0)
    assert held.closed == 1
    old.enter()
    old.leave()
    await asyncio.sleep(0)
    assert held.closed == 1, "once"


async def test_all_clients_are_closed_at_the_end_those_of_open_calls_too() -> None:
    pool = pool_of(A, B)
    clients = [client(pool, "a"), client(pool, "b")]
    pool.upstreams[0].enter()
    pool.load([(B, clients[1])])
    await pool.close()

    assert [one.closed for one in clients] == [1, 1]


async def test_a_stream_goes_on_over_a_change_of_its_deployment(tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(20))
    rules = [Rule(reply=words, chunk_delay_s=0.01)]
    async with rig(tmp_path, rules, [Rule(reply="new")]) as one:
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
        }
        asking = Stream(OpenAI(), request)
        answered = await one.dispatcher.first(one.order, asking, one.context)
        got = b""
        moved = deployment("a", base_url=one.models["b"].base_url, timeout_s=30)
        async for piece in answered.value:
            if not got:
                one.pool.load([(moved, one.client_of(moved))])
            got += piece
        one.dispatcher.settle(answered, answered.value.usage(), replayed=False)

        assert b"word19" in got
        assert b"[DONE]" in got
        assert (await one.answer()).ok
        assert len(one.models["b"].requests) == 1
        assert [call.ok for call in one.ended()] == [True, True]


async def test_a_configuration_that_is_refused_shows_until_one_is_taken() -> None:
    pool = pool_of(A)
    pool.refuse("deployment.0.side: is missing")
    shown = {one.name: one for one in await pool.dependencies()}

    assert shown["nestor.toml"].status is HealthStatus.DEGRADED
    assert shown["nestor.toml"].message == (
        "nestor.toml was not taken over: deployment.0.side: is missing"
    )
    assert names(list(pool.upstreams)) == ["a"]
    pool.load([(A, client(pool, "a"))])
    assert [one.name for one in await pool.dependencies()] == ["model:a"]
    assert client(pool, "a").closed == 0


@pytest.mark.parametrize("field", ["api_key", "base_url"])
def test_stats_show_no_key_and_no_address(field: str) -> None:
    secret = {"api_key": "sk-0123456789", "base_url": "http://inside.example/v1"}
    pool = pool_of(deployment("a", **secret))

    (shown,) = pool.stats()
    assert secret[field] not in str(shown)
    assert shown["name"] == "a"
    assert shown["in_flight"] == 0
