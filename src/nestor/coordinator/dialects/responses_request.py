"""A Responses request as a chat request."""

from typing import Any

import msgspec

from nestor.coordinator.dialects.face import Translated
from nestor.coordinator.dialects.left_out import names
from nestor.coordinator.dialects.responses_tools import Toolbox, chat_name, wrapped
from nestor.errors import InvalidInput

_STATELESS = "nothing is stored here: send the whole conversation as input"
_REFUSED = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "prompt": "templates are not stored here: send instructions and input",
    "background": "nothing is stored here: wait for the answer, or stream it",
    "moderation": "nobody moderates here: leave it out, or ask OpenAI itself",
    "top_logprobs": "log-probabilities are given by /v1/chat/completions only",
}
_LOGPROBS = "message.output_text.logprobs"
_SAME = ("model", "temperature", "top_p", "stream")
_HANDLED = frozenset(
    {
        *_REFUSED,
        *_SAME,
        *("include", "input", "instructions", "max_output_tokens", "reasoning"),
        *("parallel_tool_calls", "stream_options", "text", "tool_choice", "tools"),
    }
)
_NOTHING_SAID = (("service_tier", "auto"), ("truncation", "disabled"))
_SILENT = frozenset({"annotations", "id", "logprobs", "phase", "status", "type"})
"""What an answer's own items carry when they are sent back."""
_SHOWN_BELOW = "(the rest is in the user message after the tools' outputs)"


def to_chat(request: dict[str, Any]) -> Translated:
    """Say it as a chat request. Raises ``InvalidInput`` that names the field."""
    left_out: dict[str, None] = {}
    _refuse(request)
    toolbox = Toolbox(request, left_out)
    body: dict[str, Any] = {
        name: request[name] for name in _SAME if request.get(name) is not None
    }
    body["messages"] = _Conversation(left_out).messages(request)
    if request.get("max_output_tokens") is not None:
        body["max_tokens"] = request["max_output_tokens"]
    if request.get("stream"):
        # The last event tells it.
        body["stream_options"] = {"include_usage": True}
    _put_tools(body, request, toolbox)
    _put_format(body, request, left_out)
    for name, value in request.items():
        if name not in _HANDLED and (name, value) not in _NOTHING_SAID and _says(value):
            left_out[name] = None
    for name in ("include", "reasoning"):
        inside = request.get(name)
        if isinstance(inside, dict):
            left_out |= {f"{name}.{key}": None for key in inside if _says(inside[key])}
        elif _says(inside):
            left_out[name] = None
    return Translated(body=body, left_out=names(left_out))


def _refuse(request: dict[str, Any]) -> None:
    for name, message in _REFUSED.items():
        if _says(request.get(name)):
            raise InvalidInput.at(name, message)
    include = request.get("include")
    if isinstance(include, list) and _LOGPROBS in include:
        raise InvalidInput.at("include", _REFUSED["top_logprobs"])
    most = request.get("max_output_tokens")
    if most is not None and (type(most) is not int or most < 1):
        raise InvalidInput.at("max_output_tokens", "must be a whole number above 0")


def _says(value: Any) -> bool:
    """Tell whether a field asks for anything."""
    return value is not None and value is not False and value not in ("", [], {}, 0)


def _put_tools(body: dict[str, Any], request: dict[str, Any], toolbox: Toolbox) -> None:
    wanted = request.get("tool_choice")
    choice = None if wanted is None else toolbox.choice(wanted)
    if toolbox.functions:
        body["tools"] = list(toolbox.functions.values())
        if choice is not None:
            body["tool_choice"] = choice
        if request.get("parallel_tool_calls") is not None:
            body["parallel_tool_calls"] = request["parallel_tool_calls"]
    elif choice == "required":
        raise InvalidInput.at("tool_choice", "required, but there are no tools")


