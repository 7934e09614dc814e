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


class ChildProcess:
    """A process and its pipes; ``returncode`` is None until its end was seen."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
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
        process, loop = self._process, asyncio.get_running_loop()
        if process.stdin is not None:
            sink = asyncio.StreamReaderProtocol(asyncio.StreamReader())
            transport, protocol = await loop.connect_write_pipe(
                lambda: sink, process.stdin
            )
            self._pipes.append(transport)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        if process.stdout is not None:
            self.stdout = await self._reader(process.stdout)
        if process.stderr is not None:
            self.stderr = await self._reader(process.stderr)

    async def _reader(self, pipe: IO[bytes]) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=_STREAM_LIMIT)
        protocol = _UntilEnd(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: protocol, pipe
        )
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
    process = ChildProcess(
        subprocess.Popen(  # noqa: ASYNC220 - vfork ends with the exec
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    )
    try:
        await process.connect()
    except BaseException:
        process.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return process
