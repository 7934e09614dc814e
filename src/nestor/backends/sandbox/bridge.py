"""The first program inside: starts the command, and tells the guardian how it ended.

Runs as ``python -I -S bridge.py JOB_FD GATE_FD STATUS_FD``, standard library only. It
says ``ready``, waits for ``go`` on the gate, starts the command with its limits, and
writes ``end {"exit": n}`` or ``end {"signal": n}``. A command that cannot be started
ends with 127 (not found) or 126, with a line in its output, as from a shell.

With ``ports`` in the job it also listens on those loopback ports of the (empty) network
namespace and copies bytes to the Unix sockets that the worker bound in: those sockets
are the only things outside which can be reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False  # typing costs 6 ms at start
if TYPE_CHECKING:
    import socket
    from typing import Any

PR_SET_DUMPABLE = 4
CONNECTIONS = 64
_libc = ctypes.CDLL(None, use_errno=True)


def main(job_fd: int, gate: int, status: int) -> None:
    """Run one command to its end."""
    # Not dumpable: the command shares our uid and must not get at our descriptors.
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.write(status, b"ready\n")
    if not os.read(gate, 1):
        return
    job: dict[str, Any] = json.loads(read_all(job_fd))
    listeners = [(listen(port), path) for port, path in job["ports"]]
    pid, failure = start(job)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: os.kill(pid, n) if pid else None)
    for listener, path in listeners:
        serve(listener, path)
    end = {"exit": failure} if failure else wait(pid, wake_r)
    os.write(status, b"end " + json.dumps(end).encode() + b"\n")
    # Threads may still copy bytes; nobody is left to read them.
    os._exit(0)


def read_all(fd: int) -> bytes:
    """Read an anonymous file from its beginning."""
    parts = []
    while data := os.read(fd, 1 << 20):
        parts.append(data)
    os.close(fd)
    return b"".join(parts)


def start(job: dict[str, Any]) -> tuple[int, int]:
    """Start the command; returns (pid, 0), or (0, exit code of the failure)."""
    error_r, error_w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            os.closerange(3, error_w)
            os.closerange(error_w + 1, 65536)
            os.chdir(job["cwd"])
            limit(job["limits"])
            os.execvpe(job["argv"][0], job["argv"], job["env"])  # noqa: S606
        except BaseException as error:  # noqa: BLE001 - nothing may return from the child
            code = error.errno if isinstance(error, OSError) else None
            os.write(error_w, f"{code or 0} {error}".encode(errors="replace"))
        finally:
            os._exit(127)
    os.close(error_w)
    failure = read_all(error_r)
    if not failure:
        return pid, 0
    os.waitpid(pid, 0)
    number, _, text = failure.decode(errors="replace").partition(" ")
    line = f"nestor: cannot run {job['argv'][0]!r} in {job['cwd']!r}: {text}\n"
    os.write(2, line.encode(errors="replace"))
    return 0, 127 if int(number) in {errno.ENOENT, errno.ENOTDIR} else 126


def limit(limits: dict[str, int | None]) -> None:
    """Set the rlimits of this process, never above what it already has."""
    for name, value in limits.items():
        if value is not None:
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            new = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (new, new))


def wait(pid: int, wake: int) -> dict[str, int]:
    """Wait for the command, reaping whoever else ends."""
    while True:
        select.select([wake], [], [])
        os.read(wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == pid:
                    code = os.waitstatus_to_exitcode(ended[1])
                    return {"exit": code} if code >= 0 else {"signal": -code}


def listen(port: int) -> socket.socket:
    """Open the loopback port before the command starts, so that it is never too early."""
    import socket  # noqa: PLC0415 - 8 ms that most commands do not need

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(CONNECTIONS)
    return listener


def serve(listener: socket.socket, path: str) -> None:
    """Copy bytes between the port and the socket, at most CONNECTIONS at once."""
    import socket  # noqa: PLC0415
    import threading  # noqa: PLC0415

    free = threading.BoundedSemaphore(CONNECTIONS)

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def connect(client: socket.socket) -> None:
        outside = socket.socket(socket.AF_UNIX)
        with free, client, outside, contextlib.suppress(OSError):
            outside.connect(path)
            back = threading.Thread(target=copy, args=(outside, client), daemon=True)
            back.start()
            copy(client, outside)
            back.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                time.sleep(0.05)
                continue
            threading.Thread(target=connect, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
