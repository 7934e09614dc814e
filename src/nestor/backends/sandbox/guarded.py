"""Runs a command under its guardian: what both sandboxes have in common."""

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from nestor.backends import child_process
from nestor.backends.child_process import ChildProcess
from nestor.backends.sandbox import guardian, processes
from nestor.backends.sandbox.machine import usual_memory
from nestor.errors import SandboxError
from nestor.ports.sandbox import DISK_BYTES, SandboxResult, SandboxRun

T = TypeVar("T")
HERE = Path(__file__).parent
BRIDGE = HERE / "bridge.py"
PYTHON = os.path.realpath(sys.executable)
"""The interpreter itself: a virtual environment's link does not exist inside."""
RENEW_S = 1.0
GONE_S = 20.0
NOFILE = 4096
FSIZE = 4 * 1024**3
"""Largest file a command may write, in bytes."""
LIMITS = frozenset({"memory", "disk", "processes"})


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How a sandbox wants the launcher started."""

    prefix: Sequence[str | dict[str, object]] = ()
    """Argv in front of it; ``{"data": text}`` and ``{"info": true}`` become descriptors."""
    bridge: str
    argv: Sequence[str]
    cwd: str
    env: dict[str, str]
    stdin: bytes
    sandboxed: bool
    namespaced: bool = False
    """Whether a pid namespace is made, whose init the launcher names on ``info``."""
    nproc: int | None = None
    ports: Sequence[tuple[int, str]] = ()
    """Loopback ports inside, each with the Unix socket inside that it leads to."""
    tmpfs: Sequence[str] = ()
    """Places inside whose files are memory."""
    writable: Sequence[str] = ()
    """Host paths whose size the disk limit is on."""
    cgroups: bool = True
    """Whether the kernel may be asked to hold the memory limit."""
    slirp4netns: str | None = None
    unreachable: Sequence[str] = ()
    """Networks that slirp4netns may not lead to."""
    reachable: Sequence[str] = ()
    """Networks in these that it may."""


class _End(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    why: str
    exit_code: int | None
    signal: int | None
    truncated: bool
    duration_s: float


async def run_guarded(run: SandboxRun, launch: Launch) -> SandboxResult:
    """Start a guardian for one command and wait for the end of both.

    The lease is renewed from this event loop, so a worker whose loop hangs for 8 s
    loses its command. Cancellation kills, waits until all is gone, and re-raises.
    """
    make_private(run.run_dir)
    process = await child_process.start(
        PYTHON, "-I", "-S", str(HERE / "guardian.py"), env={}, cwd="/"
    )
    ending = asyncio.create_task(_guard(process, run, launch))
    try:
        return await asyncio.shield(ending)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        # Whether it ended well no longer matters; that nothing is left does.
        with contextlib.suppress(SandboxError):
            await _to_the_end(ending)
        await _to_the_end(asyncio.create_task(wait_gone(run.run_dir, process.pid)))
        raise


async def _guard(
    process: ChildProcess, run: SandboxRun, launch: Launch
) -> SandboxResult:
    """Hand the job over, keep the lease, and read the result while the folder is ours."""
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None
    assert stdout is not None
    assert stderr is not None
    token = secrets.token_hex(16)
    lease = asyncio.create_task(_keep_alive(stdin, _job(run, launch, token)))
    result = None
    try:
        if await stdout.readline() == b"done\n":
            sandboxed = launch.sandboxed
            result = await asyncio.to_thread(_result, run, token, sandboxed=sandboxed)
    finally:
        lease.cancel()
        stdin.close()
        told = (await stderr.read())[-2000:].decode(errors="replace").strip()
        code = await process.wait()
        with contextlib.suppress(ConnectionError):
            await stdin.wait_closed()
        process.close()
    if result is None:
        await _explain(run, process.pid, code, told)
    return result


async def kill_guarded(run_dir: Path) -> None:
    """Kill what runs in ``run_dir``, from any process, and wait until it is gone."""
    signals = [signal.SIGTERM] * 20 + [signal.SIGKILL] * 5
    for number in signals:
        if not _locked(run_dir):
            break
        _signal_guardian(run_dir, number)
        for _ in range(50):
            if not _locked(run_dir):
                break
            await asyncio.sleep(0.01)
    await wait_gone(run_dir)


async def wait_gone(run_dir: Path, pid: int | None = None) -> None:
    """Wait until nothing is left of a run, or of the one that guardian ``pid`` had.

    Raises ``SandboxError`` after 20 s.
    """
    for _ in range(int(GONE_S / 0.05)):
        if pid is not None and not _is_of(run_dir, pid):
            # A later run took the folder, which it does only once nothing was left.
            return
        if not _locked(run_dir) and not processes.alive(_about(run_dir).get("init")):
            return
        await asyncio.sleep(0.05)
    raise SandboxError(f"processes of {run_dir} are still alive after {GONE_S:.0f} s")


async def _keep_alive(stdin: asyncio.StreamWriter, job: bytes) -> None:
    stdin.write(job)
    with contextlib.suppress(ConnectionError):
        await stdin.drain()
        while True:
            stdin.write(b".")
            await stdin.drain()
            await asyncio.sleep(RENEW_S)


async def _to_the_end(task: asyncio.Task[T]) -> T:
    """Wait for a task however often the waiter is cancelled."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()


