"""A streamed answer of a server that speaks Anthropic's messages."""

from typing import Any

import aiohttp
import msgspec

from nestor.backends.anthropic.wire import (
    Counts,
    counts_of,
    error_status,
    says_something,
)
from nestor.backends.model_http.border import error_text, say
from nestor.backends.model_http.cut import split
from nestor.backends.model_http.stream import EventStream
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment
from nestor.model.sse import data_of
from nestor.model.task import Usage


class AnthropicStream(EventStream):
    """See ``EventStream``. Usage comes at the start and, cumulative, near the end.

    What the start says of the output is a first guess, and an input of nothing means that
    it is not counted yet: neither counts until the stream has ended. The same goes for the
    output that is told before the answer has stopped.
    """

    def __init__(
        self, deployment: Deployment, response: aiohttp.ClientResponse, *, idle_s: float
    ) -> None:
        super().__init__(deployment, response, idle_s=idle_s)
        self._counts = Counts()
        self._begun = Counts()
        """What the start said."""
        self._more = self._stopped = False

    def usage(self) -> Usage:
        """What the events said so far; of the output only what is the last word on it."""
        if self._stopped:
            return self._usage
        return msgspec.structs.replace(
            self._usage, output_tokens=None, reasoning_tokens=None
        )

    def _look(self, piece: bytes) -> bytes:
        if b'"message_' not in piece and b'"error"' not in piece:
            return piece
        kept: list[bytes] = []
        for event in split(piece):
            kept.append(event)
            match data_of(event) or {}:
                case {"type": "message_start", "message": {"usage": usage}}:
                    self._start(counts_of(usage))
                case {"type": "message_delta", **rest}:
                    self._more = True
                    self._count(counts_of(rest.get("usage")))
                    delta = rest.get("delta")
                    if isinstance(delta, dict) and delta.get("stop_reason"):
                        self._stopped = True
                case {"type": "message_stop"}:
                    self._done = True
                    self._end()
                    break
                case {"type": "error", **rest}:
                    kept.pop()
                    message = say(self._deployment, error_text(rest))
                    status = error_status(rest.get("error"))
                    self._failure = UpstreamError(message, status=status)
                    break
        return b"".join(kept)

    def _speaks(self, event: dict[str, Any]) -> bool:
        return says_something(event)

    def _all_is_said(self) -> bool:
        return True

    def _start(self, counts: Counts) -> None:
        self._begun = counts
        if counts.usage().input_tokens:
            self._count(msgspec.structs.replace(counts, output_tokens=None))

    def _end(self) -> None:
        """Take the guess where nothing else was said; not where what says it is missing."""
        if not self._more:
            return
        self._stopped = True
        if None in (self._usage.input_tokens, self._usage.output_tokens):
            self._counts = self._begun.followed_by(self._counts)
            self._usage = self._counts.usage()

    def _count(self, counts: Counts) -> None:
        self._counts = self._counts.followed_by(counts)
        self._usage: Usage = self._counts.usage()
