"""A streamed chat answer as the events of a Response.

Thoughts and messages are closed when the next item begins; calls, whose pieces may come
mixed, at the end. A custom tool's input is one piece: it is inside of a JSON object, and
only a whole one can be opened.
"""

from collections.abc import Callable
from io import StringIO
from typing import Any

import msgspec

from nestor.coordinator.dialects import responses_reply as words
from nestor.coordinator.dialects.anthropic_reply import choices_in, delta_of, text_in
from nestor.coordinator.dialects.kept import PIECE, Room
from nestor.coordinator.dialects.responses_tools import Toolbox
from nestor.errors import UpstreamError


class _Item:
    """One item of the output while it grows."""

    __slots__ = ("called", "closed", "given", "id", "key", "kind", "parts", "place")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.id = ""
        self.place = -1
        """In the output; -1 while it is not known what it is."""
        self.parts: list[tuple[str, StringIO]] = []
        self.called = {"id": "", "name": ""}
        self.given = StringIO()
        """A call's arguments."""
        self.key: Any = None
        self.closed: dict[str, Any] | None = None


class ResponsesEvents:
    """Makes the events. ``failed`` and ``number`` are for an answer that breaks."""

    def __init__(
        self,
        request: dict[str, Any],
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._request = request
        self._clock = clock
        self._new_id = new_id
        self._toolbox = Toolbox(request, {})
        self._response: dict[str, Any] = {}
        self._items: list[_Item] = []
        self._calls: list[_Item] = []
        self._open: _Item | None = None
        self._numbered = self._sent_numbers = 0
        self._usage: Any = None
        self._reason: str | None = None
        self._room = Room()
        self._out: list[bytes] = []

    def feed(self, chunk: dict[str, Any]) -> bytes:
        """Take one chunk; return whole events. Raises ``UpstreamError``, as ``reply`` does."""
        self._begin(chunk)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        for choice in choices_in(chunk):
            self._take(delta_of(choice))
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason:
                self._reason = reason
        return self._sent()

    def end(self) -> bytes:
        """Close what is open and say the whole response.

        Raises ``UpstreamError``, as ``reply`` does.
        """
        self._begin({})
        self._close_open()
        for item in self._calls:
            self._close_call(item)
        done = words.finish(self._response, self._output(), self._reason, self._usage)
        self._send(f"response.{done['status']}", response=done)
        return self._sent()

    def failed(self, error: dict[str, Any]) -> bytes:
        """Return the event of a response that broke; items that are not whole are left off."""
        if not self._response:
            self._begin({})
            self._numbered -= len(self._out)
        self._out.clear()
        done = {"status": "failed", "error": error, "output": self._output()}
        usage = words.usage_of(self._usage)
        self._send("response.failed", response=self._response | done | {"usage": usage})
        return self._sent()

    def number(self) -> int:
        """Return the number of the next event, and count it; what was not sent is dropped."""
        self._out.clear()
        self._numbered = self._sent_numbers
        return self._next()

    def _next(self) -> int:
        self._numbered += 1
        return self._numbered - 1

    def _begin(self, chunk: dict[str, Any]) -> None:
        if self._response:
            return
        self._response = words.frame(
            chunk, self._request, now=self._clock(), new_id=self._new_id
        )
        self._send("response.created", response=self._response)
        self._send("response.in_progress", response=self._response)

    def _take(self, delta: dict[str, Any]) -> None:
        words.refuse_unknown(delta)
        if thoughts := words.thoughts_in(delta):
            self._write("rs", "reasoning_text", thoughts)
        if text := text_in(delta.get("content")):
            self._write("msg", "output_text", text)
        if refusal := text_in(delta.get("refusal")):
            self._write("msg", "refusal", refusal)
        for number, call in enumerate(words.calls_in(delta.get("tool_calls"))):
            self._call(call, number)

    def _write(self, kind: str, part: str, text: str) -> None:
        item = self._open
        self._room.take(len(text))
        if item is None or item.kind != kind:
            self._room.take(PIECE)
            self._close_open()
            self._open = item = _Item(kind)
            self._add(item, self._whole(item, "in_progress"))
        if not item.parts or item.parts[-1][0] != part:
            self._room.take(PIECE)
            self._close_part(item)
            item.parts.append((part, StringIO()))
            self._send_part("response.content_part.added", item, "")
        item.parts[-1][1].write(text)
        says: dict[str, Any] = {"logprobs": []} if part == "output_text" else {}
        self._send(f"response.{part}.delta", **self._within(item), delta=text, **says)

    def _call(self, call: dict[str, Any], number: int) -> None:
        item = self._find(call, number)
        function = _object(call.get("function"))
        called = item.called
        for name, given in (("id", call.get("id")), ("name", function.get("name"))):
            if isinstance(given, str) and not called[name]:
                self._room.take(len(given))
                called[name] = given
        piece = words.arguments_in(function)
        self._room.take(len(piece))
        item.given.write(piece)
        if item.place < 0:
            if not called["name"]:
                return  # what is said of it starts with its name
            self._close_open()
            self._add(item, {})
            tool = self._toolbox.find(called["name"])
            item.kind = "custom_tool_call" if tool.custom else "function_call"
            begun = self._item_of(item, "in_progress")
            item.id = begun["id"]
            if not tool.custom:
                piece = begun["arguments"]
                begun["arguments"] = ""
            self._send_item("added", item, begun)
        if piece and item.kind == "function_call":
            self._send(
                "response.function_call_arguments.delta",
                item_id=item.id,
                output_index=item.place,
                delta=piece,
            )

    def _find(self, call: dict[str, Any], number: int) -> _Item:
        """Return the call that a piece belongs to.

        Some servers give no index, some the same to all; a new id with a name is a new call.
        """
        key = call.get("index", number)
        named = _object(call.get("function")).get("name")
        for item in reversed(self._calls):
            if item.key == key:
                known, given = item.called["id"], call.get("id")
                if named and known and given and known != given:
                    break
                return item
        self._room.take(PIECE)
        item = _Item("call")
        item.key = key
        self._calls.append(item)
        return item

    def _add(self, item: _Item, begun: dict[str, Any]) -> None:
        item.place = len(self._items)
        self._items.append(item)
        if begun:
            item.id = words.item_id(self._response, item.kind, item.place)
            self._send_item("added", item, begun | {"id": item.id})

    def _close_open(self) -> None:
        item, self._open = self._open, None
        if item is not None:
            self._close_part(item)
            cut = words.is_cut(self._reason) and item.kind == "msg"
            item.closed = self._whole(item, "incomplete" if cut else "completed")
            self._send_item("done", item, item.closed)

    def _close_part(self, item: _Item) -> None:
        if not item.parts:
            return
        kind, pieces = item.parts[-1]
        text = pieces.getvalue()
        says: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        says["refusal" if kind == "refusal" else "text"] = text
        self._send(f"response.{kind}.done", **self._within(item), **says)
        self._send_part("response.content_part.done", item, text)

    def _close_call(self, item: _Item) -> None:
        if item.place < 0:
            raise UpstreamError("the model called a tool without naming it")
        cut = words.is_cut(self._reason) and item is self._calls[-1]
        status = "incomplete" if cut else "completed"
        item.closed = done = self._item_of(item, status)
        where = {"item_id": item.id, "output_index": item.place}
        if item.kind == "custom_tool_call":
            event = "response.custom_tool_call_input"
            if done["input"]:
                self._send(f"{event}.delta", **where, delta=done["input"])
            self._send(f"{event}.done", **where, input=done["input"])
        else:
            event = "response.function_call_arguments.done"
            said = {"name": done["name"], "arguments": done["arguments"]}
            self._send(event, **where, **said)
        self._send_item("done", item, done)

    def _whole(self, item: _Item, status: str) -> dict[str, Any]:
        texts = [(kind, pieces.getvalue()) for kind, pieces in item.parts]
        if item.kind == "rs":
            text = "".join(text for _, text in texts)
            return words.reasoning(item.id, text, status)
        parts = [words.part(kind, text) for kind, text in texts]
        return words.message(item.id, parts, status)

    def _item_of(self, item: _Item, status: str) -> dict[str, Any]:
        called = item.called | {"arguments": item.given.getvalue()}
        return words.call(self._response, item.place, called, self._toolbox, status)

    def _output(self) -> list[dict[str, Any]]:
        return [item.closed for item in self._items if item.closed is not None]

    def _within(self, item: _Item) -> dict[str, Any]:
        return {
            "item_id": item.id,
            "output_index": item.place,
            "content_index": len(item.parts) - 1,
        }

    def _send_part(self, event: str, item: _Item, text: str) -> None:
        kind = item.parts[-1][0]
        part = (
            {"type": kind, "text": text}
            if kind == "reasoning_text"
            else words.part(kind, text)
        )
        self._send(event, **self._within(item), part=part)

    def _send_item(self, what: str, item: _Item, said: dict[str, Any]) -> None:
        event = f"response.output_item.{what}"
        self._send(event, output_index=item.place, item=said)

    def _send(self, event: str, **says: Any) -> None:
        data = {"type": event, "sequence_number": self._next(), **says}
        line = b"event: %b\ndata: %b\n\n"
        self._out.append(line % (event.encode(), msgspec.json.encode(data)))

    def _sent(self) -> bytes:
        sent = b"".join(self._out)
        self._out.clear()
        self._sent_numbers = self._numbered
        return sent


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
