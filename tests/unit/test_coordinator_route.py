"""``route``: context, decision, fallback, extraction, and what is remembered of it."""

from decimal import Decimal
from pathlib import Path

import pytest
from tests.servers.coordinator_rig import Rig, rig
from tests.servers.scripted_model import Rule

from nestor.errors import (
    CircuitOpen,
    InvalidInput,
    RateLimited,
    Unavailable,
    UpstreamError,
)
from nestor.model.ids import derived_id
from nestor.model.knowledge import ContextItem, NewDocument
from nestor.model.routing import Mode, RouteRequest, Side
from nestor.model.task import Usage
from nestor.telemetry.trace import trace

COST = Decimal(11 * 2 + 7 * 10) / 1_000_000


async def know(r: Rig) -> None:
    await r.aidb.add(
        NewDocument(
            project="docs",
            path="ports.md",
            content="# Ports\nThe dashboard listens on port 8888.\n",
        )
    )


async def test_a_query_goes_with_context_and_comes_back_with_sources(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, local=[Rule(reply="8888 [1]")], remote=[]) as r:
        await know(r)
        with trace() as trace_id:
            found = await r.coordinator.route(
                RouteRequest(
                    query="Which port has the dashboard?",
                    task_id="t1",
                    iteration=1,
                    max_tokens=50,
                )
            )
        calls = await r.calls()
        meter = await r.coordinator.meter("t1", iteration=1)

    assert (found.response, found.route, found.model) == (
        "8888 [1]",
        "local",
        "local-model",
    )
    assert found.confidence is None
    assert "no evidence" in found.reason
    assert found.sources == ["docs/ports.md#Ports"]
    assert len(found.context_ids) == 1
    assert found.usage == Usage(input_tokens=11, output_tokens=7)
    assert found.cost_usd == COST
    sent = r.local.chats[0].body
    assert sent["max_tokens"] == 50
    assert "The dashboard listens on port 8888." in sent["messages"][1]["content"]
    (call,) = calls
    assert call.interaction_id == found.interaction_id
    assert (call.purpose, call.ok, call.trace_id) == ("route", True, trace_id)
    assert (meter.calls, meter.cost_usd, meter.routes) == (1, COST, ["local"])
    (routed,) = r.events("query_routed")
    (called,) = r.events("model_called")
    (context,) = r.events("context_retrieved")
    assert routed["id"] == derived_id("t1", 1, "query_routed")
    assert called["id"] == derived_id("model_called", found.interaction_id)
    assert {e["trace_id"] for e in (routed, called, context)} == {trace_id}
    assert {e["task_id"] for e in (routed, called, context)} == {"t1"}
    assert called["data"]["cost_usd"] == "0.000092"


async def test_given_context_is_used_and_the_knowledge_base_not_asked(
    tmp_path: Path,
) -> None:
    item = ContextItem(id="i", kind="document", text="T", source="s", score=1.0)
    async with rig(tmp_path, local=[Rule(reply="ok")]) as r:
        await know(r)
        found = await r.coordinator.route(RouteRequest(query="port?", context=[item]))
        bare = await r.coordinator.route(RouteRequest(query="port?", context=[]))

    assert (found.context_ids, found.sources) == (["i"], ["s"])
    assert bare.context_ids == []
    assert r.events("context_retrieved") == []


