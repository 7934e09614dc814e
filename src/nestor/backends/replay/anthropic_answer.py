"""A message as its events, and put together from them."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from nestor.backends.replay.openai_answer import WORDS
from nestor.model.sse import data_of
from nestor.model.task import Usage

_OPENS_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
    "server_tool_use": {"input": {}},
}


class Assembly:
    """Makes the whole message out of the events of a streamed one."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}

    def take(self, event: bytes) -> None:
        """Take the next event."""
        match data_of(event):
            case {"type": "message_start", "message": dict(message)}:
                self._message = dict(message)
            case {
                "type": "content_block_start",
                "index": int(index),
                "content_block": dict(block),
            }:
                self._blocks[index] = dict(block)
            case {
                "type": "content_block_delta",
                "index": int(index),
                "delta": dict(delta),
            }:
                self._add(index, delta)
            case {"type": "message_delta", "delta": dict(delta), **rest}:
                self._message |= delta
                if isinstance(usage := rest.get("usage"), dict):
                    before = self._message.get("usage") or {}
                    self._message["usage"] = {**before, **usage}

    def answer(self, usage: Usage) -> dict[str, Any]:
        """Return the ``message``; its usage is the one that its events gave."""
        del usage
        for index, text in self._inputs.items():
            with suppress(msgspec.DecodeError):
                self._blocks[index]["input"] = msgspec.json.decode(text or "{}")
        blocks = [self._blocks[index] for index in sorted(self._blocks)]
        return {**self._message, "content": blocks}

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks.setdefault(index, {})
        match delta:
            case {"type": "input_json_delta", "partial_json": str(text)}:
                self._inputs[index] = self._inputs.get(index, "") + text
            case {"type": "citations_delta", "citation": citation}:
                block["citations"] = [*(block.get("citations") or []), citation]
            case _:
                for name in ("text", "thinking", "signature"):
                    if isinstance(more := delta.get(name), str):
                        block[name] = (block.get(name) or "") + more


def events(response: dict[str, Any], *, with_usage: bool) -> Iterator[bytes]:
    """Say a whole message a word at a time, as a server would stream it."""
    del with_usage  # it is part of the dialect
    usage = response.get("usage") or {}
    ends = {name: response.get(name) for name in ("stop_reason", "stop_sequence")}
    start = {**response, "content": [], **dict.fromkeys(ends)}
    start["usage"] = {**usage, "output_tokens": min(1, usage.get("output_tokens") or 0)}
    yield _event({"type": "message_start", "message": start})
    for index, block in enumerate(response.get("content") or []):
        yield from _block(index, block)
    said = {"output_tokens": usage.get("output_tokens") or 0}
    yield _event({"type": "message_delta", "delta": ends, "usage": said})
    yield _event({"type": "message_stop"})


def _block(index: int, block: dict[str, Any]) -> Iterator[bytes]:
    empty = {**block, **_OPENS_EMPTY.get(str(block.get("type")), {})}
    empty.pop("citations", None)
    opened = {"type": "content_block_start", "index": index, "content_block": empty}
    yield _event(opened)
    for delta in _deltas(block):
        yield _event({"type": "content_block_delta", "index": index, "delta": delta})
    yield _event({"type": "content_block_stop", "index": index})


def _deltas(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    match block.get("type"):
        case "text":
            for word in WORDS.findall(block.get("text") or ""):
                yield {"type": "text_delta", "text": word}
            for citation in block.get("citations") or []:
                yield {"type": "citations_delta", "citation": citation}
        case "thinking":
            for word in WORDS.findall(block.get("thinking") or ""):
                yield {"type": "thinking_delta", "thinking": word}
            signature = block.get("signature") or ""
            yield {"type": "signature_delta", "signature": signature}
        case "tool_use" | "server_tool_use":
            text = msgspec.json.encode(block.get("input") or {}).decode()
            yield {"type": "input_json_delta", "partial_json": text}


def _event(event: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (
        str(event["type"]).encode(),
        msgspec.json.encode(event),
    )
