"""What is put to one upstream, in the dialect it speaks, and what its answer says."""

from typing import Any

import msgspec

from nestor.coordinator.dialects import to_anthropic
from nestor.coordinator.dialects.anthropic_chunks import reply_of
from nestor.coordinator.dialects.face import Face, Translated
from nestor.errors import InvalidInput
from nestor.model.routing import Dialect
from nestor.ports.model_client import ModelClient, ModelReply, ModelStream


class Asking:
    """A request of one caller, said once for each dialect that is asked."""

    def __init__(self, face: Face, request: dict[str, Any]) -> None:
        self.face = face
        self.request = request
        self._said: dict[Dialect, Translated] = {}

    @property
    def dialect(self) -> Dialect:
        """The caller's."""
        return self.face.dialect

    def prepare(self, dialect: Dialect) -> dict[str, Any]:
        """Return the request in ``dialect``. Raises ``InvalidInput`` where it has no words."""
        if dialect is self.face.dialect:
            return self.request
        said = self._said.get(dialect)
        if said is None:
            said = self._said[dialect] = self._translated(dialect)
        return said.body

    def left_out(self, dialect: Dialect) -> tuple[str, ...]:
        """Return what an upstream that speaks ``dialect`` could not be told."""
        said = self._said.get(dialect)
        return () if said is None else said.left_out

    def _translated(self, dialect: Dialect) -> Translated:
        chat = self.face.to_chat(self.request)
        if dialect is Dialect.OPENAI:
            return chat
        # Without a limit of the caller, the deployment's counts: its client knows it.
        said = to_anthropic.request_of(chat.body, max_tokens=None)
        left_out = dict.fromkeys((*chat.left_out, *said.left_out))
        return Translated(body=said.body, left_out=tuple(left_out))


class Say(Asking):
    """Ask for a whole answer."""

    async def ask(self, client: ModelClient, body: dict[str, Any]) -> ModelReply:
        """Put it to one upstream."""
        return await client.complete(body)

    def said(self, reply: ModelReply, dialect: Dialect) -> bytes:
        """Return a reply of an upstream that speaks ``dialect`` in the caller's words.

        Raises ``UpstreamError`` for an answer without words.
        """
        if dialect is self.face.dialect:
            return reply.raw
        chat = reply.body if dialect is Dialect.OPENAI else reply_of(reply.body)
        if self.face.dialect is Dialect.OPENAI:
            return msgspec.json.encode(chat)
        return msgspec.json.encode(self.face.reply(chat, self.request))


class Stream(Asking):
    """Ask for an answer as it comes."""

    async def ask(self, client: ModelClient, body: dict[str, Any]) -> ModelStream:
        """Put it to one upstream; returns with the first token."""
        return await client.stream(body)


class Embed:
    """Ask for embeddings."""

    dialect = Dialect.OPENAI

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request

    def prepare(self, dialect: Dialect) -> dict[str, Any]:
        """Return the request. Raises ``InvalidInput`` for servers without embeddings."""
        if dialect is not Dialect.OPENAI:
            raise InvalidInput.at("model", f"{dialect} servers make no embeddings")
        return self.request

    def left_out(self, dialect: Dialect) -> tuple[str, ...]:  # noqa: ARG002 - as Say
        """Return nothing: it is passed on as it is."""
        return ()

    async def ask(self, client: ModelClient, body: dict[str, Any]) -> ModelReply:
        """Put it to one upstream."""
        return await client.embed(body)

    def said(self, reply: ModelReply, dialect: Dialect) -> bytes:  # noqa: ARG002 - as Say
        """Return the reply as it came."""
        return reply.raw
