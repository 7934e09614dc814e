"""The model behind a ``LlamaCppServer``, wherever it listens at the moment."""

from typing import Any

import aiohttp
import msgspec

from nestor.backends.llama_cpp.server import Endpoint, LlamaCppServer
from nestor.backends.openai.client import OpenAIClient
from nestor.model.routing import Deployment, Dialect
from nestor.ports.model_client import ModelReply, ModelStream


class LlamaCppClient:
    """Implements ``ports.model_client.ModelClient``.

    Raises ``CircuitOpen`` while the model loads; waits for nothing. The server is
    started and stopped by whoever made it.
    """

    dialect = Dialect.OPENAI

    def __init__(
        self,
        server: LlamaCppServer,
        deployment: Deployment,
        session: aiohttp.ClientSession,
    ) -> None:
        self._server = server
        self._deployment = deployment
        self._session = session
        self._known: tuple[Endpoint, OpenAIClient] | None = None

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask and wait for the whole answer."""
        return await self._client().complete(request)

    async def stream(self, request: dict[str, Any]) -> ModelStream:
        """Ask; returns once the first token is there."""
        return await self._client().stream(request)

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        """Ask for embeddings; a server that loaded a model for chats says it has none."""
        return await self._client().embed(request)

    async def close(self) -> None:
        """Nothing of its own to let go of."""

    def _client(self) -> OpenAIClient:
        endpoint = self._server.endpoint()
        if self._known is None or self._known[0] != endpoint:
            deployment = msgspec.structs.replace(
                self._deployment, base_url=endpoint.base_url, api_key=endpoint.api_key
            )
            self._known = (endpoint, OpenAIClient(deployment, self._session))
        return self._known[1]
