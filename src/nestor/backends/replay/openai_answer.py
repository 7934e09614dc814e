"""A chat completion as its events, and put together from them."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from nestor.backends.openai.wire import is_usage_only
from nestor.model.sse import data_of
from nestor.model.task import Usage

WORDS = re.compile(r"\S+\s*|\s+")
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


class Assembly:
    """Makes the whole answer out of the chunks of a streamed one."""

    def __init__(self) -> None:
        self._envelope: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None

    def take(self, event: bytes) -> None:
        """Take the next event."""
        data = data_of(event)
        if data is None or is_usage_only(data):
            return
        self._envelope = self._envelope or data
        for choice in data.get("choices") or []:
            if choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta") or {}
            for name, parts in self._texts.items():
                if isinstance(text := delta.get(name), str):
                    parts.append(text)
            for piece in delta.get("tool_calls") or []:
                self._add_call(piece)
            self._finish = choice.get("finish_reason") or self._finish

    def answer(self, usage: Usage) -> dict[str, Any]:
        """Return the ``chat.completion``."""
        texts = {name: "".join(parts) for name, parts in self._texts.items()}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": texts.pop("content") or None,
        }
        message |= {name: text for name, text in texts.items() if text}
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
            body["usage"] = _usage(usage)
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


def events(response: dict[str, Any], *, with_usage: bool) -> Iterator[bytes]:
    """Say a whole answer a word at a time, as a server would stream it."""
    for chunk in _chunks(response):
        yield _event(chunk)
    if with_usage and "usage" in response:
        yield _event(_envelope(response, [], usage=response["usage"]))
    yield b"data: [DONE]\n\n"


def _chunks(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    choice = response["choices"][0]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for name in ("reasoning_content", "reasoning", "content", "refusal"):
        deltas += [{name: word} for word in WORDS.findall(message.get(name) or "")]
    for number, call in enumerate(message.get("tool_calls") or []):
        deltas.append({"tool_calls": [{"index": number, **call}]})
    for delta in deltas:
        open_ = {"index": 0, "delta": delta, "finish_reason": None}
        yield _envelope(response, [open_])
    last = {"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}
    yield _envelope(response, [last])


def _envelope(
    response: dict[str, Any],
    choices: list[dict[str, Any]],
    *,
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    head = {name: response.get(name) for name in ("id", "created", "model")}
    chunk = {**head, "object": "chat.completion.chunk", "choices": choices}
    return chunk if usage is None else {**chunk, "usage": usage}


def _usage(usage: Usage) -> dict[str, Any]:
    said: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total,
    }
    if usage.cached_tokens is not None:
        said["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        details = {"reasoning_tokens": usage.reasoning_tokens}
        said["completion_tokens_details"] = details
    return said


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
