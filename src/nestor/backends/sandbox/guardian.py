"""The guardian: one process per command, which ends the command when it must end.

Runs as ``python -I -S guardian.py`` beside the worker, standard library only. The first
line of stdin is the job (JSON); every byte after it renews the worker's lease. The
command and all its descendants are killed when stdin closes (the worker died), when no
byte came for 8 s (the worker is stopped), at the time limit, on SIGTERM, and when there
are more processes than allowed. ``result.json`` is written, whole or not at all, once
every process is gone; the lock of the run folder is held until then.

This file is long because it must stand alone: it imports nothing of ours, so that it
starts in 15 ms and nothing of ours can be imported into it.

It forks a keeper, which starts the command and ends it if the guardian is killed. Each
has one thread and that thread never ends before its children: the kernel sends the
parent-death signal when the *thread* that started a child ends.

Exit codes: 0 ``result.json`` stands; 75 an earlier run still holds the folder; 76 the
worker left before the start; anything else is a bug, told on stderr.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # typing costs 6 ms at start
if TYPE_CHECKING:
    from typing import Any

LEASE_S = 8.0
LOCK_WAIT_S = 10.0
TICK_S = 0.1
BUSY, ORPHAN = 75, 76
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NS_GET_USERNS = 0xB701
_libc = ctypes.CDLL(None, use_errno=True)


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


def write_whole(path: str, value: object, *, durable: bool) -> None:
    """Replace a file so that a reader sees the old content or the new, nothing between."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, json.dumps(value).encode())
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)  # noqa: PTH105
    if not durable:
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY)  # noqa: PTH120
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Output:
    """The newest ``limit`` bytes on disk at most, as ``output.old`` then ``output``."""

    def __init__(self, run_dir: str, limit: int) -> None:
        self.path = f"{run_dir}/output"
        self.half = max(limit // 2, 1)
        self.truncated = False
        self._remove(f"{self.path}.old")
        self._open()

    def write(self, data: bytes) -> None:
        """Append; when half the limit is reached, the older half makes room."""
        while data:
            if self.size >= self.half:
                os.close(self.fd)
                if os.path.exists(f"{self.path}.old"):  # noqa: PTH110
                    self.truncated = True
                os.replace(self.path, f"{self.path}.old")  # noqa: PTH105
                self._open()
            part = data[: self.half - self.size]
            try:
                self.size += os.write(self.fd, part)
            except OSError:
                # A full disk must not stop the guardian from guarding.
                self.truncated = True
                return
            data = data[len(part) :]

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self.fd = os.open(self.path, flags, 0o600)
        self.size = 0

    @staticmethod
    def _remove(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108


class Lease:
    """What the worker's bytes say about the worker."""

    def __init__(self) -> None:
        os.set_blocking(0, False)
        self.closed = False
        self.renewed = time.monotonic()

    def read(self) -> None:
        """Take what has come; end of file means that the worker is gone."""
        with contextlib.suppress(BlockingIOError):
            while not self.closed:
                if os.read(0, 65536):
                    self.renewed = time.monotonic()
                else:
                    self.closed = True

    @property
    def lost(self) -> bool:
        """The worker is gone or has been silent for too long."""
        return self.closed or time.monotonic() - self.renewed > LEASE_S


class Guardian:
    """One job from its lock to its result."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.run_dir: str = job["run_dir"]
        self.lease = Lease()
        self.terminated = False
        self.status = b""
        self.started: float | None = None
        self.note = ""
        self.wake_r, self.wake_w = os.pipe()
        for fd in (self.wake_r, self.wake_w):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self.wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)

    def _terminate(self, *_: object) -> None:
        self.terminated = True

    def main(self) -> int:
        """Guard one command; the exit codes are in the module's docstring."""
        self.lock = os.open(
            f"{self.run_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
        if failed := self.take_folder():
            return failed
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.run_dir}/result.json")  # noqa: PTH108
        self.output = Output(self.run_dir, self.job["output_limit_bytes"])
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with contextlib.suppress(OSError):
            # As root: stay on the processor however many processes the command starts.
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        began = time.monotonic()
        self.record(None)
        self.start()
        why = self.watch()
        kill_all()
        self.drain()
        write_whole(
            f"{self.run_dir}/result.json", self.result(why, began), durable=True
        )
        self.hand_over()
        return 0

    def hand_over(self) -> None:
        """Keep the folder until the worker has read the result, or is gone."""
        with contextlib.suppress(BrokenPipeError):
            os.write(1, b"done\n")
        while not self.lease.lost:
            select.select([0], [], [], 1)
            self.lease.read()

    def take_folder(self) -> int:
        """Wait until no earlier run lives in this folder; 0 once it is ours."""
        deadline = time.monotonic() + LOCK_WAIT_S
        locked = False
        while True:
            self.lease.read()
            if self.lease.lost or self.terminated:
                return ORPHAN
            if not locked:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked = True
            # A killed guardian leaves the lock before the kernel has ended its sandbox.
            if locked and not self.left_over():
                return 0
            if time.monotonic() > deadline:
                return BUSY
            time.sleep(0.02)

    def left_over(self) -> bool:
        """Tell whether the sandbox of a killed guardian is still being torn down."""
        try:
            with open(f"{self.run_dir}/guardian.json", "rb") as file:  # noqa: PTH123
                return alive(json.load(file)["init"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def record(self, init: int | None) -> None:
        """Say who guards, and who is the init of the sandbox's pid namespace."""
        about: dict[str, Any] = {"guardian": identity(os.getpid())}
        about["init"] = identity(init) if init else None
        write_whole(f"{self.run_dir}/guardian.json", about, durable=False)

    def start(self) -> None:
        """Start the launcher; the command itself waits for ``go``."""
        out_r, out_w = os.pipe()
        gate_r, self.gate = os.pipe()
        self.status_r, status_w = os.pipe()
        self.info_r, info_w = os.pipe()
        self.out_r = out_r
        with contextlib.suppress(OSError):
            fcntl.fcntl(out_w, fcntl.F_SETPIPE_SZ, 1 << 20)
        inner = memfd(json.dumps(self.job["inner"]).encode())
        stdin = memfd(base64.b64decode(self.job["stdin"]))
        passed = [inner, gate_r, status_w]
        argv: list[str] = []
        for part in self.job["prefix"]:
            if isinstance(part, str):
                argv.append(part)
            else:
                fd = info_w if part.get("info") else memfd(part["data"].encode())
                passed.append(fd)
                argv.append(str(fd))
        if argv:
            # By descriptor: /proc/1/cmdline can be read inside, host paths and all.
            options = memfd(
                "\0".join(argv[1:]).encode(errors="surrogateescape") + b"\0"
            )
            passed.append(options)
            argv = [argv[0], "--args", str(options), "--"]
        argv += [*self.job["launcher"], str(inner), str(gate_r), str(status_w)]
        keep_r, self.keep = os.pipe()
        self.main_pid = os.fork()
        if not self.main_pid:
            # Held here, these would hide the guardian's end from those who wait for it.
            os.close(self.keep)
            os.close(self.gate)
            keeper(argv, stdin=stdin, output=out_w, passed=passed, guardian=keep_r)
        passed.append(keep_r)
        for fd in {out_w, stdin, info_w, *passed}:
            os.close(fd)
        for fd in (self.out_r, self.status_r):
            os.set_blocking(fd, False)
        self.poll = select.poll()
        for fd in (0, self.out_r, self.status_r, self.wake_r):
            self.poll.register(fd, select.POLLIN)

    def watch(self) -> str:
        """Return why it ended: end, timeout, sigterm, lease, processes, failed."""
        limit = self.job["processes"]
        calm = threads_of_the_machine()
        while True:
            events = self.poll.poll(TICK_S * 1000)
            for fd, _ in events:
                self.take(fd)
            if self.ended():
                return "end"
            if self.terminated:
                return "sigterm"
            if self.lease.lost:
                return "lease"
            now = time.monotonic()
            if self.started is not None and now - self.started > self.job["timeout_s"]:
                return "timeout"
            # RLIMIT_NPROC does not bind root; the cheap figure says when to count.
            if not events and threads_of_the_machine() - calm < limit // 2:
                continue
            if threads_of_the_machine() - calm >= limit // 2:
                count = sum(descendants(os.getpid()).values())
                # Ours: keeper, launcher, bubblewrap's two, slirp4netns.
                if count > limit + 5:
                    self.note = f"\nnestor: killed: more than {limit} processes\n"
                    return "processes"

    def take(self, fd: int) -> None:
        """Read what one descriptor has."""
        if fd == 0:
            self.lease.read()
            if self.lease.closed:
                self.poll.unregister(0)
            return
        try:
            data = os.read(fd, 1 << 18 if fd == self.out_r else 65536)
        except BlockingIOError:
            return
        if fd == self.wake_r:
            return
        if not data:
            self.poll.unregister(fd)
        elif fd == self.out_r:
            self.output.write(data)
        else:
            self.status += data
            if self.started is None and self.status.startswith(b"ready\n"):
                self.go()

    def go(self) -> None:
        """Let the command start, now that all that is needed to end it is written down."""
        if self.job["isolated"]:
            info = b""
            while b"}" not in info and (data := os.read(self.info_r, 4096)):
                info += data
            init = int(json.loads(info)["child-pid"])
            self.record(init)
            if self.job["slirp4netns"]:
                self.connect(init)
        self.started = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            os.write(self.gate, b"g")

    def connect(self, init: int) -> None:
        """Give the sandbox's own network namespace a way out, but none to our loopback."""
        net = os.open(f"/proc/{init}/ns/net", os.O_RDONLY)
        owner = fcntl.ioctl(net, NS_GET_USERNS)
        ready_r, ready_w = os.pipe()
        exit_r, self.slirp_alive = os.pipe()
        argv = [
            self.job["slirp4netns"], "--configure", "--mtu=65520",
            "--disable-host-loopback", "--netns-type=path",
            f"--userns-path=/proc/self/fd/{owner}", f"--ready-fd={ready_w}",
            f"--exit-fd={exit_r}", f"/proc/self/fd/{net}", "tap0",
        ]  # fmt: skip
        error = os.open("/dev/null", os.O_RDWR)
        passed = [net, owner, ready_w, exit_r]
        spawn(argv, stdin=error, output=error, passed=passed)
        for fd in (net, owner, ready_w, exit_r, error):
            os.close(fd)
        if not (select.select([ready_r], [], [], 5)[0] and os.read(ready_r, 1)):
            raise RuntimeError("slirp4netns did not come up")
        os.close(ready_r)

    def ended(self) -> bool:
        """The command has ended, or whoever was to start it has."""
        if b"\nend " in self.status and self.status.endswith(b"\n"):
            return True
        with contextlib.suppress(ChildProcessError):
            # Leave it a zombie: kill_all reaps, and may still need its children.
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.main_pid, options) is not None
        return True

    def drain(self) -> None:
        """Take what is left in the pipes; nobody writes any more."""
        for fd in (self.out_r, self.status_r):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(fd, 1 << 18):
                    if fd == self.out_r:
                        self.output.write(data)
                    else:
                        self.status += data
        self.output.write(self.note.encode())

    def result(self, why: str, began: float) -> dict[str, Any]:
        """Put together what is known of the end; unknown is None."""
        end: dict[str, Any] = {}
        if b"\nend " in self.status:
            end = json.loads(self.status.partition(b"\nend ")[2])
        begun = self.started if self.started is not None else began
        killed = why != "end"
        return {
            "token": self.job["token"],
            "why": why if end or self.started or killed else "failed",
            "exit_code": None if killed else end.get("exit"),
            "signal": signal.SIGKILL if killed or not end else end.get("signal"),
            "truncated": self.output.truncated,
            "duration_s": round(time.monotonic() - begun, 4),
        }


def threads_of_the_machine() -> int:
    """Number of threads that exist, from one read."""
    with open("/proc/loadavg", "rb") as file:  # noqa: PTH123
        return int(file.read().split()[3].partition(b"/")[2])


def memfd(data: bytes) -> int:
    """Return an anonymous file with this content, at its beginning."""
    fd = os.memfd_create("nestor")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def keeper(
    argv: list[str], *, stdin: int, output: int, passed: list[int], guardian: int
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
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        child = spawn(argv, stdin=stdin, output=output, passed=passed)
        for fd in {stdin, output, *passed}:
            os.close(fd)
        ended = False
        while not ended:
            ready = select.select([guardian, wake_r], [], [])[0]
            with contextlib.suppress(BlockingIOError):
                os.read(wake_r, 4096)
            with contextlib.suppress(ChildProcessError):
                while pid := os.waitpid(-1, os.WNOHANG)[0]:
                    ended = ended or pid == child
            ended = ended or guardian in ready
        kill_all()
    finally:
        os._exit(0)


def spawn(argv: list[str], *, stdin: int, output: int, passed: list[int]) -> int:
    """Start a program in its own session, without environment, dying with its parent."""
    me = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:
            os._exit(1)
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


def read_job() -> dict[str, Any] | None:
    """Read the first line; None when the worker left before it was whole."""
    line = b""
    while b"\n" not in line:
        data = os.read(0, 1 << 16)
        if not data:
            return None
        line += data
    job: dict[str, Any] = json.loads(line.partition(b"\n")[0])
    return job


if __name__ == "__main__":
    job = read_job()
    sys.exit(ORPHAN if job is None else Guardian(job).main())
