"""A conversation in Anthropic's messages, said as chat messages.

What has words of its own on each side:

- A failed tool result (``is_error``) is a ``tool`` message that begins with
  ``TOOL_FAILED``; the way back knows it.
- Several texts of one tool result are joined with a line break, several blocks of
  ``system`` with an empty line: many servers take one text only.
- Results follow the calls directly and in the calls' order (templates of local models
  match them by it); what stood beside them becomes a user message after them.
- Messages of the same role in a row are one turn, as Anthropic's API takes them.
"""

from typing import Any

import msgspec

from nestor.coordinator.dialects.left_out import Left, leave
from nestor.errors import InvalidInput

TOOL_FAILED = "[tool error] "
PICTURE_BELOW = "[a picture: in the next message]"
"""Tools answer in text in chat completions; what they show goes into a message of the user
right behind their answers."""
_BILLING = "x-anthropic-billing-header:"
"""Claude Code's first system block: changes with every request, which would make a local
server read the whole prompt again each time. It is about the account, not for the model."""
_INSTEAD = "remove it, or ask for a model whose server speaks Anthropic's messages"
_SHOWN = 60


def chat_messages(request: dict[str, Any], left: Left) -> list[dict[str, Any]]:
    """Return ``system`` and ``messages`` as chat messages. Raises ``InvalidInput``."""
    turns = _Turns(left)
    turns.system(request.get("system"), "system", "system")
    for number, message in enumerate(request["messages"]):
        at = f"messages.{number}"
        leave(message, {"role", "content"}, "messages", left)
        role, content = message["role"], message.get("content")
        if role == "system":
            turns.system(content, f"{at}.content", "messages.content")
        elif role == "user":
            turns.user(blocks_of(content, f"{at}.content"), f"{at}.content")
        else:
            turns.assistant(blocks_of(content, f"{at}.content"), f"{at}.content")
    return turns.done()


