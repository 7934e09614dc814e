"""Processes of the machine, for the guardian: who they are, who descends from whom, how they end.

Standard library only: the guardian imports it without our package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time

TYPE_CHECKING = False  # typing costs 6 ms at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Group(Protocol):
        """What limits a command together with all that it starts."""

        def join(self) -> None:
            """Put the calling process into it."""

        def remove(self) -> None:
            """Remove it once it is empty."""


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
KEYCTL, JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
_libc = ctypes.CDLL(None, use_errno=True)
prctl = _libc.prctl


def stat_fields(pid: int | str) -> list[str]:
    """Return ``/proc/PID/stat`` after the name: [1] parent, [17] threads, [19] start."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs 8 ms
        return file.read().rpartition(b")")[2].decode().split()


def identity(pid: int) -> tuple[int, str]:
    """Name a process for good: pids come back, with another start time."""
    return pid, stat_fields(pid)[19]


def descendants(root: int) -> dict[int, int]:
    """Return every process below ``root`` with its number of threads."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - see above
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = stat_fields(name)
                entry = (int(name), int(fields[17]))
                children.setdefault(int(fields[1]), []).append(entry)
    found: dict[int, int] = {}
    todo = [root]
    while todo:
        for pid, threads in children.get(todo.pop(), ()):
            if pid not in found:
                found[pid] = threads
                todo.append(pid)
    return found


def kill_all() -> None:
    """Kill every descendant and return once none is left, however they detached.

    This process is the subreaper, so whoever loses a parent becomes its child: no
    children left means no descendants left.
    """
    pause = 0.001
    while True:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # The group first: a fork cannot slip past a signal to its group.
                group = os.getpgid(pid)
                if group != os.getpgrp():
                    os.killpg(group, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def alive(process: object) -> bool:
    """Tell whether ``[pid, start]`` still runs, and not another under its number.

    For the init of a pid namespace a no means that the whole namespace is empty: the
    kernel lets it become a zombie only after everyone else in there is gone.
    """
    if not isinstance(process, (list, tuple)) or len(process) != 2:  # noqa: PLR2004
        return False
    pid, start = process
    try:
        fields = stat_fields(pid)
    except OSError:
        return False
    return fields[0] not in "ZX" and fields[19] == start


def threads_of_the_machine() -> int:
    """Number of threads that exist, from one read."""
    with open("/proc/loadavg", "rb") as file:  # noqa: PTH123
        return int(file.read().split()[3].partition(b"/")[2])


def spawn(
    argv: list[str],
    *,
    stdin: int,
    output: int,
    passed: list[int],
    join: Callable[[], None] | None = None,
) -> int:
    """Start a program in its own session, without environment, dying with its parent."""
    me = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:
            os._exit(1)
        if join is not None:
            join()
        if (keyctl := KEYCTL.get(os.uname().machine)) is not None:
            # The keys of whoever started the worker would be inherited, namespaces or not.
            _libc.syscall(keyctl, JOIN_SESSION_KEYRING, None)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as f:  # noqa: PTH123
            f.write(b"500")  # short of memory, the kernel takes the command first
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for fd in passed:
            os.set_inheritable(fd, True)
        os.execve(argv[0], argv, {})  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - nothing may return from the child
        os.write(2, f"nestor: cannot start {argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def keeper(
    argv: list[str],
    *,
    stdin: int,
    output: int,
    passed: list[int],
    guardian: int,
    cgroup: Group | None,
) -> None:
    """Stand between guardian and command, and end the command when the guardian is gone.

    Parent-death signals alone leave gaps: bubblewrap's child arms its own only after it
    was started, and without isolation grandchildren have none. Whoever loses a parent
    becomes this process's child. The lock is inherited, so it is held until all is gone.
    """
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wake_r, wake_w = os.pipe()
        for fd in (wake_r, wake_w):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        join = cgroup.join if cgroup is not None else None
        child = spawn(argv, stdin=stdin, output=output, passed=passed, join=join)
        for fd in {stdin, output, *passed}:
            os.close(fd)
        ended = orphaned = False
        while not (ended or orphaned):
            ready = select.select([guardian, wake_r], [], [])[0]
            with contextlib.suppress(BlockingIOError):
                os.read(wake_r, 4096)
            with contextlib.suppress(ChildProcessError):
                while pid := os.waitpid(-1, os.WNOHANG)[0]:
                    ended = ended or pid == child
            orphaned = guardian in ready
        kill_all()
        if cgroup is not None and orphaned:
            cgroup.remove()
    finally:
        os._exit(0)
