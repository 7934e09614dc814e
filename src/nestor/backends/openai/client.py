"""One OpenAI-compatible endpoint over HTTP."""

import re
from typing import Any

import aiohttp
import msgspec

from nestor.backends.model_http.border import error_text, say
from nestor.backends.model_http.endpoint import Endpoint, value_of
from nestor.backends.model_http.stream import IDLE_S
from nestor.backends.openai.stream import OpenAIStream
from nestor.backends.openai.wire import Head, error_status, usage_of
from nestor.errors import UpstreamError
from nestor.model.routing import Deployment, Dialect
from nestor.ports.model_client import ModelReply

MAX_REPLY_BYTES = 16 * 1024 * 1024
MAX_EMBEDDINGS_BYTES = 64 * 1024 * 1024
"""2,048 vectors of 1,536 numbers, as text."""
_CHOICES = re.compile(rb"\[\s*\{")
_LIST = re.compile(rb"\[\s*[^\]\s]")


class OpenAIClient:
    """Implements ``ports.model_client.ModelClient`` for a base URL ending in ``/v1``.

    ``deployment.timeout_s`` bounds a whole answer, and the first token of a streamed
    one; after that ``idle_s`` bounds each silence. Give it a ``resolver.model_session``,
    whose connections are kept between calls; it stays the giver's.
    """

    dialect = Dialect.OPENAI

    def __init__(
        self,
        deployment: Deployment,
        session: aiohttp.ClientSession,
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        key = deployment.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._deployment = deployment
        self._endpoint = Endpoint(deployment, session, headers)
        self._chats = self._endpoint.url("/chat/completions")
        self._embeddings = self._endpoint.url("/embeddings")
        self._idle_s = idle_s

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask and wait for the whole answer, at most 16 MiB of it."""
        body = {**request, "model": self._deployment.model}
        body.pop("stream", None)
        body.pop("stream_options", None)  # OpenAI refuses it without ``stream``
        raw = await self._endpoint.whole(self._chats, body, limit=MAX_REPLY_BYTES)
        head = self._endpoint.decoded(raw, Head)
        if _CHOICES.match(head.choices) is None:
            raise self._no_answer(head, "the answer has no choices")
        return ModelReply(raw=raw, usage=usage_of(value_of(head.usage)))

    async def stream(self, request: dict[str, Any]) -> OpenAIStream:
        """Ask; returns once the first token is there, so that until then nothing is lost.

        Usage is always asked for.
        """
        options = request.get("stream_options")
        options = options if isinstance(options, dict) else {}
        body = {**request, "model": self._deployment.model, "stream": True}
        body["stream_options"] = {**options, "include_usage": True}
        keep = options.get("include_usage") is True
        return await self._endpoint.begin(
            self._chats,
            body,
            lambda response: OpenAIStream(
                self._deployment, response, keep_usage_event=keep, idle_s=self._idle_s
            ),
        )

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        """Ask for embeddings and wait for all of them, at most 64 MiB."""
        body = {**request, "model": self._deployment.model}
        raw = await self._endpoint.whole(
            self._embeddings, body, limit=MAX_EMBEDDINGS_BYTES
        )
        head = self._endpoint.decoded(raw, Head)
        if _LIST.match(head.data) is None:
            raise self._no_answer(head, "the answer has no embeddings")
        usage = usage_of(value_of(head.usage))
        if usage.output_tokens is None and usage.input_tokens is not None:
            # Nothing is written, and servers leave the count out.
            usage = msgspec.structs.replace(usage, output_tokens=0)
        return ModelReply(raw=raw, usage=usage)

    async def close(self) -> None:
        """Nothing of its own to let go of."""

    def _no_answer(self, head: Head, otherwise: str) -> UpstreamError:
        """Make an error of a reply that is none: some servers say 200 and mean it not."""
        error = value_of(head.error)
        if not error:
            return UpstreamError(say(self._deployment, otherwise))
        message = say(self._deployment, error_text({"error": error}))
        return UpstreamError(message, status=error_status(error))
