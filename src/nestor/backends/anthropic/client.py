"""One endpoint over HTTP that speaks Anthropic's messages."""

import re
from typing import Any

import aiohttp

from nestor.backends.anthropic.stream import AnthropicStream
from nestor.backends.anthropic.wire import Head, counts_of, error_status
from nestor.backends.model_http.border import error_text, say
from nestor.backends.model_http.endpoint import Endpoint, value_of
from nestor.backends.model_http.stream import IDLE_S
from nestor.errors import InvalidInput, UpstreamError
from nestor.model.routing import BETAS, DEFAULT_MAX_TOKENS, Deployment, Dialect
from nestor.ports.model_client import ModelReply

VERSION = "2023-06-01"
"""The only value of ``anthropic-version`` in use; what is newer is asked for by field."""
MAX_REPLY_BYTES = 16 * 1024 * 1024
_LIST = re.compile(rb"\s*\[")


class AnthropicClient:
    """Implements ``ports.model_client.ModelClient`` for Anthropic's ``/v1/messages``.

    The base URL is what Anthropic's own SDKs take, without ``/v1``
    (``https://api.anthropic.com``); one that ends in ``/v1`` means the same server.
    Times and connections are those of ``OpenAIClient``.
    """

    dialect = Dialect.ANTHROPIC

    def __init__(
        self,
        deployment: Deployment,
        session: aiohttp.ClientSession,
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        headers = {"anthropic-version": VERSION}
        if deployment.api_key:
            headers["x-api-key"] = deployment.api_key
        self._deployment = deployment
        self._endpoint = Endpoint(deployment, session, headers)
        versioned = self._endpoint.path.endswith("/v1")
        self._messages = self._endpoint.url(
            "/messages" if versioned else "/v1/messages"
        )
        self._idle_s = idle_s

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask and wait for the whole answer, at most 16 MiB of it."""
        body = self._body(request)
        body.pop("stream", None)
        raw = await self._endpoint.whole(
            self._messages, body, limit=MAX_REPLY_BYTES, headers=_betas(body)
        )
        head = self._endpoint.decoded(raw, Head)
        if value_of(head.type) == "message" and _LIST.match(head.content):
            return ModelReply(raw=raw, usage=counts_of(value_of(head.usage)).usage())
        error = value_of(head.error)
        if not error:
            raise UpstreamError(say(self._deployment, "the answer is no message"))
        message = say(self._deployment, error_text({"error": error}))
        raise UpstreamError(message, status=error_status(error))

    async def stream(self, request: dict[str, Any]) -> AnthropicStream:
        """Ask; returns once the first token is there, so that until then nothing is lost."""
        body = self._body(request)
        body["stream"] = True
        return await self._endpoint.begin(
            self._messages,
            body,
            lambda response: AnthropicStream(
                self._deployment, response, idle_s=self._idle_s
            ),
            headers=_betas(body),
        )

    def _body(self, request: dict[str, Any]) -> dict[str, Any]:
        # A message must say how long it may get.
        limit = self._deployment.max_output_tokens or DEFAULT_MAX_TOKENS
        return {"max_tokens": limit, **request, "model": self._deployment.model}

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        """There are none: raises ``InvalidInput``."""
        del request
        name = self._deployment.name
        raise InvalidInput.at(
            "model", f"{name} speaks Anthropic's messages, which have no embeddings"
        )

    async def close(self) -> None:
        """Nothing of its own to let go of."""


def _betas(body: dict[str, Any]) -> dict[str, str]:
    """Take the betas that a caller asks for out of the body: they go in a header."""
    asked = body.pop(BETAS, None)
    return {BETAS: ",".join(asked)} if asked else {}
