"""A streamed answer of an OpenAI-compatible server."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp

from nestor.backends.openai.border import say, translated
from nestor.backends.openai.wire import (
    EventSplitter,
    data_of,
    error_text,
    finishes,
    is_done,
    is_usage_only,
    says_something,
    usage_of,
)
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment
from nestor.model.task import Usage

_MAX_HEAD_BYTES = 1024 * 1024
"""Read without a token: then the caller gets what there is."""


class OpenAIStream:
    """Event by event: bytes as they came, never half an event. Iterate once.

    Iterating raises ``UpstreamError`` when the upstream dies, is silent for ``idle_s``,
    or reports an error half way; every event before that has been handed out by then.
    """

    replayed = False

    def __init__(
        self,
        deployment: Deployment,
        response: aiohttp.ClientResponse,
        *,
        keep_usage_event: bool,
        idle_s: float,
    ) -> None:
        self._deployment = deployment
        self._response = response
        self._keep_usage_event = keep_usage_event
        self._idle_s = idle_s
        self._splitter = EventSplitter()
        self._ready: list[bytes] = []
        self._usage = Usage()
        self._failure: UpstreamError | None = None
        self._finished = False
        self._done = False

    async def wait_for_token(self) -> None:
        """Read until there is a token to show; raises when there will be none."""
        read = 0
        while True:
            chunk = await self._response.content.readany()
            events = self._splitter.feed(chunk)
            self._take(events)
            spoke = any(says_something(data_of(event) or {}) for event in events)
            read += len(chunk)
            if spoke or self._done or read > _MAX_HEAD_BYTES:
                return
            if self._failure is not None:
                raise self._failure
            if not chunk:
                raise UpstreamError(say(self._deployment, "ended before any token"))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                for event in self._ready:
                    yield event
                self._ready = []
                if self._failure is not None:
                    raise self._failure
                if self._done or not await self._read():
                    break
            if not self._done and not self._finished:
                message = say(self._deployment, "ended in the middle of its answer")
                raise UpstreamError(message)
        finally:
            self._response.close()

    def usage(self) -> Usage:
        """What the chunks said so far."""
        return self._usage

    async def aclose(self) -> None:
        """Close the connection at once, so that the upstream stops."""
        self._response.close()

    async def _read(self) -> bool:
        """Take the next bytes; False at the end."""
        with translated(self._deployment, limit_s=self._idle_s):
            async with asyncio.timeout(self._idle_s):
                chunk = await self._response.content.readany()
        self._take(self._splitter.feed(chunk))
        return bool(chunk)

    def _take(self, events: list[bytes]) -> None:
        """Queue events, looking into those where usage or an error may stand."""
        for event in events:
            self._done = self._done or is_done(event)
            self._finished = self._finished or finishes(event)
            if b'"usage"' in event or b'"error"' in event:
                data = data_of(event) or {}
                if data.get("error"):
                    message = say(self._deployment, error_text(data))
                    self._failure = UpstreamError(message)
                    return
                if isinstance(data.get("usage"), dict):
                    self._usage = usage_of(data)
                if is_usage_only(data) and not self._keep_usage_event:
                    continue
            self._ready.append(event)
