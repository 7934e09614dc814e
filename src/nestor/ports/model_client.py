"""One model endpoint, whatever serves it. tests/contracts/test_model_client.py."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from nestor.errors import UpstreamError
from nestor.model.routing import Dialect
from nestor.model.task import Usage


class ModelReply:
    """A whole answer: the upstream's own JSON, byte for byte, and what we read from it."""

    __slots__ = ("_body", "raw", "replayed", "usage")

    def __init__(
        self,
        *,
        raw: bytes | None = None,
        body: dict[str, Any] | None = None,
        usage: Usage,
        replayed: bool = False,
    ) -> None:
        """Give ``raw`` or ``body``; the other is made of it (``body`` when it is asked for)."""
        if raw is None:
            raw = msgspec.json.encode(body)
        self.raw = raw
        self._body = body
        self.usage = usage
        self.replayed = replayed

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object, decoded once. Raises ``UpstreamError`` where it is none."""
        if self._body is None:
            try:
                self._body = msgspec.json.decode(self.raw, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise UpstreamError(f"the answer is not JSON: {error}") from error
        return self._body


class ModelStream(Protocol):
    """A streamed answer.

    Iterating gives the upstream's bytes as they came, in pieces that are one or several
    whole server-sent events. Iterate once. Raises ``UpstreamError`` when the upstream
    dies, is silent too long, or reports an error half way; all before it was handed out.
    """

    replayed: bool
    complete: bool
    """The event that ends the answer has been handed out: who leaves now left nothing."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def usage(self) -> Usage:
        """What the events said so far; fields None while nothing was reported."""
        ...

    async def aclose(self) -> None:
        """Let go of the upstream, also half way."""
        ...


class ModelClient(Protocol):
    """Speaks one dialect to one endpoint.

    A request is the body of that dialect (chat completions, messages); its ``model`` is
    replaced by the deployment's, ``stream`` is set by which method is called. Errors:
    ``UpstreamError`` (with the upstream's status, if it gave one) when it was asked,
    ``Unavailable`` when it could not be.
    """

    dialect: Dialect

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask and wait for the whole answer."""
        ...

    async def stream(self, request: dict[str, Any]) -> ModelStream:
        """Ask; returns once the first token is there."""
        ...

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        """Ask for embeddings, in OpenAI's shape. ``InvalidInput`` where there are none."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
