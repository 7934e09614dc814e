"""The proxy as its users try it, with real ``curl``, on ``nestor up``."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers import redis_server
from tests.servers.redis_server import PASSWORD, RedisServer
from tests.system.child import Child
from tests.system.workbench import processes

from nestor.settings import Settings

pytestmark = pytest.mark.heavy

BURST = r"""
for i in {1..100}; do
  curl -s -o /dev/null -w "%{http_code}\n" http://localhost:PORT/aidb/health/live &
done | sort | uniq -c
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """``nestor up`` in a fresh window."""
    with Child(tmp_path / "home") as one:
        one.start()
        yield one


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path / "redis") as server:
        yield server


def shell(child: Child, script: str) -> str:
    """Run a line of shell, its port replaced, as a user would."""
    script = script.replace("PORT", str(child.port("dashboard")))
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def counted(child: Child) -> dict[str, int]:
    lines = [line.split() for line in shell(child, BURST).splitlines()]
    return {status: int(count) for count, status in lines}


def family(pid: int) -> set[int]:
    """Pids of a process and of all below it."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for below in (task / "children").read_text().split():
            found |= family(int(below))
    return found


def dashboard_leans_on(child: Child) -> dict[str, dict[str, str]]:
    stack = child.stack()
    assert stack is not None
    told = stack.call("dashboard", "GET", "/health/detailed")
    return {part["name"]: part for part in told["details"]["dependencies"]}


def test_four_ways_to_ask_give_what_they_should(child: Child) -> None:
    assert child.process is not None
    before = family(child.process.pid)
    # 1: normal access.
    told = json.loads(shell(child, "curl http://localhost:PORT/aidb/health/live"))
    assert told["status"] == "healthy"
    # 2: path traversal attempt; as curl sends it, and as it was meant.
    status = '-s -o /dev/null -w "%{http_code}"'
    traversal = f'curl {status} "http://localhost:PORT/aidb/../../etc/passwd"'
    assert shell(child, traversal) == "403"
    assert shell(child, traversal.replace("curl", "curl --path-as-is")) == "403"
    # 3: command injection attempt.
    injection = f'curl {status} "http://localhost:PORT/aidb/health;rm%20-rf%20/"'
    assert shell(child, injection) in {"403", "404"}
    # 4: process count.
    assert processes("podman exec") == []
    assert family(child.process.pid) == before
    log = child.log.read_text()
    assert "root:" not in log
    assert "Traceback" not in log


def test_a_burst_gives_sixty_and_forty(child: Child) -> None:
    assert counted(child) == {"200": 60, "429": 40}
    stack = child.stack()
    assert stack is not None
    # The layer itself serves on, and says that all is well.
    assert stack.call("dashboard", "GET", "/health/ready")["status"] == "healthy"


def test_all_five_addresses_give_what_aidb_itself_gives(child: Child) -> None:
    key = (child.home / "api-key").read_text().strip()
    for path, field in {
        "health/live": "live",
        "health/ready": "ready",
        "health/startup": "startup",
        "health/detailed": "detailed",
    }.items():
        keyed = f'-H "Authorization: Bearer {key}"' if field == "detailed" else ""
        told = json.loads(shell(child, f"curl -s {keyed} localhost:PORT/aidb/{path}"))
        assert (told["check_type"], told["status"]) == (field, "healthy")
    assert told["details"]["layer"] == "aidb"
    scraped = shell(child, f'curl -s -H "X-API-Key: {key}" localhost:PORT/aidb/metrics')
    assert "# TYPE nestor_http_requests_total counter" in scraped
    kind = shell(
        child,
        f'curl -s -o /dev/null -w "%{{content_type}}" -H "X-API-Key: {key}"'
        " localhost:PORT/aidb/metrics",
    )
    assert kind.startswith("text/plain; version=")


def test_two_stacks_on_one_redis_share_the_sixty(
    tmp_path: Path, redis: RedisServer
) -> None:
    with (
        Child(tmp_path / "one", redis_url=redis.url) as one,
        Child(tmp_path / "two", redis_url=redis.url) as two,
    ):
        one.start()
        two.start()
        assert dashboard_leans_on(one)["dashboard: redis"]["status"] == "healthy"
        single = BURST.replace("{1..100}", "{1..40}").replace("/live &", "/live")
        both = shell(one, single) + shell(two, single)
        lines = [line.split() for line in both.splitlines()]
        counts = [int(count) for count, status in lines if status == "200"]
        assert sum(counts) == 60
        # The end of Redis costs nobody an error, and is told.
        redis.stop()
        assert set(counted(two)) == {"200", "429"}
        told = dashboard_leans_on(two)["dashboard: redis"]
        assert told["status"] == "degraded"
        assert "this process alone" in told["message"]
        stack = two.stack()
        assert stack is not None
        assert stack.call("dashboard", "GET", "/health/ready")["status"] == "degraded"
        redis.start()
        deadline = time.monotonic() + 20
        while dashboard_leans_on(two)["dashboard: redis"]["status"] != "healthy":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for child in (one, two):
            assert child.process is not None
            child.process.terminate()
            assert child.process.wait(30) == 0
            said = child.log.read_text()
            assert PASSWORD not in said
            assert "Traceback" not in said
        assert redis.clients() == 0


def doctor_of(child: Child) -> dict[str, dict[str, str]]:
    """What ``nestor doctor`` finds, by what it looked at."""
    done = subprocess.run(
        [sys.executable, "-m", "nestor.cli", "doctor", "--json"],
        env=Settings.environment_for({"home": child.home}),
        capture_output=True,
        check=False,
        timeout=60,
    )
    return {found["what"]: found for found in json.loads(done.stdout)["findings"]}


def test_it_starts_without_its_redis_and_says_so(tmp_path: Path) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:1/0"
    with Child(tmp_path / "home", redis_url=url) as child:
        child.start()
        told = dashboard_leans_on(child)["dashboard: redis"]
        assert told["status"] == "degraded"
        assert "Redis does not answer" in told["message"]
        assert "redis" in doctor_of(child)["layer dashboard"]["detail"]
        assert counted(child) == {"200": 60, "429": 40}
        assert PASSWORD not in child.log.read_text()
