"""No command outlives its worker, its guardian or its limits: real processes, real kills."""

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nestor.backends.sandbox import BubblewrapSandbox, NoSandbox, processes
from nestor.errors import SandboxError
from nestor.ports.sandbox import Mount, Sandbox, SandboxRun

ROOT = Path(__file__).parents[2]
DAEMONS = """
set -e
setsid -f sh -c 'setsid -f sleep 3601'
(sleep 3602 &)
nohup sleep 3603 >/dev/null 2>&1 &
echo up > up
sleep 3604
"""
"""A tree that does what daemons do to get away: sessions, double forks, no hang-up."""

PR_SET_CHILD_SUBREAPER = 36
prctl = ctypes.CDLL(None).prctl

Seen = dict[int, tuple[int, str]]


class Bench:
    """A folder, a kind of sandbox, and worker processes that use it."""

    def __init__(self, root: Path, kind: str) -> None:
        self.kind = kind
        self.home = root / "home"
        self.tree = self.home / "tasks" / "t" / "tree"
        self.run_dir = self.home / "tasks" / "t" / "run"
        self.tree.mkdir(parents=True)
        self.workers: list[asyncio.subprocess.Process] = []

    @property
    def sandbox(self) -> Sandbox:
        make = BubblewrapSandbox if self.kind == "bubblewrap" else NoSandbox
        return make(coordinator_url="http://127.0.0.1:9", home=self.home)

    def run(self, line: str, **more: Any) -> SandboxRun:
        mount = Mount(host=self.tree, inside="/workspace", writable=True)
        values: dict[str, Any] = {
            "name": "t",
            "argv": ["/bin/sh", "-c", line],
            "cwd": "/workspace",
            "mounts": [mount],
            "timeout_s": 60,
            "run_dir": self.run_dir,
        }
        return SandboxRun(**(values | more))

    async def worker(self, line: str, **more: Any) -> asyncio.subprocess.Process:
        run = msgspec.json.encode(self.run(line, **more), enc_hook=str).decode()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.system.sandbox_worker",
            self.kind,
            str(self.home),
            run,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.workers.append(process)
        return process

    async def up(self, wait_s: float = 15) -> None:
        deadline = time.monotonic() + wait_s
        while not (self.tree / "up").exists():
            assert time.monotonic() < deadline, "the command did not start"
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        for worker in self.workers:
            if worker.returncode is None:
                worker.kill()
            await worker.communicate()
        await self.sandbox.kill(self.run_dir)


