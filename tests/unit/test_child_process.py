"""``backends.child_process`` on both event loops, with and without pidfds."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nestor.backends import child_process
from nestor.backends.child_process import ChildProcess
from nestor.web.serve import event_loop

Body = Callable[[], Awaitable[None]]
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": event_loop}


@pytest.fixture(params=[*LOOPS, "no pidfd"])
def on_a_loop(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Body], None]:
    if request.param == "no pidfd":

        def refused(pid: int, flags: int = 0) -> int:
            raise OSError

        monkeypatch.setattr(os, "pidfd_open", refused)

    def run(body: Body) -> None:
        async def main() -> None:
            async with asyncio.timeout(60):
                await body()

        with asyncio.Runner(loop_factory=LOOPS.get(request.param)) as runner:
            runner.run(main())

    return run


async def shell(line: str) -> ChildProcess:
    return await child_process.start("/bin/sh", "-c", line, env={"A": "b"}, cwd="/")


def test_it_is_fed_read_and_waited_for(on_a_loop: Callable[[Body], None]) -> None:
    async def body() -> None:
        process = await shell("pwd; echo $A; cat; echo no >&2; exit 3")
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.returncode is None
        assert await process.stdout.readline() == b"/\n"
        process.stdin.write(b"x" * 1_000_000)
        drained = asyncio.create_task(process.stdin.drain())
        assert await process.stdout.readexactly(1_000_002) == b"b\n" + b"x" * 1_000_000
        await drained
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.stdout.read() == b""
        assert await process.stderr.read() == b"no\n"
        assert await process.wait() == 3
        assert await process.wait() == 3
        assert process.returncode == 3
        with pytest.raises(ProcessLookupError):
            process.kill()

    on_a_loop(body)


def test_who_stops_waiting_disturbs_nobody(on_a_loop: Callable[[Body], None]) -> None:
    async def body() -> None:
        process = await shell("read line; exit 4")
        impatient = asyncio.create_task(process.wait())
        patient = asyncio.create_task(process.wait())
        await asyncio.sleep(0)
        impatient.cancel()
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        assert await patient == 4
        assert impatient.cancelled()
        process.close()

    on_a_loop(body)


def test_it_leads_a_session_that_can_be_ended(
    on_a_loop: Callable[[Body], None],
) -> None:
    async def body() -> None:
        process = await shell("sleep 600 & echo $!; wait")
        assert process.stdout is not None
        other = int(await process.stdout.readline())
        assert os.getsid(other) == process.pid
        os.killpg(process.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        assert await process.stdout.read() == b""
        process.close()

    on_a_loop(body)


def test_pipes_that_others_hold_are_let_go(
    on_a_loop: Callable[[Body], None],
) -> None:
    async def body() -> None:
        process = await shell("sleep 600 & echo $!")
        assert process.stdout is not None
        other = int(await process.stdout.readline())
        assert await process.wait() == 0
        process.close()
        assert await process.stdout.read() == b""
        os.kill(other, signal.SIGKILL)

    on_a_loop(body)


def test_what_cannot_be_started_is_an_error_and_leaves_nothing(
    on_a_loop: Callable[[Body], None], tmp_path: Path
) -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def body() -> None:
        process = await shell("true")
        await process.wait()
        process.close()
        await asyncio.sleep(0.05)
        before = handles()
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                await child_process.start(str(tmp_path / "no"), env={}, cwd="/")
        assert handles() == before

    on_a_loop(body)


def test_no_file_of_another_thread_is_closed(
    on_a_loop: Callable[[Body], None],
) -> None:
    """A number that is closed twice belongs to somebody else the second time."""
    over = threading.Event()

    def with_files() -> None:
        while not over.is_set():
            handles = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
            for handle in handles:
                os.fstat(handle)
            for handle in handles:
                os.close(handle)

    async def body() -> None:
        threads = [asyncio.to_thread(with_files) for _ in range(3)]
        others = asyncio.gather(*threads)
        try:
            for _ in range(100):
                process = await shell("exit 0")
                assert process.stdout is not None
                assert await process.stdout.read() == b""
                assert await process.wait() == 0
                process.close()
        finally:
            over.set()
            await others

    on_a_loop(body)


def test_no_handle_and_no_zombie_is_left(on_a_loop: Callable[[Body], None]) -> None:
    async def body() -> None:
        pids = []
        for count in (3, 20):
            before = len(list(Path("/proc/self/fd").iterdir()))
            for _ in range(count):
                process = await shell("exit 0")
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdin.close()
                assert await process.stdout.read() == b""
                assert await process.stderr.read() == b""
                assert await process.wait() == 0
                pids.append(process.pid)
        await asyncio.sleep(0.05)
        # The first rounds make what stays, such as threads.
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]

    on_a_loop(body)
    assert "uvloop" in sys.modules
