"""Where the contract tests of sandboxes run commands, in each kind of sandbox."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nestor.backends.sandbox import BubblewrapSandbox, LandlockSandbox, NoSandbox
from nestor.ports.sandbox import Mount, Sandbox, SandboxRun


class Place:
    """A data folder with one task, and a short way to make a run in it."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.task = self.home / "tasks" / "t1"
        self.tree = self.task / "tree"
        self.run_dir = self.task / "run"
        self.tree.mkdir(parents=True)

    def run(self, *argv: str, **more: Any) -> SandboxRun:
        mounts = [Mount(host=self.tree, inside="/workspace", writable=True)]
        values: dict[str, Any] = {
            "name": "t1/agent-1",
            "argv": argv,
            "cwd": "/workspace",
            "mounts": mounts,
            "timeout_s": 30,
            "run_dir": self.run_dir,
        }
        return SandboxRun(**(values | more))

    def sh(self, line: str, **more: Any) -> SandboxRun:
        return self.run("/bin/sh", "-c", line, **more)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


Make = Callable[..., Sandbox]


def _maker(kind: Make, place: Place) -> Make:
    def build(coordinator_url: str, **more: Any) -> Sandbox:
        return kind(coordinator_url=coordinator_url, home=place.home, **more)

    return build


@pytest.fixture(params=[BubblewrapSandbox, LandlockSandbox, NoSandbox])
def make(request: pytest.FixtureRequest, place: Place) -> Make:
    """Make a sandbox of each kind."""
    return _maker(request.param, place)


@pytest.fixture(params=[BubblewrapSandbox, LandlockSandbox])
def isolating(request: pytest.FixtureRequest, place: Place) -> Make:
    """Make a sandbox of each kind that isolates."""
    return _maker(request.param, place)


@pytest.fixture
def sandbox(make: Make) -> Sandbox:
    return make("http://127.0.0.1:9")


@asynccontextmanager
async def coordinator() -> AsyncIterator[tuple[str, list[web.BaseRequest]]]:
    """A model server that keeps what it was sent and streams an answer in two parts."""
    seen: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request)
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await response.write(b"data: two\n\n")
        return response

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        await runner.cleanup()


async def appears(path: Path, wait_s: float = 10) -> None:
    deadline = time.monotonic() + wait_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        await asyncio.sleep(0.02)


async def assert_still(path: Path) -> None:
    """Nobody writes to the file any more."""
    size = path.stat().st_size
    await asyncio.sleep(0.4)
    assert path.stat().st_size == size
