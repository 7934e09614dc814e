"""Child processes of an event loop, started without copying this process.

``asyncio.create_subprocess_exec`` on uvloop forks: in a stack of 400 MB that takes 5 to 11
ms of CPU, and stops the loop for twice as long, for each git and each guardian.
``subprocess.Popen`` uses vfork (0.4 ms), and a pidfd tells the loop of the end.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

PIPE = subprocess.PIPE
_STREAM_LIMIT = 64 * 1024
"""Bytes that a reader holds before the child has to wait."""


class _End:
    """Our end of a pipe, as event loops want it: asyncio closes it by ``close``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _HandedOver(_End):
    """The same for uvloop, which closes the descriptor by itself, and then the object.

    With a file of Python's that second time takes the number away from whichever thread was
    given it in between. So whoever asks for the descriptor is its owner.
    """

    def fileno(self) -> int:
        fd, self._fd = self._fd, -1
        return fd


class ChildProcess:
    """A process and its pipes; ``returncode`` is None until its end was seen."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", ends: "dict[str, _End]"
    ) -> None:
        self._process = process
        self._ends = ends
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.pid = process.pid
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._pipes: list[asyncio.BaseTransport] = []
        self._watch()

    @property
    def returncode(self) -> int | None:
        """The exit code; negative: the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end; whoever else waits is not disturbed by a cancellation."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal. Raises ``ProcessLookupError`` when its end was seen."""
        if self.returncode is not None:
            raise ProcessLookupError
        # Not waited for yet, so that its pid is still its own.
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once. Raises ``ProcessLookupError`` when its end was seen."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of its pipes, whoever else holds their other ends."""
        for pipe in self._pipes:
            pipe.close()
        for end in self._ends.values():
            end.close()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:  # a kernel before 5.3, or a filter of system calls
            waiting = loop.run_in_executor(None, self._process.wait)
            waiting.add_done_callback(lambda _: self._end())
            return

        def ended() -> None:
            loop.remove_reader(handle)
            os.close(handle)
            self._process.wait()
            self._end()

        loop.add_reader(handle, ended)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(self._process.returncode)

    async def connect(self) -> None:
        """Bring the pipes that it was started with into the event loop."""
        loop = asyncio.get_running_loop()
        if end := self._ends.pop("stdin", None):
            sink = asyncio.StreamReaderProtocol(asyncio.StreamReader())
            transport, protocol = await loop.connect_write_pipe(lambda: sink, end)
            self._pipes.append(transport)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        self.stdout = await self._reader("stdout")
        self.stderr = await self._reader("stderr")

    async def _reader(self, name: str) -> asyncio.StreamReader | None:
        end = self._ends.pop(name, None)
        if end is None:
            return None
        reader = asyncio.StreamReader(limit=_STREAM_LIMIT)
        protocol = _UntilEnd(reader)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: protocol, end)
        self._pipes.append(transport)
        return reader


class _UntilEnd(asyncio.StreamReaderProtocol):
    """Closes the pipe once its end was read."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


async def start(
    *argv: str,
    env: Mapping[str, str],
    cwd: Path | str,
    stdin: int | IO[bytes] = PIPE,
    stdout: int | IO[bytes] = PIPE,
    stderr: int | IO[bytes] = PIPE,
) -> ChildProcess:
    """Start a program in a session of its own. Raises ``OSError`` when it cannot be."""
    kind = _HandedOver if _is_uvloop(asyncio.get_running_loop()) else _End
    ours: dict[str, _End] = {}
    theirs: list[int] = []

    def given(name: str, what: int | IO[bytes]) -> int | IO[bytes]:
        if what != PIPE:
            return what
        read, write = os.pipe()
        us, them = (write, read) if name == "stdin" else (read, write)
        ours[name] = kind(us)
        theirs.append(them)
        return them

    try:
        process = ChildProcess(
            subprocess.Popen(  # noqa: ASYNC220 - vfork ends with the exec
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=given("stdin", stdin),
                stdout=given("stdout", stdout),
                stderr=given("stderr", stderr),
                start_new_session=True,
            ),
            ours,
        )
    except BaseException:
        for end in ours.values():
            end.close()
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    try:
        await process.connect()
    except BaseException:
        process.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return process


def _is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    return type(loop).__module__.partition(".")[0] == "uvloop"
