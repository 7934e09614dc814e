"""A streamed chat answer as Anthropic's events.

One block is open at a time, as callers know it from Anthropic. The pieces of parallel
calls may come mixed: a call is closed when its arguments are a complete object and
another block waits, and the pieces of those that wait are held. ``message_delta`` is
sent at the end, when the usage is there. What a model thinks is not passed on; a
``ping`` now and then shows meanwhile that the answer goes on.
"""

from io import StringIO
from typing import Any

import msgspec

from nestor.coordinator.dialects.anthropic_reply import (
    call_id_of,
    calls_in,
    choices_in,
    delta_of,
    input_of,
    message_id_of,
    model_of,
    stop_of,
    text_in,
    usage_of,
)
from nestor.coordinator.dialects.kept import PIECE, Room
from nestor.errors import UpstreamError

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_QUIET_CHUNKS = 32
"""A ``ping`` for each so many chunks in a row of which nothing was passed on."""


class _Block:
    """Text, or a call (``number`` is its place among the calls)."""

    __slots__ = (
        "call_id",
        "closed",
        "ends",
        "index",
        "name",
        "number",
        "pending",
        "said",
    )

    def __init__(self, number: int | None = None) -> None:
        self.number = number
        self.index: int | None = None
        self.call_id = self.name = ""
        self.pending = ""
        self.said = StringIO()
        """Of a call; ``ends`` is its last character that is no white space."""
        self.ends = ""
        self.closed = False

    @property
    def ready(self) -> bool:
        """Tell whether it can be opened: not for white space, nor for a call without a name."""
        if self.index is not None:
            return True
        return bool(self.pending.strip() if self.number is None else self.name)

    @property
    def complete(self) -> bool:
        """Tell whether nothing of it can come any more, given that another block began."""
        if self.number is None:
            return True
        if not (self.pending.rstrip() or self.ends).endswith("}"):
            return False
        try:
            input_of(self.said.getvalue() + self.pending, self.name)
        except UpstreamError:
            return False
        return True


