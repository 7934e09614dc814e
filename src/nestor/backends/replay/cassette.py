"""A model client that answers from a cassette, and one that fills it."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

from nestor.backends.replay import anthropic_answer, openai_answer
from nestor.backends.replay.tape import Cassette, Entry
from nestor.errors import InvalidInput
from nestor.model.routing import Deployment, Dialect
from nestor.model.sse import EventSplitter
from nestor.model.task import Usage
from nestor.ports.model_client import ModelClient, ModelReply, ModelStream

__all__ = ["Cassette", "Entry", "RecordingClient", "ReplayClient"]

_SHAPES: dict[Dialect, ModuleType] = {
    Dialect.OPENAI: openai_answer,
    Dialect.ANTHROPIC: anthropic_answer,
}


class ReplayClient:
    """Implements ``ports.model_client.ModelClient`` without a model: ``replayed`` is True.

    Speaks the deployment's dialect. A conversation that was not recorded in it is an
    ``UpstreamError`` that shows the difference to the nearest one.
    """

    def __init__(self, cassette: Cassette, deployment: Deployment) -> None:
        self.dialect = deployment.dialect
        self._cassette = cassette
        self._deployment = deployment

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Return the recorded answer."""
        entry = self._cassette.find(request, self.dialect)
        return ModelReply(body=entry.response, usage=entry.usage, replayed=True)

    async def stream(self, request: dict[str, Any]) -> "ReplayStream":
        """Return the recorded answer as server-sent events, a word at a time."""
        options = request.get("stream_options") or {}
        wanted = options.get("include_usage") is True
        entry = self._cassette.find(request, self.dialect)
        return ReplayStream(entry, with_usage=wanted)

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        """Return the recorded embeddings."""
        if self.dialect is Dialect.ANTHROPIC:
            said = f"{self._deployment.name} speaks Anthropic's messages"
            raise InvalidInput.at("model", f"{said}, which have no embeddings")
        return await self.complete(request)

    async def close(self) -> None:
        """Nothing is open."""


class ReplayStream:
    """A recorded answer as events."""

    replayed = True

    def __init__(self, entry: Entry, *, with_usage: bool) -> None:
        self.complete = False
        self._entry = entry
        self._with_usage = with_usage
        self._usage = Usage()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        shape = _SHAPES[self._entry.dialect]
        events = list(shape.events(self._entry.response, with_usage=self._with_usage))
        for event in events[:-1]:
            yield event
        self._usage = self._entry.usage
        self.complete = True
        yield events[-1]

    def usage(self) -> Usage:
        """Known once the answer is through, as with a real upstream."""
        return self._usage

    async def aclose(self) -> None:
        """Nothing is open."""


class RecordingClient:
    """Hands calls on to another client and keeps each complete answer in a cassette.

    Several may share a file in one process: each answer is added to what stands there.
    ``recorded_from``: the name kept with each entry; the answering model's own when not
    given.
    """

    def __init__(
        self,
        inner: ModelClient,
        cassette_path: Path,
        *,
        recorded_from: str | None = None,
        about: str = "",
    ) -> None:
        self.dialect = inner.dialect
        self._inner = inner
        self._path = cassette_path
        self._recorded_from = recorded_from
        self._about = about
        if cassette_path.exists():
            Cassette.load(cassette_path)  # a file of another kind is not overwritten

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask the inner client and keep the answer."""
        reply = await self._inner.complete(request)
        self.keep(request, reply.body, reply.usage)
        return reply

    async def stream(self, request: dict[str, Any]) -> "RecordingStream":
        """Ask the inner client; kept once the answer has come to its end."""
        return RecordingStream(self, request, await self._inner.stream(request))

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        """Ask the inner client and keep the embeddings."""
        reply = await self._inner.embed(request)
        self.keep(request, reply.body, reply.usage)
        return reply

    async def close(self) -> None:
        """Close the inner client."""
        await self._inner.close()

    def keep(
        self, request: dict[str, Any], response: dict[str, Any], usage: Usage
    ) -> None:
        """Add one answer to the file. No await between reading and writing it."""
        cassette = Cassette.load(self._path) if self._path.exists() else Cassette()
        cassette.about = cassette.about or self._about
        recorded_from = self._recorded_from or str(response.get("model") or "unknown")
        cassette.add(
            request,
            response,
            usage,
            recorded_from=recorded_from,
            dialect=self.dialect,
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cassette.save(self._path)


class RecordingStream:
    """Passes another stream on, and keeps its answer at its end."""

    def __init__(
        self, recorder: RecordingClient, request: dict[str, Any], inner: ModelStream
    ) -> None:
        self._recorder = recorder
        self._request = request
        self._inner = inner
        self.replayed = inner.replayed
        self.complete = inner.complete

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assembly = _SHAPES[self._recorder.dialect].Assembly()
        splitter = EventSplitter()
        async for piece in self._inner:
            for event in splitter.feed(piece):
                assembly.take(event)
            self.complete = self._inner.complete
            yield piece
        self.complete = self._inner.complete
        usage = self._inner.usage()
        self._recorder.keep(self._request, assembly.answer(usage), usage)

    def usage(self) -> Usage:
        """What the chunks said so far."""
        return self._inner.usage()

    async def aclose(self) -> None:
        """Let go of the inner stream."""
        await self._inner.aclose()
