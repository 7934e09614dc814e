"""A streamed answer of an OpenAI-compatible server."""

from typing import Any

import aiohttp
import msgspec

from nestor.backends.model_http.border import error_text, say
from nestor.backends.model_http.cut import split, start_of_event
from nestor.backends.model_http.stream import EventStream
from nestor.backends.openai.wire import (
    error_status,
    finishes,
    first_to_read,
    is_usage_only,
    larger,
    says_something,
    usage_of,
)
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment
from nestor.model.sse import data_of, is_done
from nestor.model.task import Usage

_ERROR_EVENT = (b"event: error", b"event:error")


class OpenAIStream(EventStream):
    """See ``EventStream``. Usage is read from any chunk, and from what follows the end.

    The extra chunk that usage comes in is passed on only when the caller asked for it
    too: some clients fail on a chunk without choices.
    """

    def __init__(
        self,
        deployment: Deployment,
        response: aiohttp.ClientResponse,
        *,
        keep_usage_event: bool,
        idle_s: float,
    ) -> None:
        super().__init__(deployment, response, idle_s=idle_s)
        self._keep_usage_event = keep_usage_event
        self._running = Usage()
        """Of chunks that carry text as well: some servers count along."""

    def usage(self) -> Usage:
        """What the events said so far; of the output only what is the last word on it."""
        if self._finished:
            return larger(self._usage, self._running)
        so_far = msgspec.structs.replace(
            self._running, output_tokens=None, reasoning_tokens=None
        )
        return larger(self._usage, so_far)

    def _look(self, piece: bytes) -> bytes:
        if not self._finished:
            self._finished = finishes(piece)
        position = first_to_read(piece)
        if position < 0 and not self._done:
            return piece
        start = start_of_event(piece, max(position, 0))
        return piece[:start] + self._read_events(piece[start:])

    def _speaks(self, event: dict[str, Any]) -> bool:
        return says_something(event)

    def _all_is_said(self) -> bool:
        return self.usage().output_tokens is not None

    def _read_events(self, piece: bytes) -> bytes:
        kept: list[bytes] = []
        for event in split(piece):
            goes_on = not self._done
            if is_done(event):
                if goes_on:
                    self._last, self._done = event, True
                continue
            if (data := data_of(event)) is not None:
                if data.get("error") or event.startswith(_ERROR_EVENT):
                    self._fail(data)
                    break
                if data.get("usage"):
                    self._count(data)
                if is_usage_only(data) and not self._keep_usage_event:
                    continue
            if goes_on:
                kept.append(event)
        return b"".join(kept)

    def _count(self, data: dict[str, Any]) -> None:
        counts = usage_of(data["usage"])
        if data.get("choices"):
            self._running = larger(self._running, counts)
        else:
            self._usage = larger(self._usage, counts)

    def _fail(self, data: dict[str, Any]) -> None:
        if self._done:
            return  # the answer was whole before
        message = say(self._deployment, error_text(data))
        self._failure = UpstreamError(message, status=error_status(data.get("error")))