@pytest.fixture(params=["bubblewrap", "none"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, request.param)
    others = below(os.getpid())  # servers that tests share
    # Whoever loses every parent comes to this process, where a test can find it.
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield bench
    await bench.close()
    orphans = new_below(os.getpid(), others)
    try:
        await gone(orphans, within_s=5)
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        for pid, who in orphans.items():
            if processes.alive(who):
                os.kill(pid, signal.SIGKILL)
        reap()


def below(pid: int) -> Seen:
    found: Seen = {}
    for child in processes.descendants(pid):
        try:
            found[child] = processes.identity(child)
        except OSError:
            continue
    return found


def new_below(pid: int, others: Seen) -> Seen:
    return {one: who for one, who in below(pid).items() if others.get(one) != who}


async def gone(seen: Seen, *, within_s: float) -> float:
    """Wait until none of these processes is left; returns how long it took."""
    started = time.monotonic()
    while left := [pid for pid, who in seen.items() if processes.alive(who)]:
        waited = time.monotonic() - started
        assert waited < within_s, (
            f"{len(left)} of {len(seen)} alive after {waited:.1f} s"
        )
        await asyncio.sleep(0.02)
    return time.monotonic() - started


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def guardian_pid(seen: Seen) -> int:
    """The guardian itself: its keeper has the same command line and comes after it."""
    for pid in sorted(seen):
        if b"guardian.py" in command(pid):
            return pid
    raise AssertionError("no guardian")


async def test_a_killed_worker_takes_every_process_with_it(bench: Bench) -> None:
    worker = await bench.worker(DAEMONS)
    await bench.up()
    seen = below(worker.pid)
    assert len(seen) >= 7, seen

    worker.send_signal(signal.SIGKILL)

    took = await gone(seen, within_s=10)
    assert took < 3, "end of file is noticed at once, not by the lease"


async def test_a_stopped_worker_loses_its_command_by_the_lease(bench: Bench) -> None:
    worker = await bench.worker(DAEMONS)
    await bench.up()
    seen = below(worker.pid)

    worker.send_signal(signal.SIGSTOP)
    try:
        took = await gone(
            {pid: who for pid, who in seen.items() if pid != guardian_pid(seen)},
            within_s=10,
        )
    finally:
        worker.send_signal(signal.SIGCONT)

    assert took > 5, "a short pause must not end a command"
    out, err = await worker.communicate()
    assert b'"cancelled":true' in out, err


async def test_a_killed_guardian_takes_every_process_with_it(bench: Bench) -> None:
    worker = await bench.worker(DAEMONS)
    await bench.up()
    seen = below(worker.pid)

    os.kill(guardian_pid(seen), signal.SIGKILL)

    await gone(seen, within_s=5)
    _, err = await worker.communicate()
    assert b"SandboxError" in err
    assert b"was killed" in err


async def test_a_bubblewrap_killed_before_it_was_ready_leaves_nobody(
    tmp_path: Path,
) -> None:
    """Its child arms the parent-death signal late; the keeper covers the time before."""
    bench = Bench(tmp_path, "bubblewrap")
    others = below(os.getpid())
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        for round_ in range(15):
            worker = await bench.worker("sleep 60")
            # ``--args``: the guardian's bubblewrap, not the probe before it.
            while b"--args" not in b"".join(map(command, seen := below(worker.pid))):
                await asyncio.sleep(0)
            await asyncio.sleep(round_ * 0.0004)
            os.kill(guardian_pid(seen), signal.SIGKILL)
            await worker.communicate()
            await gone(new_below(os.getpid(), others), within_s=5)
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        await bench.close()
        reap()


async def test_a_terminated_guardian_writes_its_result_after_all_are_gone(
    bench: Bench,
) -> None:
    worker = await bench.worker(DAEMONS)
    await bench.up()
    seen = below(worker.pid)

    os.kill(guardian_pid(seen), signal.SIGTERM)

    while not (bench.run_dir / "result.json").exists():
        await asyncio.sleep(0.001)
    left = [pid for pid, who in seen.items() if processes.alive(who)]
    assert left in ([], [guardian_pid(seen)] if left else [])
    await worker.communicate()


async def test_a_new_worker_waits_for_what_a_killed_one_left(bench: Bench) -> None:
    worker = await bench.worker(DAEMONS)
    await bench.up()
    seen = below(worker.pid)
    worker.send_signal(signal.SIGKILL)

    result = await bench.sandbox.run(bench.run("echo second"))

    assert result.output == "second\n"
    assert not [pid for pid, who in seen.items() if processes.alive(who)]


async def test_a_slow_worker_still_gets_its_own_result(bench: Bench) -> None:
    worker = await bench.worker("echo up > up; sleep 1; echo first")
    await bench.up()
    worker.send_signal(signal.SIGSTOP)
    second = asyncio.create_task(bench.sandbox.run(bench.run("echo second")))
    await asyncio.sleep(3)
    worker.send_signal(signal.SIGCONT)

    out, err = await worker.communicate()

    assert b'"output":"first\\n"' in out, err
    assert (await second).output == "second\n"


async def test_a_run_beside_a_live_one_is_refused_after_ten_seconds(
    bench: Bench,
) -> None:
    worker = await bench.worker(DAEMONS)
    await bench.up()
    started = time.monotonic()

    with pytest.raises(SandboxError, match="earlier run"):
        await bench.sandbox.run(bench.run("touch second"))

    assert 9 < time.monotonic() - started < 14
    assert not (bench.tree / "second").exists()
    assert worker.returncode is None


async def test_a_flood_of_output_is_bounded_on_disk_and_in_memory(bench: Bench) -> None:
    limit = 1_000_000
    line = "echo up > up; head -c 1073741824 /dev/zero | tr '\\0' x; echo; echo end"
    worker = await bench.worker(line, output_limit_bytes=limit)
    await bench.up()
    pid = guardian_pid(below(worker.pid))
    disk = memory = 0
    while (bench.run_dir / "result.json").exists() is False:
        disk = max(disk, sum(size(p) for p in bench.run_dir.glob("output*")))
        memory = max(memory, resident(pid))
        await asyncio.sleep(0.01)
    out, err = await worker.communicate()

    assert disk <= limit
    assert 0 < memory < 40 * 1024 * 1024
    assert b'"truncated":true' in out, err
    assert b"\\nend\\n" in out


@pytest.mark.parametrize("round_", range(5))
async def test_nothing_survives_a_kill_at_any_instant(
    bench: Bench, round_: int
) -> None:
    instant = random.Random(round_ * 7919 + len(bench.kind)).uniform(0, 0.5)
    worker = await bench.worker(DAEMONS)
    # From the first child on: before it there is nothing to outlive anybody.
    while not below(worker.pid) and worker.returncode is None:
        await asyncio.sleep(0.005)
    await asyncio.sleep(instant)
    seen = below(worker.pid)
    victim = guardian_pid(seen) if round_ % 2 else worker.pid

    os.kill(victim, signal.SIGKILL)

    await gone(seen, within_s=10)
    await bench.sandbox.kill(bench.run_dir)
    result = await bench.sandbox.run(bench.run("echo next"))
    assert result.output == "next\n"
    assert not survivors(bench.tree)


def survivors(tree: Path) -> list[int]:
    """Processes that still stand in the workspace, whoever their parent is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == tree:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (FileNotFoundError, IndexError):
        return 0