class _Turns:
    """Puts the messages together, a turn at a time."""

    def __init__(self, left: Left) -> None:
        self._left = left
        self._found: list[dict[str, Any]] = []
        self._role = ""
        self._parts: list[dict[str, Any]] = []
        self._calls: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []
        self._asked: dict[str, int] = {}
        """Calls of the last assistant's turn, and their place in it."""

    def system(self, content: Any, at: str, name: str) -> None:
        self._turn("system")
        texts: list[str] = []
        if content is None and at == "system":
            return
        for index, block in enumerate(blocks_of(content, at)):
            here = f"{at}.{index}"
            if block["type"] != "text":
                raise no_words(here, block["type"])
            text = text_of(block, here, name, self._left)
            if text.startswith(_BILLING) and "\n" not in text.strip():
                self._left["system.x-anthropic-billing-header"] = None
            elif text:
                texts.append(text)
        if texts:
            self._found.append({"role": "system", "content": "\n\n".join(texts)})

    def user(self, blocks: list[dict[str, Any]], at: str) -> None:
        self._turn("user")
        if not blocks:
            raise InvalidInput.at(at, "at least one block is required")
        for index, block in enumerate(blocks):
            here, kind = f"{at}.{index}", block["type"]
            if kind == "tool_result":
                self._results.append(self._result(block, here))
            elif kind == "text":
                text = text_of(block, here, "messages.content", self._left)
                self._parts.append({"type": "text", "text": text})
            elif kind == "image":
                self._picture(block, here, "messages.content")
            else:
                raise no_words(here, kind)

    def assistant(self, blocks: list[dict[str, Any]], at: str) -> None:
        self._turn("assistant")
        for index, block in enumerate(blocks):
            here, kind = f"{at}.{index}", block["type"]
            if kind == "text":
                text = text_of(block, here, "messages.content", self._left)
                if text:
                    self._parts.append({"type": "text", "text": text})
            elif kind == "tool_use":
                self._calls.append(self._call(block, here))
            elif kind in ("thinking", "redacted_thinking"):
                self._left[f"messages.content.{kind}"] = None
            else:
                raise no_words(here, kind)

    def done(self) -> list[dict[str, Any]]:
        self._turn("")
        return self._found

    def _turn(self, role: str) -> None:
        """Close the turn that was open, when another begins."""
        if role == self._role:
            return
        if self._role == "user":
            self._results.sort(key=lambda said: self._asked[said["tool_call_id"]])
            self._found += self._results
            if self._parts:
                self._found.append({"role": "user", "content": _said(self._parts)})
        elif self._role == "assistant" and (self._parts or self._calls):
            said: dict[str, Any] = {"role": "assistant", "content": _said(self._parts)}
            if self._calls:
                said["tool_calls"] = self._calls
            self._found.append(said)
            calls = enumerate(self._calls)
            self._asked = {call["id"]: place for place, call in calls}
        self._role = role
        self._parts, self._calls, self._results = [], [], []

    def _call(self, block: dict[str, Any], at: str) -> dict[str, Any]:
        known = {"type", "id", "name", "input"}
        if block.get("caller") == {"type": "direct"}:
            known.add("caller")
        leave(block, known, "messages.content", self._left)
        for name, kind, says in (
            ("id", str, "must be a text"),
            ("name", str, "must be a text"),
            ("input", dict, "must be an object"),
        ):
            if not isinstance(block.get(name), kind):
                raise InvalidInput.at(f"{at}.{name}", says)
        arguments = msgspec.json.encode(block["input"]).decode()
        function = {"name": block["name"], "arguments": arguments}
        return {"id": block["id"], "type": "function", "function": function}

    def _picture(self, block: dict[str, Any], at: str, name: str) -> None:
        leave(block, {"type", "source"}, name, self._left)
        url = _data_url(block.get("source"), f"{at}.source")
        self._parts.append({"type": "image_url", "image_url": {"url": url}})

    def _result(self, block: dict[str, Any], at: str) -> dict[str, Any]:
        known = {"type", "tool_use_id", "content", "is_error"}
        leave(block, known, "messages.content", self._left)
        call_id = block.get("tool_use_id")
        if not isinstance(call_id, str):
            raise InvalidInput.at(f"{at}.tool_use_id", "must be a text")
        if call_id not in self._asked:
            message = "no call of this id in the assistant's message right before"
            raise InvalidInput.at(f"{at}.tool_use_id", message)
        texts = []
        content = block.get("content")
        inner = [] if content is None else blocks_of(content, f"{at}.content")
        for index, part in enumerate(inner):
            here = f"{at}.content.{index}"
            if part["type"] == "image":
                texts.append(PICTURE_BELOW)
                self._picture(part, here, "messages.content.content")
                continue
            if part["type"] != "text":
                raise no_words(here, part["type"], "inside a tool result ")
            texts.append(text_of(part, here, "messages.content.content", self._left))
        text = "\n".join(texts)
        if block.get("is_error"):
            text = TOOL_FAILED + text
        return {"role": "tool", "tool_call_id": call_id, "content": text}


def blocks_of(content: Any, at: str) -> list[dict[str, Any]]:
    """Return content as blocks, each an object with a ``type``. Raises ``InvalidInput``."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InvalidInput.at(at, "must be a text or a list of blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            message = "must be an object with a type"
            raise InvalidInput.at(f"{at}.{index}", message)
    return content


def text_of(block: dict[str, Any], at: str, name: str, left: Left) -> str:
    """Return the text of a text block. Raises ``InvalidInput``."""
    text = block.get("text")
    if not isinstance(text, str):
        raise InvalidInput.at(f"{at}.text", "must be a text")
    if block.get("citations"):
        message = f"citations cannot be said in chat completions: {_INSTEAD}"
        raise InvalidInput.at(f"{at}.citations", message)
    leave(block, {"type", "text", "citations"}, name, left)
    return text


def no_words(at: str, kind: str, where: str = "") -> InvalidInput:
    """Return the error of a kind that chat completions have no words for."""
    message = f"{kind[:_SHOWN]!r} {where}cannot be said in chat completions: {_INSTEAD}"
    return InvalidInput.at(at, message)


def _data_url(source: Any, at: str) -> str:
    if not isinstance(source, dict):
        raise InvalidInput.at(at, "must be an object")
    kind = source.get("type")
    if kind == "base64":
        for name in ("media_type", "data"):
            if not isinstance(source.get(name), str):
                raise InvalidInput.at(f"{at}.{name}", "must be a text")
        return f"data:{source['media_type']};base64,{source['data']}"
    url = source.get("url")
    if kind == "url" and isinstance(url, str) and url.startswith("data:"):
        return url
    raise InvalidInput.at(at, "send the image's bytes: a source of type 'base64'")


def _said(parts: list[dict[str, Any]]) -> Any:
    """Write content in the form that most servers take: a text where it is one."""
    if not parts:
        return None
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts
