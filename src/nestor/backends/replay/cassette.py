"""A model client that answers from a cassette, and one that fills it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from nestor.backends.openai.wire import data_of, is_usage_only
from nestor.backends.replay.tape import Cassette, Entry
from nestor.model.routing import Deployment
from nestor.model.task import Usage
from nestor.ports.model_client import ModelClient, ModelReply, ModelStream

__all__ = ["Cassette", "Entry", "RecordingClient", "ReplayClient"]

_WORDS = re.compile(r"\S+\s*|\s+")


class ReplayClient:
    """Implements ``ports.model_client.ModelClient`` without a model: ``replayed`` is True.

    A conversation that was not recorded is an ``UpstreamError`` that shows the
    difference to the nearest one.
    """

    def __init__(self, cassette: Cassette, deployment: Deployment) -> None:
        self._cassette = cassette
        self._deployment = deployment

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Return the recorded answer."""
        entry = self._cassette.find(request)
        return ModelReply(body=entry.response, usage=entry.usage, replayed=True)

    async def stream(self, request: dict[str, Any]) -> "ReplayStream":
        """Return the recorded answer as server-sent events, a word at a time."""
        options = request.get("stream_options") or {}
        wanted = options.get("include_usage") is True
        return ReplayStream(self._cassette.find(request), with_usage=wanted)

    async def close(self) -> None:
        """Nothing is open."""


class ReplayStream:
    """A recorded answer as events."""

    replayed = True

    def __init__(self, entry: Entry, *, with_usage: bool) -> None:
        self._entry = entry
        self._with_usage = with_usage
        self._usage = Usage()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in _chunks(self._entry.response):
            yield _event(chunk)
        self._usage = self._entry.usage
        if self._with_usage and "usage" in self._entry.response:
            usage = self._entry.response["usage"]
            yield _event(_envelope(self._entry.response, [], usage=usage))
        yield b"data: [DONE]\n\n"

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

    async def close(self) -> None:
        """Close the inner client."""
        await self._inner.close()

    def keep(
        self, request: dict[str, Any], response: dict[str, Any], usage: Usage
    ) -> None:
        """Add one answer to the file. No await between reading and writing it."""
        known = Cassette.load(self._path) if self._path.exists() else Cassette()
        known.about = known.about or self._about
        name = self._recorded_from or str(response.get("model") or "unknown")
        known.add(request, response, usage, recorded_from=name)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        known.save(self._path)


class RecordingStream:
    """Passes a stream on, and puts its pieces together."""

    def __init__(
        self, recorder: RecordingClient, request: dict[str, Any], inner: ModelStream
    ) -> None:
        self._recorder = recorder
        self._request = request
        self._inner = inner
        self.replayed = inner.replayed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        answer = _Assembly()
        async for event in self._inner:
            answer.take(event)
            yield event
        usage = self._inner.usage()
        self._recorder.keep(self._request, answer.completion(usage), usage)

    def usage(self) -> Usage:
        """What the chunks said so far."""
        return self._inner.usage()

    async def aclose(self) -> None:
        """Let go of the inner stream."""
        await self._inner.aclose()


class _Assembly:
    """Makes the whole answer out of the chunks of a streamed one."""

    def __init__(self) -> None:
        self._envelope: dict[str, Any] = {}
        self._text: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None

    def take(self, event: bytes) -> None:
        data = data_of(event)
        if data is None or is_usage_only(data):
            return
        self._envelope = self._envelope or data
        for choice in data.get("choices") or []:
            if choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta") or {}
            self._text.append(delta.get("content") or "")
            for piece in delta.get("tool_calls") or []:
                self._add_call(piece)
            self._finish = choice.get("finish_reason") or self._finish

    def completion(self, usage: Usage) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self._text) or None,
        }
        if self._calls:
            message["tool_calls"] = [self._calls[n] for n in sorted(self._calls)]
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        body = {
            "id": self._envelope.get("id", ""),
            "object": "chat.completion",
            "created": self._envelope.get("created", 0),
            "model": self._envelope.get("model", ""),
            "choices": [choice],
        }
        if usage.input_tokens is not None and usage.output_tokens is not None:
            body["usage"] = {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.total,
            }
        return body

    def _add_call(self, piece: dict[str, Any]) -> None:
        call = self._calls.setdefault(
            piece.get("index", 0),
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = piece.get("id") or call["id"]
        function = piece.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _chunks(response: dict[str, Any]) -> list[dict[str, Any]]:
    choice = response["choices"][0]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [
        {"content": word} for word in _WORDS.findall(message.get("content") or "")
    ]
    for number, call in enumerate(message.get("tool_calls") or []):
        deltas.append({"tool_calls": [{"index": number, **call}]})
    chunks = [
        _envelope(response, [{"index": 0, "delta": delta, "finish_reason": None}])
        for delta in deltas
    ]
    last = {"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}
    return [*chunks, _envelope(response, [last])]


def _envelope(
    response: dict[str, Any],
    choices: list[dict[str, Any]],
    *,
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    head = {name: response.get(name) for name in ("id", "created", "model")}
    chunk = {**head, "object": "chat.completion.chunk", "choices": choices}
    return chunk if usage is None else {**chunk, "usage": usage}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
