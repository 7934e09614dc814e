"""A chat conversation, said as Anthropic's ``system`` and messages.

Every system and developer message goes to ``system``, also one from the middle: servers
of older models know no other place. Tool results come first in their turn. Texts that
are empty or white space are left out beside other blocks: Anthropic's API refuses them.
"""

from typing import Any

import msgspec

from nestor.coordinator.dialects.anthropic_messages import TOOL_FAILED
from nestor.coordinator.dialects.left_out import Left, leave
from nestor.coordinator.dialects.tool_ids import legal
from nestor.errors import InvalidInput

_INSTEAD = "remove it, or ask for a model whose server speaks chat completions"
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_KNOWN = {
    "system": {"role", "content"},
    "developer": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "refusal", "tool_calls"},
    "tool": {"role", "content", "tool_call_id"},
}
_SHOWN = 60

Block = dict[str, Any]


def conversation(messages: Any, left: Left) -> tuple[list[Block], list[dict[str, Any]]]:
    """Return the blocks of ``system`` and the messages. Raises ``InvalidInput``."""
    if not isinstance(messages, list):
        raise InvalidInput.at("messages", "a list of messages is required")
    return _Conversation(left).of(messages)


def no_words(at: str, what: str) -> InvalidInput:
    """Return the error of something that messages have no words for."""
    message = f"{what[:_SHOWN]} cannot be said in Anthropic's messages: {_INSTEAD}"
    return InvalidInput.at(at, message)


def object_of(arguments: Any, at: str) -> dict[str, Any]:
    """Return the arguments of a call. Raises ``InvalidInput`` unless an object."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        message = "must be the text of a JSON object: Anthropic's calls hold objects"
        raise InvalidInput.at(at, message)
    return found


class _Conversation:
    """Puts turns together, so that roles take turns."""

    def __init__(self, left: Left) -> None:
        self._left = left
        self._system: list[Block] = []
        self._found: list[dict[str, Any]] = []
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, messages: list[Any]) -> tuple[list[Block], list[dict[str, Any]]]:
        for number, message in enumerate(messages):
            at = f"messages.{number}"
            role = message.get("role") if isinstance(message, dict) else None
            known = _KNOWN.get(role) if isinstance(role, str) else None
            if known is None:
                raise no_words(f"{at}.role", f"the role {role!r}")
            self._leave(message, known, at)
            if role == "user":
                self._add("user", self._user(message.get("content"), at))
            elif role == "tool":
                self._add("user", [self._result(message, at)])
            elif role == "assistant":
                self._add("assistant", self._assistant(message, at))
            else:
                blocks = self._parts(message.get("content"), f"{at}.content", ("text",))
                self._system += blocks
        if not self._found:
            message = "at least one message of a user is required beside the system's"
            raise InvalidInput.at("messages", message)
        for turn in self._found:
            turn["content"].sort(key=lambda block: block["type"] != "tool_result")
        return self._system, self._found

    def _leave(self, message: dict[str, Any], known: set[str], at: str) -> None:
        for name in ("audio", "function_call"):
            if message.get(name):
                raise no_words(f"{at}.{name}", name)
        leave(message, known, "messages", self._left)

    def _add(self, role: str, blocks: list[Block]) -> None:
        if self._found and self._found[-1]["role"] == role:
            self._found[-1]["content"] += blocks
        elif blocks:
            self._found.append({"role": role, "content": blocks})

    def _user(self, content: Any, at: str) -> list[Block]:
        blocks = self._parts(content, f"{at}.content", ("text", "image_url"))
        if not blocks:
            message = "is empty: Anthropic's API takes no message without text or image"
            raise InvalidInput.at(f"{at}.content", message)
        return blocks

    def _assistant(self, message: dict[str, Any], at: str) -> list[Block]:
        content = message.get("content")
        blocks = self._parts(content, f"{at}.content", ("text", "refusal"))
        blocks += self._parts(message.get("refusal"), f"{at}.refusal", ("refusal",))
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise InvalidInput.at(f"{at}.tool_calls", "must be a list")
        return blocks + [
            self._call(call, f"{at}.tool_calls.{number}")
            for number, call in enumerate(calls)
        ]

    def _call(self, call: Any, at: str) -> Block:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type") not in (None, "function"):
            raise no_words(at, "a call of anything but a function")
        leave(call, {"id", "type", "function", "index"}, "messages.tool_calls", self._left)  # fmt: skip
        for value, name in ((call, "id"), (function, "name")):
            if not isinstance(value.get(name), str) or not value[name]:
                where = at if value is call else f"{at}.function"
                raise InvalidInput.at(f"{where}.{name}", "must be a text")
        arguments = object_of(function.get("arguments"), f"{at}.function.arguments")
        return {
            "type": "tool_use",
            "id": self._named(call["id"]),
            "name": function["name"],
            "input": arguments,
        }

    def _named(self, call_id: str) -> str:
        """Name a call: unlike all before, which some servers' ids are not."""
        wanted = name = legal(call_id)
        count = 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        self._ids[call_id] = name
        return name

    def _result(self, message: dict[str, Any], at: str) -> Block:
        call_id = message.get("tool_call_id")
        if not isinstance(call_id, str) or call_id not in self._ids:
            says = "no call of this id in an assistant's message before"
            raise InvalidInput.at(f"{at}.tool_call_id", says)
        blocks = self._parts(
            message.get("content"), f"{at}.content", ("text", "image_url")
        )
        result: Block = {"type": "tool_result", "tool_use_id": self._ids[call_id]}
        first = blocks[0] if blocks else {}
        if str(first.get("text", "")).startswith(TOOL_FAILED):
            result["is_error"] = True
            text = first["text"].removeprefix(TOOL_FAILED)
            rest = [{"type": "text", "text": text}] if text.strip() else []
            blocks = rest + blocks[1:]
        if blocks:
            result["content"] = blocks
        return result

    def _parts(self, content: Any, at: str, kinds: tuple[str, ...]) -> list[Block]:
        """Return content as blocks; blank texts are none."""
        if content is None:
            return []
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
            kinds = (*kinds, "text")
        if not isinstance(content, list):
            raise InvalidInput.at(at, "must be a text or a list of parts")
        found: list[Block] = []
        for index, part in enumerate(content):
            here = f"{at}.{index}"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in kinds:
                raise no_words(here, f"{kind!r} in this place")
            leave(part, {"type", kind}, "messages.content", self._left)
            if kind == "image_url":
                found.append(self._image(part.get("image_url"), f"{here}.image_url"))
                continue
            text = part.get(kind)
            if not isinstance(text, str):
                raise InvalidInput.at(f"{here}.{kind}", "must be a text")
            if text.strip():
                found.append({"type": "text", "text": text})
        return found

    def _image(self, image: Any, at: str) -> Block:
        url = image.get("url") if isinstance(image, dict) else None
        if not isinstance(image, dict) or not isinstance(url, str):
            raise InvalidInput.at(f"{at}.url", "must be a text")
        leave(image, {"url"}, "messages.content.image_url", self._left)
        head, comma, data = url.partition(",")
        kind, _, coding = head.removeprefix("data:").lower().partition(";")
        if not url.startswith("data:") or not comma or coding != "base64":
            message = "send the image's bytes, as data:image/png;base64,…"
            raise InvalidInput.at(f"{at}.url", message)
        if kind not in _IMAGES:
            message = f"{kind[:_SHOWN]!r} is none of {', '.join(_IMAGES)}"
            raise InvalidInput.at(f"{at}.url", message)
        source = {"type": "base64", "media_type": kind, "data": data}
        return {"type": "image", "source": source}