class AnthropicEvents:
    """Makes events of chunks: ``Events`` of one answer.

    ``feed`` and ``end`` raise ``UpstreamError`` for an answer without words here.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._message_id = ""
        self._queue: list[_Block] = []
        self._calls: dict[int, _Block] = {}
        self._called = 0
        self._opened = 0
        self._usage: Any = None
        self._end: dict[str, Any] = {}
        self._refused = False
        self._quiet = 0
        self._room = Room()

    def feed(self, chunk: dict[str, Any]) -> bytes:
        """Take one chunk; return whole events, or nothing yet."""
        out: list[bytes] = []
        if not self._message_id:
            self._start(chunk, out)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        for choice in choices_in(chunk):
            self._choice(choice)
        self._send(out, final=False)
        self._quiet = 0 if out else self._quiet + 1
        if self._quiet == _QUIET_CHUNKS:
            self._quiet = 0
            return _PING
        return b"".join(out)

    def end(self) -> bytes:
        """Return what ends an answer: blocks that are open or held, usage, the stop."""
        out: list[bytes] = []
        if not self._message_id:
            self._start({}, out)
        self._send(out, final=True)
        stop, sequence = self._stop()
        usage = {"output_tokens": 0, **usage_of(self._usage)}
        delta = {"stop_reason": stop, "stop_sequence": sequence}
        _event(out, {"type": "message_delta", "delta": delta, "usage": usage})
        _event(out, {"type": "message_stop"})
        return b"".join(out)

    def _start(self, chunk: dict[str, Any], out: list[bytes]) -> None:
        self._message_id = message_id_of(chunk)
        # Nothing is known of the input yet; callers' types want a number all the same.
        usage = {
            "input_tokens": 0,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": None,
            "output_tokens": 0,
        }
        message: dict[str, Any] = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": model_of(chunk, self._request),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        _event(out, {"type": "message_start", "message": message})
        out.append(_PING)

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = delta_of(choice)
        for name in ("audio", "function_call"):
            if delta.get(name):
                message = (
                    f"the model answered with {name!r}, which a message cannot say"
                )
                raise UpstreamError(message)
        refusal = text_in(delta.get("refusal"))
        self._refused = self._refused or bool(refusal)
        text = text_in(delta.get("content")) + refusal
        if text:
            if not self._queue or self._queue[-1].number is not None:
                self._room.take(PIECE)
                self._queue.append(_Block())
            self._room.take(len(text))
            self._queue[-1].pending += text
        for place, call in enumerate(calls_in(delta.get("tool_calls"))):
            self._call(call, place)
        if choice.get("finish_reason"):
            self._end = choice

    def _call(self, call: dict[str, Any], place: int) -> None:
        index = call.get("index")
        index = index if isinstance(index, int) else place
        block, call_id = self._calls.get(index), call.get("id")
        named = isinstance(call_id, str) and call_id
        # Some servers give every call the same index; a new id after a whole call tells.
        if block is None or (named and call_id != block.call_id and block.complete):
            self._room.take(PIECE)
            block = self._calls[index] = _Block(self._called)
            self._called += 1
            self._queue.append(block)
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        block.call_id = block.call_id or self._kept(call_id)
        block.name = block.name or self._kept(function.get("name"))
        more = function.get("arguments") or ""
        if not isinstance(more, str):
            more = msgspec.json.encode(more).decode()
        self._room.take(len(more))
        if not block.closed:
            block.pending += more
        elif more.strip():
            message = f"the model went on with a call of {block.name!r} that was whole"
            raise UpstreamError(message)

    def _kept(self, given: Any) -> str:
        if not isinstance(given, str):
            return ""
        self._room.take(len(given))
        return given

    def _send(self, out: list[bytes], *, final: bool) -> None:
        """Pass on what can be: the first block's pieces, and the next's once it is whole."""
        while self._queue:
            block = self._queue[0]
            last, text = len(self._queue) == 1, block.number is None
            if block.ready or (text and final and last and not self._opened):
                self._pass(block, out)
                if not final and (last or not block.complete):
                    return
                self._close(block, out)
            elif not final and (last or not text):
                return
            elif not text:
                raise UpstreamError("the model called a tool without naming it")
            # else: white space beside something that says something is left out.
            self._queue.pop(0)

    def _pass(self, block: _Block, out: list[bytes]) -> None:
        if block.number is None:
            if block.index is None:
                self._open(block, {"type": "text", "text": ""}, out)
            delta = {"type": "text_delta", "text": block.pending}
        else:
            if block.index is None:
                call_id = call_id_of(block.call_id, self._message_id, block.number)
                start = {"type": "tool_use", "id": call_id, "name": block.name}
                self._open(block, {**start, "input": {}}, out)
            delta = {"type": "input_json_delta", "partial_json": block.pending}
        if block.pending:
            if block.number is not None:
                block.said.write(block.pending)
                block.ends = block.pending.rstrip()[-1:] or block.ends
            block.pending = ""
            said = {"type": "content_block_delta", "index": block.index, "delta": delta}
            _event(out, said)

    def _open(self, block: _Block, start: dict[str, Any], out: list[bytes]) -> None:
        block.index = self._opened
        self._opened += 1
        said = {"type": "content_block_start", "index": block.index}
        _event(out, {**said, "content_block": start})

    def _close(self, block: _Block, out: list[bytes]) -> None:
        if block.number is not None and self._stop()[0] != "max_tokens":
            input_of(block.said.getvalue(), block.name)
        block.closed = True
        _event(out, {"type": "content_block_stop", "index": block.index})

    def _stop(self) -> tuple[str, str | None]:
        called = self._called > 0
        return stop_of(self._end, self._request, called=called, refused=self._refused)


def _event(out: list[bytes], data: dict[str, Any]) -> None:
    name = data["type"].encode()
    out.append(b"event: %b\ndata: %b\n\n" % (name, msgspec.json.encode(data)))