async def _explain(run: SandboxRun, pid: int, code: int, told: str) -> NoReturn:
    """Raise what a guardian's own failure means."""
    if code == guardian.BUSY:
        raise SandboxError(
            f"{run.name}: an earlier run in {run.run_dir} is still alive"
        )
    await wait_gone(run.run_dir, pid)
    if code == -signal.SIGKILL:
        told = "it was killed, and its command with it"
    raise SandboxError(f"{run.name}: the guardian ended with {code}: {told}")


def _job(run: SandboxRun, launch: Launch, token: str) -> bytes:
    inner = {
        "argv": list(launch.argv),
        "cwd": launch.cwd,
        "env": launch.env,
        "ports": list(launch.ports),
        "limits": {
            "NPROC": launch.nproc,
            "NOFILE": NOFILE,
            "FSIZE": FSIZE,
            "CORE": 0,
        },
    }
    job = {
        "token": token,
        "run_dir": str(run.run_dir.resolve()),
        "prefix": list(launch.prefix),
        "launcher": [PYTHON, "-I", "-S", launch.bridge],
        "inner": inner,
        "stdin": base64.b64encode(launch.stdin).decode(),
        "namespaced": launch.namespaced,
        "slirp4netns": launch.slirp4netns,
        "unreachable": list(launch.unreachable),
        "reachable": list(launch.reachable),
        "timeout_s": run.timeout_s,
        "processes": run.processes,
        "memory_bytes": run.memory_bytes or usual_memory(),
        "cgroup": launch.cgroups,
        "tmpfs": list(launch.tmpfs),
        "writable": list(launch.writable),
        "disk_bytes": run.disk_bytes or DISK_BYTES,
        "disk_growth": run.disk_bytes is None,
        "output_limit_bytes": run.output_limit_bytes,
    }
    # ASCII with escapes: a lone surrogate in an argument must not stop the encoder.
    return json.dumps(job).encode() + b"\n"


def _result(run: SandboxRun, token: str, *, sandboxed: bool) -> SandboxResult:
    parts = []
    for name in ("output.old", "output"):
        with contextlib.suppress(FileNotFoundError):
            parts.append((run.run_dir / name).read_bytes())
    output = b"".join(parts)[-run.output_limit_bytes :].decode(errors="replace")
    # Read last: a later run removes it first, so if it is ours, so is the output.
    try:
        raw = (run.run_dir / "result.json").read_bytes()
        end = msgspec.json.decode(raw, type=_End)
    except (OSError, msgspec.DecodeError) as error:
        raise SandboxError(f"{run.name}: the result was lost: {error}") from error
    if end.token != token:
        raise SandboxError(f"{run.name}: a later run took {run.run_dir}")
    if end.why == "failed":
        raise SandboxError(f"{run.name}: cannot start: {output.strip()[-500:]}")
    return SandboxResult(
        exit_code=end.exit_code,
        signal=end.signal,
        timed_out=end.why == "timeout",
        cancelled=end.why in {"sigterm", "lease"},
        output=output,
        truncated=end.truncated,
        duration_s=end.duration_s,
        sandboxed=sandboxed,
        limit=end.why if end.why in LIMITS else None,
    )


def make_private(run_dir: Path) -> None:
    """Make a folder that only we may enter. Raises ``SandboxError`` when that fails."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        run_dir.chmod(0o700)
    except OSError as error:
        raise SandboxError(f"run folder {run_dir}: {error.strerror}") from error


def _locked(run_dir: Path) -> bool:
    """Tell whether a guardian (or its launcher) holds the folder; takes nothing."""
    try:
        fd = os.open(run_dir / "lock", os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _about(run_dir: Path) -> dict[str, object]:
    try:
        about = msgspec.json.decode((run_dir / "guardian.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return about if isinstance(about, dict) else {}


def _is_of(run_dir: Path, pid: int) -> bool:
    match _about(run_dir).get("guardian"):
        case [int() as guarding, str()]:
            return guarding == pid
        case _:
            return False


def _signal_guardian(run_dir: Path, number: int) -> None:
    """Signal the lock's holder, and only it: a pid that was given to another is left alone."""
    match _about(run_dir).get("guardian"):
        case [int() as pid, str()] as process:
            pass
        case _:
            return
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            # Compared after the process is pinned, so it cannot change in between.
            if processes.alive(process):
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)