async def test_without_a_model_the_answer_is_quoted_and_says_so(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as r:
        await know(r)
        found = await r.coordinator.route(
            RouteRequest(query="Which port has the dashboard?", task_id="t1")
        )
        nothing = await r.coordinator.route(
            RouteRequest(query="xyzzy plugh", context=[])
        )
        calls = await r.calls()

    assert found.route == "extract"
    assert "8888" in found.response
    assert (found.model, found.confidence) == (None, None)
    assert "no model is configured" in found.reason
    assert found.sources == ["docs/ports.md#Ports"]
    assert found.usage == Usage()
    assert calls == []
    assert r.events("model_called") == []
    assert len(r.events("query_routed")) == 2
    assert "holds nothing" in nothing.response


async def test_without_a_model_asking_for_a_side_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        with pytest.raises(Unavailable, match="no model is configured"):
            await r.coordinator.route(RouteRequest(query="q", mode=Mode.LOCAL))


async def test_a_failing_side_falls_back_and_both_calls_are_metered(
    tmp_path: Path,
) -> None:
    local = [Rule(status=503, reply="busy")]
    async with rig(tmp_path, local=local, remote=[Rule(reply="yes")]) as r:
        found = await r.coordinator.route(RouteRequest(query="q", task_id="t1"))
        calls = await r.calls()

    assert (found.route, found.fallback_from) == ("remote", "local")
    assert "local did not answer" in found.reason
    assert [(c.deployment, c.ok, c.fallback_from) for c in calls] == [
        ("local", False, None),
        ("remote", True, "local"),
    ]
    # An error status is not billed; what it would have used, nobody said.
    assert (calls[0].cost_usd, calls[0].usage) == (Decimal(0), Usage())
    assert "HTTP 503" in (calls[0].error or "")


async def test_a_call_that_timed_out_has_unknown_cost(tmp_path: Path) -> None:
    local = [Rule(reply="late", delay_s=20)]
    async with rig(
        tmp_path, local=local, remote=[Rule(reply="yes")], timeout_s=0.2
    ) as r:
        await r.coordinator.route(RouteRequest(query="q", task_id="t1"))
        meter = await r.coordinator.meter("t1")

    assert meter.calls == 2
    assert meter.cost_usd is None


async def test_asking_for_a_side_never_leaves_it(tmp_path: Path) -> None:
    local = [Rule(status=503)]
    async with rig(tmp_path, local=local, remote=[Rule(reply="yes")]) as r:
        with pytest.raises(UpstreamError):
            await r.coordinator.route(RouteRequest(query="q", mode=Mode.LOCAL))

    assert r.remote.requests == []


async def test_when_all_fail_each_is_named_and_nothing_is_quoted(
    tmp_path: Path,
) -> None:
    local, remote = [Rule(status=500, reply="A")], [Rule(status=502, reply="B")]
    async with rig(tmp_path, local=local, remote=remote) as r:
        await know(r)
        with pytest.raises(Unavailable, match=r"(?s)local: HTTP 500.*remote: HTTP 502"):
            await r.coordinator.route(RouteRequest(query="dashboard port?"))

    assert r.events("query_routed") == []
    asked = [event["data"]["deployment"] for event in r.events("model_called")]
    assert asked[:2] == ["local", "remote"]  # and again, as such failures may pass


async def test_the_second_iteration_is_escalated(tmp_path: Path) -> None:
    rules = [Rule(reply="ok")]
    async with rig(tmp_path, local=rules, remote=rules) as r:
        routes = [
            (await r.coordinator.route(RouteRequest(query="q", iteration=n))).route
            for n in (1, 2, 3)
        ]

    assert routes == ["local", "remote", "remote"]


async def test_the_default_side_is_a_setting(tmp_path: Path) -> None:
    rules = [Rule(reply="ok")]
    async with rig(tmp_path, local=rules, remote=rules, default=Side.REMOTE) as r:
        found = await r.coordinator.route(RouteRequest(query="q"))

    assert found.route == "remote"


async def test_no_usage_reported_means_unknown_cost(tmp_path: Path) -> None:
    async with rig(tmp_path, remote=[Rule(reply="ok", usage=None)]) as r:
        found = await r.coordinator.route(RouteRequest(query="q", task_id="t"))
        meter = await r.coordinator.meter("t")

    assert (found.usage, found.cost_usd) == (Usage(), None)
    assert meter.cost_usd is None


async def test_the_breaker_opens_after_five_failures_and_probes_once_later(
    tmp_path: Path,
) -> None:
    rules = [Rule(status=500, times=5), Rule(reply="well again")]
    async with rig(tmp_path, remote=rules) as r:
        while r.coordinator.breakers() != {"model:remote": "open"}:
            with pytest.raises(Unavailable):  # each request asks a few times
                await r.coordinator.route(RouteRequest(query="q"))
        with pytest.raises(CircuitOpen):
            await r.coordinator.route(RouteRequest(query="q", task_id="held"))
        asked = len(r.remote.chats)
        held = await r.calls("held")
        down = (await r.coordinator.dependencies())[0]
        r.clock.now += 61
        found = await r.coordinator.route(RouteRequest(query="q"))
        up = (await r.coordinator.dependencies())[0]

    assert asked == 5
    assert held == []
    assert (down.status, up.status) == ("unhealthy", "healthy")
    assert found.response == "well again"
    assert r.coordinator.breakers() == {"model:remote": "closed"}


async def test_our_own_bad_requests_do_not_open_the_breaker(tmp_path: Path) -> None:
    async with rig(tmp_path, remote=[Rule(status=400, reply="context too long")]) as r:
        for _ in range(7):
            with pytest.raises(InvalidInput, match="context too long"):
                await r.coordinator.route(RouteRequest(query="q"))

        assert r.coordinator.breakers() == {"model:remote": "closed"}


async def test_retry_after_is_obeyed(tmp_path: Path) -> None:
    rules = [Rule(status=429, headers={"Retry-After": "30"})]
    async with rig(tmp_path, remote=rules) as r:
        with pytest.raises(RateLimited) as limited:
            await r.coordinator.route(RouteRequest(query="q"))
        with pytest.raises(CircuitOpen) as held:
            await r.coordinator.route(RouteRequest(query="q"))

    assert limited.value.retry_after_s == 30
    assert held.value.retry_after_s == 30
    assert len(r.remote.chats) == 1


async def test_before_the_first_call_nothing_is_claimed(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[], remote=[]) as r:
        seen = await r.coordinator.dependencies()
        stats = await r.coordinator.stats()

    models = [d for d in seen if d.name.startswith("model:")]
    assert [(d.name, d.status, d.last_observed) for d in models] == [
        ("model:local", None, None),
        ("model:remote", None, None),
    ]
    assert (stats["routes"], stats["calls"], stats["calibration"]) == ({}, [], None)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (RouteRequest(query="  \n"), "query"),
        (RouteRequest(query="q", iteration=0), "iteration"),
        (RouteRequest(query="q", max_tokens=0), "max_tokens"),
    ],
)
async def test_a_bad_request_names_the_field(
    tmp_path: Path, request_: RouteRequest, field: str
) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")]) as r:
        with pytest.raises(InvalidInput) as caught:
            await r.coordinator.route(request_)

    assert caught.value.errors[0].field == field
    assert r.local.requests == []


async def test_a_missing_knowledge_base_degrades_an_answer(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")]) as r:
        r.aidb.down = True
        found = await r.coordinator.route(RouteRequest(query="dashboard port"))

    assert found.response == "ok"
    assert found.context_ids == []
    assert found.degraded == ["knowledge base: the database does not answer"]


async def test_without_model_and_knowledge_base_there_is_no_answer(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as r:
        r.aidb.down = True
        with pytest.raises(Unavailable, match="the database"):
            await r.coordinator.route(RouteRequest(query="q"))
