"""A streamed answer, handed on as it came."""

import asyncio
import weakref
from abc import ABC, abstractmethod
from typing import Any, Self

import aiohttp
import msgspec

from nestor.backends.model_http.border import as_ours, error_text, say
from nestor.backends.model_http.cut import Cutter, split
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment
from nestor.model.sse import carries_data, data_of
from nestor.model.task import Usage

IDLE_S = 60.0
"""How long a stream may be silent between two chunks."""
LINGER_S = 1.0
"""How long what follows the last event is waited for; then the connection is closed."""
MAX_STREAM_BYTES = 256 * 1024 * 1024
"""Of one answer: the longest that models write, with as much around each token as servers
put there (a list of likely others, twice the text), and some room."""
MAX_STREAM_S = 3600.0
"""How long an answer may take after its first token, whatever it sends meanwhile."""
_MAX_HEAD_BYTES = 1024 * 1024
"""Read without a token: then the caller gets what there is."""


class EventStream(ABC):
    """Pieces of whole events, bytes as they came. Iterate once.

    What came in one piece from the upstream goes on as one, cut at its last complete
    event, and is decoded only where a search of its bytes found what has to be read.
    Iterating raises ``UpstreamError`` when the upstream dies, is silent for ``idle_s``,
    finds no end (``MAX_STREAM_BYTES``, ``MAX_STREAM_S``), or reports an error half way;
    all before that has been handed out by then.

    Comments are silence: any relay may send them, and they say nothing of the model. An
    event that carries data is none, Anthropic's ``ping`` included: it comes from the
    model's server, which sends nothing else while a model thinks for minutes.

    The event that ends the stream is held back while the usage may still follow it
    (``LINGER_S`` at most): callers leave when they have it. Beyond that nothing is read
    ahead of who iterates but what the driver buffers.
    """

    replayed = False

    def __init__(
        self, deployment: Deployment, response: aiohttp.ClientResponse, *, idle_s: float
    ) -> None:
        self.complete = False
        self._deployment = deployment
        self._response = response
        self._idle_s = idle_s
        self._cutter = Cutter()
        self._ready = b""
        self._usage = Usage()
        self._failure: UpstreamError | None = None
        self._spoke = False
        self._finished = False
        """The answer named its finish: a clean end after it is no death."""
        self._done = False
        """The event that ends the stream was read."""
        self._last = b""
        """That event, until it is handed out, where the usage may come after it."""
        self._taken = 0
        """Bytes of the upstream's."""
        self._loop = asyncio.get_running_loop()
        self._began = 0.0
        """When the first token was there."""
        self._waiting_since: float | None = None
        """Less what was waited before, where nothing but comments came."""
        self._silent_s = 0.0
        self._clock: asyncio.TimerHandle | None = None

    @abstractmethod
    def _look(self, piece: bytes) -> bytes:
        """Note what ``piece`` says; return what of it goes on."""

    @abstractmethod
    def _speaks(self, event: dict[str, Any]) -> bool:
        """Tell whether an event carries a token, as opposed to a role or a keep-alive."""

    @abstractmethod
    def _all_is_said(self) -> bool:
        """Tell whether nothing worth waiting for can follow the last event."""

    async def wait_for_token(self) -> None:
        """Read until there is a token to show; raises when there will be none."""
        while True:
            chunk = await self._response.content.readany()
            piece = self._cutter.feed(chunk) if chunk else self._at_end()
            spoke = any(self._speaks(data_of(event) or {}) for event in split(piece))
            self._ready += self._look(piece)
            self._taken += len(chunk)
            if spoke or self._done or self._taken > _MAX_HEAD_BYTES:
                break
            if self._failure is not None:
                raise self._failure
            if not chunk:
                raise UpstreamError(say(self._deployment, "ended before any token"))
        self._began = self._loop.time()
        self._look_again_at(self._began + self._idle_s)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._next()
        except BaseException:  # also cancellation: the upstream shall stop
            self._let_go()
            raise
        if not piece:
            self._part()
            raise StopAsyncIteration
        self.complete = self._done and not self._last
        return piece

    def usage(self) -> Usage:
        """What the events said so far."""
        return self._usage

    async def aclose(self) -> None:
        """Close the connection at once, so that the upstream stops."""
        if self.complete:
            self._part()
        else:
            self._let_go()

    async def _next(self) -> bytes:
        """Return the next piece; nothing at the end."""
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._last:
                await self._read_what_follows()
                break
            if self._done:
                return b""
            if not await self._read():
                self._end_cleanly()
                if self.complete:
                    return b""
        piece, self._ready = self._ready, b""
        if self._last and (not piece or self._all_is_said()):
            piece += self._last
            self._last = b""
        return piece

    async def _read(self) -> bool:
        """Take the next bytes; False at the end."""
        began = self._loop.time()
        self._waiting_since = began - self._silent_s
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            ours = as_ours(self._deployment, error, limit_s=self._idle_s)
            if ours is None:
                raise
            raise ours from error
        finally:
            self._waiting_since = None
        if not chunk:
            return False
        self._taken += len(chunk)
        if self._taken > MAX_STREAM_BYTES:
            message = f"its answer is longer than {MAX_STREAM_BYTES} bytes"
            raise UpstreamError(say(self._deployment, message))
        piece = self._cutter.feed(chunk)
        if piece:
            self._ready = self._look(piece)
        if piece.startswith(b"data:") or carries_data(piece or self._cutter.rest()):
            self._silent_s = 0.0
        else:
            self._silent_s += self._loop.time() - began
        return True

    def _end_cleanly(self) -> None:
        """The upstream ended without the event that ends a stream."""
        piece = self._at_end()
        if piece:
            self._ready = self._look(piece)
        if self._failure is not None or self._done:
            return
        if not self._finished:
            message = say(self._deployment, "ended in the middle of its answer")
            self._failure = UpstreamError(message)
        elif not self._ready:
            self.complete = True

    def _at_end(self) -> bytes:
        """Return an event that lacks only its last empty line; look for a bare error."""
        rest = self._cutter.rest()
        if rest.lstrip()[:1] == b"{" and not self._done:
            try:
                said = msgspec.json.decode(rest)
            except (msgspec.DecodeError, RecursionError):
                return b""
            if isinstance(said, dict) and said.get("error"):
                message = say(self._deployment, error_text(said))
                self._failure = UpstreamError(message)
            return b""
        return self._cutter.last_event()

    async def _read_what_follows(self) -> None:
        """Read on after the last event until the usage is there, or the end."""
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._all_is_said():
                    chunk = await self._response.content.readany()
                    self._look(self._cutter.feed(chunk) if chunk else self._at_end())
                    if not chunk:
                        return
        except (aiohttp.ClientError, OSError, UpstreamError):
            return  # the answer is whole; this was only about its count

    def _part(self) -> None:
        """Keep the connection if the upstream ends its reply at once."""
        self._stop_clock()
        if not self._response.closed:
            # The driver gives it back by itself when the end of the reply comes in.
            self._loop.call_later(LINGER_S, self._response.close)

    def _let_go(self) -> None:
        self._stop_clock()
        self._response.close()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def check_silence(self) -> None:
        """Break the wait for an upstream that is silent for too long, or finds no end.

        Looks again later.
        """
        now = self._loop.time()
        since = now if self._waiting_since is None else self._waiting_since
        if now - since >= self._idle_s:
            self._response.content.set_exception(TimeoutError())
        elif now - self._began >= MAX_STREAM_S:
            message = f"its answer takes longer than {MAX_STREAM_S:g} s"
            error = UpstreamError(say(self._deployment, message))
            self._response.content.set_exception(error)
        else:
            self._look_again_at(since + self._idle_s)

    def _look_again_at(self, when: float) -> None:
        self._clock = self._loop.call_at(
            min(when, self._began + MAX_STREAM_S), _look_at_clock, weakref.ref(self)
        )


def _look_at_clock(stream: "weakref.ref[EventStream]") -> None:
    """One timer a stream, not one a chunk; it keeps nobody's stream alive."""
    found = stream()
    if found is not None:
        found.check_silence()
