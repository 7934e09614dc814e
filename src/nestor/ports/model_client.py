"""One model endpoint, whatever serves it. tests/contracts/test_model_client.py."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from nestor.model.task import Usage


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer: the upstream's own JSON body, and what we read from it."""

    body: dict[str, Any]
    usage: Usage
    replayed: bool = False

    @property
    def text(self) -> str:
        """Text of the first choice, or ""."""
        choices = self.body.get("choices") or [{}]
        return (choices[0].get("message") or {}).get("content") or ""


class ModelStream(Protocol):
    """A streamed answer. Iterating gives the upstream's bytes as they came (SSE)."""

    replayed: bool

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def usage(self) -> Usage:
        """What the chunks said so far; fields None while nothing was reported."""
        ...

    async def aclose(self) -> None:
        """Let go of the upstream, also half way."""
        ...


class ModelClient(Protocol):
    """Speaks one dialect to one endpoint. The request is OpenAI's chat-completions body.

    ``model`` in the request is replaced by the deployment's. Errors: ``UpstreamError``
    (with the upstream's status) or ``Unavailable`` (connect, time limit).
    """

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask and wait for the whole answer."""
        ...

    async def stream(self, request: dict[str, Any]) -> ModelStream:
        """Ask; returns once the upstream has accepted and the first byte is there."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
