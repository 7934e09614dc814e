"""A streamed answer on its way to the caller."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec

from nestor.coordinator.dialects.anthropic_chunks import Chunks, reply_of
from nestor.coordinator.dialects.errors import error_event
from nestor.coordinator.dialects.face import Events, Face
from nestor.coordinator.dialects.openai import chunks_of
from nestor.coordinator.dispatch import CALLER_LEFT, Answered, Dispatcher
from nestor.coordinator.failures import unreadable
from nestor.coordinator.reply_headers import Headers
from nestor.errors import Unavailable, UpstreamError
from nestor.model.routing import Deployment, Dialect
from nestor.model.sse import EventSplitter, data_of, is_unreadable
from nestor.model.task import Usage
from nestor.ports.model_client import ModelStream

_BROKEN = 502


class Streamed:
    """Iterate once (pieces of one or several events), and ``aclose`` it whatever happens.

    The call is settled exactly once: at the end, when the upstream dies, or when the
    caller leaves. An upstream that dies half way ends the stream with an error event of
    the caller's dialect.
    """

    def __init__(
        self,
        answered: Answered[ModelStream],
        dispatcher: Dispatcher,
        face: Face,
        request: dict[str, Any],
        headers: Headers,
        *,
        correct: Callable[[int | None], Awaitable[None]],
    ) -> None:
        """``correct`` is told, once, the tokens that were used; None: unknown."""
        self._answered = answered
        self._stream = answered.value
        self._dispatcher = dispatcher
        self._face = face
        self._correct = correct
        self._closed = False
        self._settled = False
        self._words: _Translation | None = None
        deployment = answered.upstream.deployment
        if deployment.dialect is not face.dialect:
            self._words = _Translation(deployment, face.events(request))
        self.headers = headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            if self._words is None:
                async for piece in self._stream:
                    yield piece
            else:
                async for piece in self._translated(self._words):
                    yield piece
        except Unavailable as error:
            yield self._broken(error)
        except Exception:  # noqa: BLE001 - nothing that a server sends may pass for its end
            yield self._broken(unreadable(self._answered.upstream.deployment))
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Let go of the upstream and settle what is not settled."""
        try:
            await self._stream.aclose()
        finally:
            self._settle(None if self._stream.complete else CALLER_LEFT)
            if not self._closed:
                self._closed = True
                usage = self._stream.usage()
                await self._correct(None if usage.input_tokens is None else usage.total)

    async def _translated(self, words: "_Translation") -> AsyncIterator[bytes]:
        async for piece in self._stream:
            if said := words.feed(piece):
                yield said
            if words.failure is not None:
                raise words.failure
        if said := words.end(self._stream.usage()):
            yield said

    def _broken(self, error: Unavailable) -> bytes:
        """Settle a call that failed half way; return the event that says so."""
        self._answered.upstream.failed(self._answered.permit, error)
        self._settle(str(error))
        return error_event(
            self._face.dialect,
            _BROKEN,
            str(error),
            trace_id=self._answered.context.trace_id,
            events=None if self._words is None else self._words.events,
        )

    def _settle(self, error: str | None) -> None:
        if self._settled:
            return
        self._settled = True
        self._dispatcher.settle(
            self._answered,
            self._stream.usage(),
            replayed=self._stream.replayed,
            error=error,
        )


class Again:
    """An answer that was given before, as events."""

    def __init__(self, events: list[bytes], headers: Headers) -> None:
        self._events = events
        self.headers = headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in self._events:
            yield event

    async def aclose(self) -> None:
        """Nothing is open."""


class _Translation:
    """Events of one dialect in, events of another out, by way of chat chunks."""

    def __init__(self, deployment: Deployment, events: Events) -> None:
        self.events = events
        self.failure: UpstreamError | None = None
        self._deployment = deployment
        self._splitter = EventSplitter()
        spoken = deployment.dialect
        self._chunks = Chunks() if spoken is Dialect.ANTHROPIC else None
        self._told = False
        """A chunk carried counts."""

    def feed(self, piece: bytes) -> bytes:
        """Take a piece of the upstream's stream; return what it comes to.

        ``failure``, once set, follows it: something cannot be read, or has no words here.
        """
        said: list[bytes] = []
        try:
            for event in self._splitter.feed(piece):
                said += self._said(event)
        except UpstreamError as error:
            self.failure = error
        except Exception:  # noqa: BLE001 - what was said before it goes out all the same
            self.failure = unreadable(self._deployment)
        return b"".join(said)

    def end(self, usage: Usage) -> bytes:
        """Return what ends the answer. ``usage``: as the meter has it.

        Some servers say it only after their last event, which is not translated; the
        caller shall be told what is recorded all the same.
        """
        said = b""
        if self._chunks is None and not self._told and usage != Usage():
            said = self.events.feed({"choices": [], "usage": _chat_usage(usage)})
        return said + self.events.end()

    def _said(self, event: bytes) -> list[bytes]:
        data = data_of(event)
        if data is None:
            if is_unreadable(event):
                # What it said is missing: the rest must not look like the whole.
                name = self._deployment.name
                raise UpstreamError(f"{name}: sent what cannot be read")
            return []
        chunks = [data] if self._chunks is None else self._chunks.feed(data)
        self._told = self._told or bool(data.get("usage"))
        return [self.events.feed(chunk) for chunk in chunks]


def _chat_usage(usage: Usage) -> dict[str, Any]:
    """Say counts as a chat chunk does; what is not known is left out."""
    known = msgspec.structs.asdict(usage)
    told = {name: count for name, count in known.items() if count is not None}
    prompt = {n: told[n] for n in ("cached_tokens", "cache_write_tokens") if n in told}
    found: dict[str, Any] = {"prompt_tokens_details": prompt} if prompt else {}
    if "reasoning_tokens" in told:
        thought = {"reasoning_tokens": told["reasoning_tokens"]}
        found["completion_tokens_details"] = thought
    if "input_tokens" in told:
        found["prompt_tokens"] = told["input_tokens"]
    if "output_tokens" in told:
        found["completion_tokens"] = told["output_tokens"]
    return found


def events_again(
    face: Face, request: dict[str, Any], kept: bytes
) -> list[bytes] | None:
    """Render a whole answer of ``face``'s dialect as a stream; None where it cannot be.

    From a response there is no way back to what it was made of.
    """
    if face.dialect is Dialect.RESPONSES:
        return None
    body = msgspec.json.decode(kept)
    chat = body if face.dialect is Dialect.OPENAI else reply_of(body)
    events = face.events(request)
    return [*_said(events, chat), events.end()]


def _said(events: Events, chat: dict[str, Any]) -> Iterator[bytes]:
    for chunk in chunks_of(chat):
        yield events.feed(chunk)
