"""``ports.DocumentReader`` by child processes with limits."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import msgspec

from nestor.backends.documents import wire
from nestor.backends.documents.blocks import pieces
from nestor.backends.documents.decoding import MAX_BYTES, encoded
from nestor.errors import FieldError, Unavailable, Unreadable
from nestor.ports.document_reader import Reading

_START_S = 30.0
_IN_THREAD = 256 * 1024
"""Answers larger than this (bytes) are made into pieces beside the event loop."""
_NAME_SHOWN = 200
_HIDING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class DocumentChildren:
    """Reads documents in at most ``most`` children, started at need and used again.

    A child that breaks off, is stuck or too large costs one document (``Unreadable``),
    never another. One that breaks off is tried once more, fresh: what ended it may have
    come from outside; and code is then cut as text. ``seconds`` is the time a document gets, of the processor and on
    the clock; ``memory_bytes`` is a child's address space; ``documents_each`` how many a
    child reads before it is replaced. A read that is cancelled ends its child.

    Belongs to one event loop, whose thread the children end with. ``read`` raises
    ``Unavailable`` when no child can be started, or after ``close``.
    """

    def __init__(
        self,
        *,
        most: int = 2,
        seconds: float = 60.0,
        memory_bytes: int = 1024 * 1024 * 1024,
        documents_each: int = 5_000,
    ) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._documents_each = documents_each
        self._slots = asyncio.Semaphore(most)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._ending: set[asyncio.Task[int]] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """The children that run."""
        return sorted(child.pid for child in self._all)

    async def read(
        self, source: Path | str, *, name: str, media: str | None = None
    ) -> Reading:
        """See ``ports.DocumentReader``. A path is opened by the child; links are refused."""
        try:
            return await self._read(source, name, media)
        except Unreadable as error:
            why = str(error)
            raise Unreadable(
                f"{_shown(name)}: {why}", FieldError("content", why)
            ) from error

    async def close(self) -> None:
        """End the children; whoever still reads gets ``Unavailable``."""
        self._closed = True
        for child in list(self._all):
            self._end(child)
        self._idle.clear()
        await asyncio.gather(*self._ending)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self, source: Path | str, name: str, media: str | None) -> Reading:
        if isinstance(source, str) and len(source) > MAX_BYTES:
            raise Unreadable(f"it is over {MAX_BYTES:,} bytes; split it")
        is_text = isinstance(source, str)
        body = encoded(source) if isinstance(source, str) else b""
        asked = wire.Question(
            name=name.encode(errors="backslashreplace").decode(),
            media=None if media is None else _valid(media),
            path=None if is_text else os.fsencode(source),
            seconds=self._seconds,
        )
        async with self._slots:
            head, content = await self._asked(asked, body)
        text = source if isinstance(source, str) else None
        if len(head) + len(content) > _IN_THREAD:
            return await asyncio.to_thread(_reading, head, content, text)
        return _reading(head, content, text)

    async def _asked(self, asked: wire.Question, body: bytes) -> tuple[bytes, bytes]:
        code = 0
        for plain in (False, True):
            question = wire.encode(msgspec.structs.replace(asked, plain=plain))
            child = await self._take()
            kept = False
            try:
                async with asyncio.timeout(self._seconds):
                    head, content, last = await child.ask(question, body)
                kept = not last and not self._closed
                return head, content  # noqa: TRY300 - what may fail is two lines above
            except TimeoutError:
                raise Unreadable(
                    f"reading it takes longer than {self._seconds:g} s; split it"
                ) from None
            except (OSError, EOFError):
                code = await asyncio.shield(self._end(child))
                self._check_open()
            finally:
                if kept:
                    self._idle.append(child)
                else:
                    self._end(child)
        raise Unreadable(self._what_ended(code))

    async def _take(self) -> "_Child":
        """Return a child that is ready."""
        self._check_open()
        while self._idle:
            child = self._idle.pop()
            if child.runs:
                return child
            self._end(child)
        with tempfile.TemporaryFile() as log:
            child = await _Child.start(
                wire.Limits(os.getpid(), self._memory_bytes, self._documents_each), log
            )
            self._all.add(child)
            try:
                async with asyncio.timeout(_START_S):
                    await child.ready()
            except BaseException as error:
                code = await asyncio.shield(self._end(child))
                if isinstance(error, (OSError, EOFError, TimeoutError)):
                    self._check_open()
                    raise Unavailable(_not_started(code, log)) from error
                raise
        if self._closed:
            self._end(child)
            self._check_open()
        return child

    def _end(self, child: "_Child") -> "asyncio.Task[int]":
        if child.end is None:
            child.kill()
            child.end = asyncio.create_task(asyncio.to_thread(child.wait))
            self._all.discard(child)
            self._ending.add(child.end)
            child.end.add_done_callback(self._ending.discard)
        return child.end

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the reader of documents is closed")

    def _what_ended(self, code: int) -> str:
        if code == -signal.SIGXCPU:
            return f"reading it takes longer than {self._seconds:g} s; split it"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        mib = self._memory_bytes // (1024 * 1024)
        return (
            f"it ends the program that reads it ({how}): it is damaged, made to do that,"
            f" or takes more than {mib:,} MiB"
        )


class _Child:
    """One process, and the socket to it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.pid = process.pid
        self.end: asyncio.Task[int] | None = None

    @classmethod
    async def start(cls, limits: wire.Limits, log: IO[bytes]) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - some 2 ms; see PDEATHSIG
                    [
                        *(sys.executable, "-B", "-P", "-s", "-X", "utf8"),
                        *("-m", "nestor.backends.documents.child"),
                        msgspec.json.encode(limits).decode(),
                    ],
                    stdin=theirs.fileno(),
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    # Nothing of ours, which holds keys, is inherited.
                    env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            except OSError as error:
                ours.close()
                message = f"documents cannot be read: no process: {error.strerror}"
                raise Unavailable(message) from error
        try:
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        return cls(process, reader, writer)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None and not self._reader.at_eof()

    async def ready(self) -> None:
        await self._reader.readexactly(1)

    async def ask(self, head: bytes, body: bytes) -> tuple[bytes, bytes, bool]:
        """Return head and body of the answer, and whether the child ends after it.

        Raises OSError or EOFError when it ends before, or says what it may not.
        """
        self._writer.write(wire.before(head, body))
        if body:
            self._writer.write(body)
        await self._writer.drain()
        front = await self._reader.readexactly(wire.FRONT.size)
        head_length, body_length, last = wire.FRONT.unpack(front)
        if head_length > wire.MAX_HEAD or body_length > wire.MAX_BODY:
            raise EOFError("the answer is larger than an answer can be")
        return (
            await self._reader.readexactly(head_length),
            await self._reader.readexactly(body_length),
            last,
        )

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._writer.close()

    def wait(self) -> int:
        return self._process.wait()


def _reading(head: bytes, content: bytes, text: str | None) -> Reading:
    try:
        answer = wire.answer(head)
        if answer.refused is None:
            said = text if answer.same and text is not None else content.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable("what was read out of it makes no sense") from error
    if answer.refused is not None:
        raise Unreadable(answer.refused)
    return Reading(
        content=said,
        media=answer.media,
        title=answer.title,
        pieces=pieces(said, answer.spans),
    )


def _not_started(code: int, log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read(64 * 1024).decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return (
        f"documents cannot be read: their reader ended at its start with {code}"
        f"{f' ({last[:300]})' if last else ''}"
    )


def _valid(text: str) -> str:
    return text[:1000].encode(errors="replace").decode()


def _shown(name: str) -> str:
    """Return a name as one harmless line; others chose it."""
    safe = "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _HIDING
        else char
        for char in name[: _NAME_SHOWN + 1]
    )
    return safe if len(name) <= _NAME_SHOWN else f"{safe[:_NAME_SHOWN]}…"
