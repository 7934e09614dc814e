import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.faces.shell import Served, SmallNestor

from nestor import __version__
from nestor.model.health import Dependency, HealthStatus
from nestor.telemetry import metrics
from nestor.web.health import Health, judge, resident_bytes

AT = datetime(2026, 1, 1, tzinfo=UTC)


def seen(
    name: str,
    status: HealthStatus | None,
    *,
    required: bool = True,
    observed: bool = True,
) -> Dependency:
    at = AT if observed else None
    return Dependency(name=name, status=status, required=required, last_observed=at)


GOOD, WEAK, BAD = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY


@pytest.mark.parametrize(
    ("dependencies", "status"),
    [
        ([], GOOD),
        ([seen("a", GOOD), seen("b", GOOD, required=False)], GOOD),
        ([seen("a", GOOD), seen("b", BAD, required=False)], WEAK),
        ([seen("a", GOOD), seen("b", None, required=False, observed=False)], WEAK),
        ([seen("a", WEAK)], WEAK),
        ([seen("a", BAD), seen("b", GOOD)], BAD),
        ([seen("a", None, observed=False)], BAD),
        ([seen("a", GOOD, observed=False)], BAD),
    ],
)
def test_the_whole_is_as_well_as_its_worst_and_unobserved_is_not_well(
    dependencies: list[Dependency], status: HealthStatus
) -> None:
    assert judge(dependencies)[0] is status


async def test_each_reply_has_the_shape_of_the_contract(shell: Served) -> None:
    for check in ("live", "ready", "startup", "detailed"):
        reply = await shell.call("GET", f"/health/{check}")
        assert reply.status == 200
        body = reply.json
        assert set(body) == {
            "status", "check_type", "message", "details", "timestamp", "duration_ms",
        }  # fmt: skip
        assert body["check_type"] == check
        assert body["status"] == "healthy"
        assert datetime.fromisoformat(body["timestamp"]).utcoffset() is not None


async def test_ready_is_503_when_a_required_dependency_is_down_or_unobserved(
    shell: Served,
) -> None:
    for state in (seen("store", BAD), seen("store", None, observed=False)):
        shell.nestor.dependencies = [state]
        reply = await shell.call("GET", "/health/ready", key=None)
        assert reply.status == 503
        assert reply.json["status"] == "unhealthy"
        assert "store" in reply.json["message"]
    shell.nestor.dependencies = [seen("store", BAD, required=False)]
    reply = await shell.call("GET", "/health/ready", key=None)
    assert (reply.status, reply.json["status"]) == (200, "degraded")


async def test_ready_names_no_reasons_to_strangers(shell: Served) -> None:
    secret = Dependency(
        name="store",
        status=BAD,
        message="/home/me/secret",
        required=True,
        last_observed=AT,
    )
    shell.nestor.dependencies = [secret]
    assert b"secret" not in (await shell.call("GET", "/health/ready", key=None)).body
    detailed = await shell.call("GET", "/health/detailed")
    assert b"/home/me/secret" in detailed.body


async def test_startup_is_503_until_the_layer_was_started(nestor: SmallNestor) -> None:
    health = Health("ralph", lambda: asyncio.sleep(0, nestor.dependencies))
    assert health.startup().status is BAD
    assert (await health.ready()).status is BAD
    health.started = True
    assert health.startup().status is GOOD
    assert (await health.ready()).status is GOOD


async def test_ready_is_unhealthy_at_once_when_draining() -> None:
    health = Health("ralph", lambda: asyncio.sleep(0, []))
    health.started = health.draining = True
    ready = await health.ready()
    assert (ready.status, ready.message) == (BAD, "draining")
    assert (await health.detailed()).status is BAD
    assert health.live().status is GOOD


async def test_live_looks_at_nothing() -> None:
    looked = []

    async def look() -> list[Dependency]:
        looked.append(1)
        return []

    health = Health("ralph", look)
    health.started = True
    assert health.live().status is GOOD
    assert health.startup().status is GOOD
    assert looked == []
    await health.ready()
    assert looked == [1]


async def test_a_layer_that_fails_to_tell_is_unhealthy_not_silent() -> None:
    async def fail() -> list[Dependency]:
        raise RuntimeError("boom")

    health = Health("ralph", fail)
    health.started = True
    report = await health.ready()
    assert report.status is BAD
    assert "boom" not in report.message


async def test_detailed_tells_when_each_thing_was_last_observed(shell: Served) -> None:
    shell.nestor.dependencies = [
        seen("store", GOOD),
        seen("index", None, required=False, observed=False),
    ]
    metrics.BREAKER_STATE.labels("test-breaker").set(2)
    details = (await shell.call("GET", "/health/detailed")).json["details"]
    found = {d["name"]: d for d in details["dependencies"]}
    assert found["store"]["last_observed"] == "2026-01-01T00:00:00Z"
    assert found["index"]["last_observed"] is None
    assert found["index"]["status"] is None
    assert details["breakers"]["test-breaker"] == "open"
    assert details["version"] == __version__
    assert details["uptime_s"] >= 0
    assert details["memory_bytes"] > 10_000_000


async def test_uptime_and_duration_follow_the_clock() -> None:
    ticks = iter([10.0, 20.0, 25.0, 25.5])
    health = Health(
        "ralph",
        lambda: asyncio.sleep(0, []),
        clock=lambda: AT,
        timer=lambda: next(ticks),
    )
    health.started = True
    report = await health.detailed()
    assert report.details["uptime_s"] == 15.0
    assert report.duration_ms == 5500.0
    assert report.timestamp == AT
    assert report.details["breakers"] is None


def test_memory_is_what_the_kernel_says() -> None:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    told = resident_bytes()
    assert told is not None
    assert abs(told - int(line.split()[1]) * 1024) < 5_000_000


async def test_metrics_are_served_as_prometheus_text(shell: Served) -> None:
    await shell.call("GET", "/health/live")
    reply = await shell.call("GET", "/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    line = 'nestor_http_requests_total{layer="coordinator",method="GET",status="200"}'
    assert line in reply.body.decode()


async def test_the_schema_and_the_docs_describe_the_routes(shell: Served) -> None:
    schema = await shell.call("GET", "/schema/openapi.json")
    assert schema.status == 200
    assert {"/things", "/v1/models", "/health/ready"} <= set(schema.json["paths"])
    docs = await shell.call("GET", "/docs")
    assert docs.headers["Content-Type"].startswith("text/html")
    assert b"/schema/openapi.json" in docs.body
    assert b"<script" not in docs.body
