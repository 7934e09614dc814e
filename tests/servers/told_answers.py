"""What a client was told, read strictly: an answer, where it ends, and how.

Each dialect's rules are written down here once more, from its documentation; nothing of
the product is used.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Usage = tuple[int, int]
"""Input and output tokens."""


class End(StrEnum):
    """How an answer ended."""

    WHOLE = "whole"
    ERROR = "error"
    """It says that, and why, it is none or not whole."""
    GARBLED = "garbled"
    """Something in it cannot be read: any SDK raises there."""
    NONE = "none"
    """It just stops."""


@dataclass
class Told:
    """``text``: up to the end, whatever that is."""

    end: End
    text: str = ""
    usage: Usage | None = None
    why: str = ""


def reply(dialect: str, status: int, raw: bytes) -> Told:
    """Read an answer that is no stream."""
    try:
        body = json.loads(raw)
    except ValueError:
        return Told(End.GARBLED, why=f"no JSON: {raw[:80]!r}")
    if status != 200:
        return Told(End.ERROR, why=_error(dialect, body))
    if dialect == "anthropic":
        assert body["type"] == "message", body
        assert body["stop_reason"] == "end_turn", body
        blocks = body["content"]
        text = "".join(b["text"] for b in blocks if b["type"] == "text")
        return Told(End.WHOLE, text, _usage(body.get("usage"), "input_tokens"))
    if dialect == "responses":
        return _response(body)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop", body
    usage = _usage(body.get("usage"), "prompt_tokens")
    return Told(End.WHOLE, choice["message"]["content"], usage)


def stream(dialect: str, raw: bytes) -> Told:
    """Read a stream up to its last byte."""
    *events, rest = raw.split(b"\n\n")
    read = {"anthropic": _Anthropic, "responses": _Responses}.get(dialect, _Chat)()
    for event in events:
        assert read.end is End.NONE, f"after the end: {event[:200]!r}"
        data = _data(event)
        if data is None:
            return Told(End.GARBLED, read.text, why=repr(event[:80]))
        if data:
            read.take(data)
    if rest.strip():
        return Told(End.NONE, read.text, why=f"half an event: {rest[:80]!r}")
    read.close()
    return Told(read.end, read.text, read.usage, read.why)


def _data(event: bytes) -> Any:
    """Return what an event carries: {} for a comment, ``[DONE]``, None for what is no JSON."""
    lines = event.split(b"\n")
    data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    if not data:
        return {} if event.startswith(b":") else None
    if data == [b"[DONE]"]:
        return "[DONE]"
    try:
        found = json.loads(b"\n".join(data).decode())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Reader:
    def __init__(self) -> None:
        self.end = End.NONE
        self.text = ""
        self.usage: Usage | None = None
        self.why = ""

    def take(self, data: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more comes."""

    def fail(self, why: str) -> None:
        assert why
        self.end, self.why = End.ERROR, why


class _Chat(_Reader):
    """Ends in ``[DONE]``, or with an error. A server may leave the first away."""

    finished = False

    def take(self, data: Any) -> None:
        if data == "[DONE]":
            assert self.finished, "the end of an answer that did not finish"
            self.end = End.WHOLE
            return
        if "error" in data:
            self.fail(_error("openai", data))
            return
        for choice in data["choices"]:
            said = (choice.get("delta") or {}).get("content") or ""
            assert not (said and self.finished), "text after the finish"
            self.text += said
            self.finished = self.finished or bool(choice.get("finish_reason"))
        self.usage = _usage(data.get("usage"), "prompt_tokens") or self.usage

    def close(self) -> None:
        if self.end is End.NONE and self.finished:
            self.end = End.WHOLE


class _Anthropic(_Reader):
    def __init__(self) -> None:
        super().__init__()
        self.began = False
        self.open: int | None = None
        self.stopped = False
        self.counts: dict[str, Any] = {}

    def take(self, data: Any) -> None:
        kind = data["type"]
        if kind == "error":
            self.fail(_error("anthropic", data))
            return
        assert self.began or kind == "message_start", f"begins with {kind}"
        match kind:
            case "message_start":
                assert not self.began, "begins twice"
                self.began = True
                self.counts.update(data["message"].get("usage") or {})
            case "content_block_start":
                assert self.open is None, "two blocks at once"
                self.open = data["index"]
            case "content_block_delta":
                assert self.open == data["index"], "a piece of no block"
                self.text += data["delta"].get("text", "")
            case "content_block_stop":
                assert self.open == data["index"], "another block ends"
                self.open = None
            case "message_delta":
                self.stopped = bool(data["delta"].get("stop_reason"))
                self._count(data.get("usage") or {})
            case "message_stop":
                assert self.stopped, "ends without a reason"
                assert self.open is None, "ends in a block"
                self.end = End.WHOLE

    def _count(self, usage: dict[str, Any]) -> None:
        """Counts are sums so far: the last stand. A server without any says 0 at best."""
        self.counts.update({name: n for name, n in usage.items() if n})
        if self.counts.get("input_tokens") is not None and usage:
            self.usage = _usage(self.counts, "input_tokens")


class _Responses(_Reader):
    """An error is said twice: for SDKs, and for those that read only the last event."""

    number = 0
    failing = ""

    def take(self, data: Any) -> None:
        assert data["sequence_number"] == self.number, "numbers leave one out"
        self.number += 1
        kind = data["type"]
        assert self.number > 1 or kind in {"response.created", "error"}, kind
        match kind:
            case "error":
                self.failing = str(data["message"])
            case "response.failed":
                assert data["response"]["status"] == "failed"
                self.fail(self.failing or str(data["response"]["error"]["message"]))
            case "response.output_text.delta":
                assert not self.failing
                self.text += data["delta"]
            case "response.completed" | "response.incomplete":
                assert not self.failing
                whole = _response(data["response"])
                assert whole.text == self.text, "the whole is not the sum of its parts"
                self.end, self.usage = End.WHOLE, whole.usage


def _response(body: dict[str, Any]) -> Told:
    assert body["status"] == "completed", body
    parts = [
        part["text"]
        for item in body["output"]
        if item["type"] == "message"
        for part in item["content"]
    ]
    usage = _usage(body.get("usage"), "input_tokens")
    return Told(End.WHOLE, "".join(parts), usage)


def _usage(usage: Any, first: str) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    last = "completion_tokens" if first == "prompt_tokens" else "output_tokens"
    cached = 0
    if first == "input_tokens" and "input_tokens_details" not in usage:
        for name in ("cache_read_input_tokens", "cache_creation_input_tokens"):
            cached += usage.get(name) or 0
    return usage[first] + cached, usage[last]


def _error(dialect: str, body: Any) -> str:
    """Return the words of an error that has the dialect's shape."""
    error = body["error"]
    assert error["message"], body
    assert error["type"], body
    if dialect == "anthropic":
        assert body["type"] == "error", body
        assert body["request_id"], body
    else:
        assert {"code", "param"} <= error.keys(), body
    return str(error["message"])
