"""The guardian: one process per command, which ends the command when it must end.

Runs as ``python -I -S guardian.py`` beside the worker, standard library only. The first
line of stdin is the job (JSON); every byte after it renews the worker's lease. The
command and all its descendants are killed when stdin closes (the worker died), when no
byte came for 8 s (the worker is stopped), at the time limit, on SIGTERM, and when they
are too many, hold too much memory or have written too much. ``result.json`` is written,
whole or not at all, once every process is gone; the lock of the run folder is held until
then.

It imports the files beside it and nothing else of ours, so that it starts in 15 ms.

It forks a keeper, which starts the command and ends it if the guardian is killed. Each
has one thread and that thread never ends before its children: the kernel sends the
parent-death signal when the *thread* that started a child ends.

Exit codes: 0 ``result.json`` stands; 75 an earlier run still holds the folder; 76 the
worker left before the start; anything else is a bug, told on stderr.
"""

from __future__ import annotations

import base64
import contextlib
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
if TYPE_CHECKING or __name__ != "__main__":
    from nestor.backends.sandbox.output import Output, memfd, write_whole
    from nestor.backends.sandbox.processes import (
        PR_SET_CHILD_SUBREAPER,
        alive,
        descendants,
        identity,
        keeper,
        kill_all,
        prctl,
        threads_of_the_machine,
    )
    from nestor.backends.sandbox.usage import Cgroup, Disk, Memory
else:
    # Isolated mode leaves our folder out. Last, so that it hides nothing of Python's.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from output import Output, memfd, write_whole
    from processes import (
        PR_SET_CHILD_SUBREAPER,
        alive,
        descendants,
        identity,
        keeper,
        kill_all,
        prctl,
        threads_of_the_machine,
    )
    from usage import Cgroup, Disk, Memory

LEASE_S = 8.0
LOCK_WAIT_S = 10.0
TICK_S = 0.1
BUSY, ORPHAN = 75, 76


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
        self.cgroup: Cgroup | None = None
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
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with contextlib.suppress(OSError):
            # As root: stay on the processor however many processes the command starts.
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        began = time.monotonic()
        self.record(None)
        if self.job["cgroup"]:
            name = f"{os.getpid()}-{self.job['token'][:12]}"
            self.cgroup = Cgroup.made(self.job["memory_bytes"], name)
        self.memory = Memory(self.job["memory_bytes"], self.cgroup)
        self.disk = Disk(
            self.job["writable"], self.job["disk_bytes"], growth=self.job["disk_growth"]
        )
        self.start()
        why = self.watch()
        kill_all()
        if why == "end" and self.memory.exceeded(tuple):
            # The kernel took the command before we looked.
            why = self.limited("memory", self.memory.said)
        if self.cgroup is not None:
            self.cgroup.remove()
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
            keeper(
                argv,
                stdin=stdin,
                output=out_w,
                passed=passed,
                guardian=keep_r,
                cgroup=self.cgroup,
            )
        passed.append(keep_r)
        for fd in {out_w, stdin, info_w, *passed}:
            os.close(fd)
        for fd in (self.out_r, self.status_r):
            os.set_blocking(fd, False)
        self.poll = select.poll()
        for fd in (0, self.out_r, self.status_r, self.wake_r):
            self.poll.register(fd, select.POLLIN)

    def watch(self) -> str:
        """Return why it ended: end, timeout, sigterm, lease, failed, or a limit's name."""
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
            if self.started is None:
                continue
            if now - self.started > self.job["timeout_s"]:
                return "timeout"
            if why := self.over_a_limit(calm):
                return why

    def over_a_limit(self, calm: int) -> str:
        """Look whether a limit is exceeded; ``calm``: the machine's threads at the start."""
        limit = self.job["processes"]
        # RLIMIT_NPROC does not bind root; the cheap figure says when to count.
        if threads_of_the_machine() - calm >= limit // 2:
            count = sum(descendants(os.getpid()).values())
            # Ours: keeper, launcher, bubblewrap's two, slirp4netns.
            if count > limit + 5:
                return self.limited("processes", f"more than {limit} processes")
        if self.memory.exceeded(self.all_pids):
            return self.limited("memory", self.memory.said)
        if why := self.disk.exceeded(self.all_pids):
            return self.limited("disk", why)
        return ""

    def limited(self, limit: str, why: str) -> str:
        """Leave a line for people, at the end of the output."""
        self.note = f"\nnestor: killed: {why} ({limit} limit)\n"
        return limit

    @staticmethod
    def all_pids() -> dict[int, int]:
        """Everybody below us."""
        return descendants(os.getpid())

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
        if self.job["namespaced"]:
            info = b""
            while b"}" not in info and (data := os.read(self.info_r, 4096)):
                info += data
            init = int(json.loads(info)["child-pid"])
            self.record(init)
            self.memory.tmpfs = tuple(
                f"/proc/{init}/root{place}" for place in self.job["tmpfs"]
            )
            if self.job["slirp4netns"]:
                self.connect(init)
        self.started = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            os.write(self.gate, b"g")

    def connect(self, init: int) -> None:
        """Give the sandbox's own network namespace a way to the internet."""
        if TYPE_CHECKING or __name__ != "__main__":
            from nestor.backends.sandbox.routes import connect  # noqa: PLC0415
        else:
            from routes import connect  # noqa: PLC0415 - 8 ms that most commands do not need
        self.slirp_alive = connect(
            init,
            self.job["slirp4netns"],
            unreachable=self.job["unreachable"],
            reachable=self.job["reachable"],
        )

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