def _put_format(
    body: dict[str, Any], request: dict[str, Any], left_out: dict[str, None]
) -> None:
    text = request.get("text") or {}
    if not isinstance(text, dict):
        raise InvalidInput.at("text", "must be an object")
    form = text.get("format")
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_schema" and isinstance(form, dict):
        said = ("name", "description", "schema", "strict")
        schema = {name: form[name] for name in said if form.get(name) is not None}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif form is not None and kind != "text":
        message = "must be text, json_object or json_schema"
        raise InvalidInput.at("text.format.type", message)
    for name, value in text.items():
        if name != "format" and _says(value):
            left_out[f"text.{name}"] = None


class _Turn(msgspec.Struct):
    """A message, and the outputs of the tools that it called."""

    message: dict[str, Any]
    outputs: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    """What tools gave that is not text. A chat takes it from a user only."""

    def messages(self) -> list[dict[str, Any]]:
        """Return them in the order of the calls: some templates match them by it."""
        calls = self.message.get("tool_calls") or ()
        places = {call["id"]: place for place, call in enumerate(calls)}
        self.outputs.sort(key=lambda output: places[output["tool_call_id"]])
        shown = [{"role": "user", "content": self.shown}] if self.shown else []
        return [self.message, *self.outputs, *shown]


class _Conversation:
    """Puts items together as messages.

    A chat wants all calls of one turn in one message and their outputs right after it,
    wherever among the items they are.
    """

    def __init__(self, left_out: dict[str, None]) -> None:
        self._left_out = left_out
        self._turns: list[_Turn] = []
        self._called: dict[str, _Turn] = {}

    def messages(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        told, given = request.get("instructions"), request.get("input")
        if told is not None and not isinstance(told, str):
            raise InvalidInput.at("instructions", "must be a text")
        if told:
            self._tell(told)
        if isinstance(given, str) and given:
            self._turns.append(_Turn({"role": "user", "content": given}))
        elif isinstance(given, list) and given:
            for number, item in enumerate(given):
                self._take(f"input.{number}", item)
        else:
            raise InvalidInput.at("input", "a text or a list of items is required")
        return [message for turn in self._turns for message in turn.messages()]

    def _take(self, field: str, item: Any) -> None:
        if not isinstance(item, dict):
            raise InvalidInput.at(field, "must be an object")
        match item.get("type", "message" if "role" in item else None):
            case "message":
                self._say(field, item)
            case "function_call":
                self._call(field, item, "arguments")
            case "custom_tool_call":
                self._call(field, item, "input")
            case "function_call_output" | "custom_tool_call_output":
                self._answer(field, item)
            case "reasoning":
                # Encrypted for another server, or of no use to this one.
                self._left_out["input.*.reasoning"] = None
            case "item_reference":
                raise InvalidInput.at(f"{field}.type", _STATELESS)
            case other:
                known = (
                    "message, reasoning, function_call, function_call_output, "
                    "custom_tool_call and custom_tool_call_output are known"
                )
                kind = str(other)[:64]
                raise InvalidInput.at(f"{field}.type", f"{kind!r} is not; {known}")

    def _tell(self, text: str) -> None:
        """Add to what the system says; servers' templates want it first, and once."""
        if self._turns and self._turns[-1].message is self._turns[0].message:
            first = self._turns[0].message
            if first["role"] == "system":
                first["content"] += f"\n\n{text}"
                return
        self._turns.append(_Turn({"role": "system", "content": text}))

    def _say(self, field: str, item: dict[str, Any]) -> None:
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            message = "must be user, assistant, system or developer"
            raise InvalidInput.at(f"{field}.role", message)
        self._note(item, "input.*", "role", "content")
        content = self._content(f"{field}.content", item.get("content"))
        if role == "user":
            self._turns.append(_Turn({"role": "user", "content": content}))
            return
        text = _text_only(f"{field}.content", content, role)
        if role != "assistant":
            self._tell(text)
        elif (turn := self._open_turn()) is not None and "tool_calls" in turn.message:
            # In between a call and its output there is room for nothing else.
            said = turn.message["content"]
            turn.message["content"] = text if said is None else f"{said}\n{text}"
        else:
            self._turns.append(_Turn({"role": "assistant", "content": text}))

    def _open_turn(self) -> _Turn | None:
        """Return the assistant's turn that may still go on."""
        last = self._turns[-1] if self._turns else None
        if last is None or last.message["role"] != "assistant" or last.outputs:
            return None
        return last

    def _call(self, field: str, item: dict[str, Any], holds: str) -> None:
        for name in ("call_id", "name", holds):
            if not isinstance(item.get(name), str):
                raise InvalidInput.at(f"{field}.{name}", "must be a text")
        self._note(item, "input.*", "call_id", "name", "namespace", holds)
        turn = self._open_turn()
        if turn is None:
            turn = _Turn({"role": "assistant", "content": None})
            self._turns.append(turn)
        given = item[holds]
        function = {
            "name": chat_name(item.get("namespace"), item["name"]),
            "arguments": given if holds == "arguments" else wrapped(given),
        }
        call = {"id": item["call_id"], "type": "function", "function": function}
        turn.message.setdefault("tool_calls", []).append(call)
        self._called[item["call_id"]] = turn

    def _answer(self, field: str, item: dict[str, Any]) -> None:
        called = item.get("call_id")
        turn = self._called.get(called) if isinstance(called, str) else None
        if turn is None:
            message = "no call before it has this id; send the call, too"
            raise InvalidInput.at(f"{field}.call_id", message)
        self._note(item, "input.*", "call_id", "name", "namespace", "output")
        content = self._content(f"{field}.output", item.get("output"))
        parts = [] if isinstance(content, str) else content
        text = content if isinstance(content, str) else _joined(parts, "\n")
        other = [part for part in parts if part["type"] != "text"]
        if other:
            text = f"{text}\n{_SHOWN_BELOW}".lstrip()
            label = f"What the tool gave for call {called}:"
            turn.shown += [{"type": "text", "text": label}, *other]
        answer = {"role": "tool", "tool_call_id": called, "content": text}
        turn.outputs.append(answer)

    def _content(self, field: str, given: Any) -> str | list[dict[str, Any]]:
        if isinstance(given, str):
            return given
        if not isinstance(given, list):
            raise InvalidInput.at(field, "must be a text or a list of parts")
        parts = [self._part(f"{field}.{n}", part) for n, part in enumerate(given)]
        if len(parts) == 1 and parts[0]["type"] == "text":
            return str(parts[0]["text"])
        return parts

    def _part(self, field: str, part: Any) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        holds = _PARTS.get(str(kind))
        if holds is None:
            raise InvalidInput.at(
                f"{field}.type", f"must be one of {', '.join(_PARTS)}"
            )
        if part.get("file_id") is not None:
            message = "files are not stored here: send the bytes (data: URL, file_data)"
            raise InvalidInput.at(f"{field}.file_id", message)
        value = part.get(holds)
        if not isinstance(value, dict if kind == "input_audio" else str):
            raise InvalidInput.at(f"{field}.{holds}", "is missing, or of another kind")
        named = ("detail",) if kind == "input_image" else ("filename",)
        self._note(part, "input.*.content.*", holds, *named)
        if kind == "input_image":
            image = {"url": value, "detail": part.get("detail") or "auto"}
            return {"type": "image_url", "image_url": image}
        if kind == "input_file":
            name = part.get("filename")
            file = {"file_data": value} | ({} if name is None else {"filename": name})
            return {"type": "file", "file": file}
        if kind == "input_audio":
            return {"type": "input_audio", "input_audio": value}
        return {"type": "text", "text": value}

    def _note(self, given: dict[str, Any], where: str, *known: str) -> None:
        """Note what is said there that no chat server takes."""
        for name, value in given.items():
            if name not in known and name not in _SILENT and _says(value):
                self._left_out[f"{where}.{name}"] = None


_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "input_image": "image_url",
    "input_file": "file_data",
    "input_audio": "input_audio",
}
"""Kinds of parts, and what holds what they carry."""


def _text_only(field: str, content: str | list[dict[str, Any]], role: str) -> str:
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if part["type"] != "text":
            message = f"a message of the role {role!r} can hold text only"
            raise InvalidInput.at(f"{field}.{number}.type", message)
    return _joined(content, "" if role == "assistant" else "\n")


def _joined(parts: list[dict[str, Any]], between: str) -> str:
    return between.join(str(part["text"]) for part in parts if part["type"] == "text")
