"""A model client that answers from a cassette, and one that fills it."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from nestor.backends.replay import anthropic_answer, openai_answer
from nestor.backends.replay.tape import Cassette, Entry
from nestor.errors import InvalidInput
from nestor.model.health import Dependency, HealthStatus
from nestor.model.routing import Deployment, Dialect
from nestor.model.sse import EventSplitter
from nestor.model.task import Usage
from nestor.ports.model_client import ModelClient, ModelReply, ModelStream
from nestor.telemetry.logs import get_logger

__all__ = ["Cassette", "Entry", "Recording", "RecordingClient", "ReplayClient"]
_log = get_logger("nestor.recording")

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


class Recording:
    """Whether answers are kept; shared by the clients that write one file."""

    def __init__(self) -> None:
        self._lost = 0
        self._why = ""
        self._at: datetime | None = None

    def kept(self) -> None:
        """An answer stands in the file."""
        self._at = datetime.now(UTC)

    def lost(self, error: Exception) -> None:
        """An answer could not be kept. It is the caller's all the same: it is paid."""
        _log.warning("answer_not_recorded", error=repr(error))
        self._lost += 1
        self._why = getattr(error, "strerror", None) or type(error).__name__
        self._at = datetime.now(UTC)

    def dependency(self) -> Dependency:
        """Degraded from the first answer that is missing: a replay will not have it."""
        status, message = None, ""
        if self._lost:
            status = HealthStatus.DEGRADED
            message = f"{self._lost} answers were not kept; the last: {self._why}"
        elif self._at is not None:
            status = HealthStatus.HEALTHY
        return Dependency(
            name="recording", status=status, message=message, last_observed=self._at
        )


class RecordingClient:
    """Hands calls on to another client and keeps each complete answer in a cassette.

    Several may share a file in one process: each answer is added to what stands there.
    What cannot be kept is told to ``recording``, and breaks no call. ``recorded_from``: the name kept with each entry; the answering model's own when not
    given.
    """

    def __init__(
        self,
        inner: ModelClient,
        cassette_path: Path,
        *,
        recorded_from: str | None = None,
        about: str = "",
        recording: Recording | None = None,
    ) -> None:
        self.dialect = inner.dialect
        self.recording = recording or Recording()
        self._inner = inner
        self._path = cassette_path
        self._recorded_from = recorded_from
        self._about = about
        if cassette_path.exists():
            Cassette.load(cassette_path)  # a file of another kind is not overwritten

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask the inner client and keep the answer."""
        reply = await self._inner.complete(request)
        self.keep(request, lambda: reply.body, reply.usage)
        return reply

    async def stream(self, request: dict[str, Any]) -> "RecordingStream":
        """Ask the inner client; kept once the answer has come to its end."""
        return RecordingStream(self, request, await self._inner.stream(request))

    async def embed(self, request: dict[str, Any]) -> ModelReply:
        """Ask the inner client and keep the embeddings."""
        reply = await self._inner.embed(request)
        self.keep(request, lambda: reply.body, reply.usage)
        return reply

    async def close(self) -> None:
        """Close the inner client."""
        await self._inner.close()

    def keep(
        self,
        request: dict[str, Any],
        response: Callable[[], dict[str, Any]],
        usage: Usage,
    ) -> None:
        """Add one answer to the file. No await between reading and writing it."""
        try:
            self._keep(request, response(), usage)
            self.recording.kept()
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer is paid
            self.recording.lost(error)

    def _keep(
        self, request: dict[str, Any], response: dict[str, Any], usage: Usage
    ) -> None:
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
        self._assembly = _SHAPES[recorder.dialect].Assembly()
        """None once it is kept, or cannot be."""
        self._splitter = EventSplitter()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            self._take(piece)
            self.complete = self._inner.complete
            if self.complete:
                self._keep()  # before the last event: who has it may not come back
            yield piece
        self.complete = self._inner.complete
        self._keep()

    def _take(self, piece: bytes) -> None:
        if self._assembly is None:
            return
        try:
            for event in self._splitter.feed(piece):
                self._assembly.take(event)
        except Exception as error:  # noqa: BLE001 - an answer that nobody foresaw
            self._assembly = None
            self._recorder.recording.lost(error)

    def _keep(self) -> None:
        assembly, self._assembly = self._assembly, None
        if assembly is not None:
            usage = self._inner.usage()
            self._recorder.keep(self._request, lambda: assembly.answer(usage), usage)

    def usage(self) -> Usage:
        """What the chunks said so far."""
        return self._inner.usage()

    async def aclose(self) -> None:
        """Let go of the inner stream."""
        await self._inner.aclose()
