"""Chat completions and embeddings, as OpenAI's callers speak them: the hub's own words."""

from collections.abc import Iterator
from typing import Any

import msgspec

from nestor.coordinator.dialects.face import Translated
from nestor.coordinator.dialects.pointers import refuse_pointers
from nestor.errors import InvalidInput, UpstreamError
from nestor.model.routing import Dialect

DONE = b"data: [DONE]\n\n"
_KINDS: tuple[tuple[str, type, str], ...] = (
    ("model", str, "must be a text"),
    ("stream", bool, "must be true or false"),
    ("stream_options", dict, "must be an object"),
    ("tools", list, "must be a list"),
)
_FRAME = ("id", "created", "model", "service_tier", "system_fingerprint")
_MOST_INPUTS = 2048
_FORMATS = ("float", "base64")


class OpenAI:
    """Chat completions."""

    dialect = Dialect.OPENAI

    def check(self, request: dict[str, Any]) -> None:
        """Refuse what no upstream should see. Unknown names pass: the shape is OpenAI's.

        Raises ``InvalidInput`` that names the field.
        """
        refuse_pointers(request)
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise InvalidInput.at(
                "messages", "a list with at least one message is required"
            )
        for number, message in enumerate(messages):
            if not isinstance(message, dict):
                raise InvalidInput.at(f"messages.{number}", "must be an object")
            if not isinstance(message.get("role"), str):
                raise InvalidInput.at(f"messages.{number}.role", "must be a text")
        check_kinds(request, _KINDS)

    def to_chat(self, request: dict[str, Any]) -> Translated:
        """Return it as it is."""
        return Translated(body=request)

    def reply(self, chat: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - the face's
        """Return it as it is."""
        return chat

    def events(self, request: dict[str, Any]) -> "ChatEvents":
        """Begin the events of one answer."""
        options = request.get("stream_options")
        asked = isinstance(options, dict) and options.get("include_usage") is True
        return ChatEvents(include_usage=asked)


class ChatEvents:
    """Chat chunks as events. The one that only tells the usage goes to who asked for it."""

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage

    def feed(self, chunk: dict[str, Any]) -> bytes:
        """Return the event of one chunk."""
        if not (self._include_usage or chunk.get("choices")) and chunk.get("usage"):
            return b""
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def end(self) -> bytes:
        """Return what ends an answer."""
        return DONE


def check_kinds(
    request: dict[str, Any], kinds: tuple[tuple[str, type, str], ...]
) -> None:
    """Refuse fields of another kind than named; absent and null ones pass."""
    for name, kind, says in kinds:
        value = request.get(name)
        if value is not None and not isinstance(value, kind):
            raise InvalidInput.at(name, says)


def check_embeddings(request: dict[str, Any]) -> None:
    """Refuse a request for embeddings that no server should see.

    Raises ``InvalidInput`` that names the field.
    """
    given = request.get("input")
    # Texts and numbers of tokens, looked at one by one below, say nowhere to go.
    refuse_pointers({name: request[name] for name in request if name != "input"})
    check_kinds(request, (("model", str, "must be a text"),))
    if isinstance(given, list):
        if len(given) > _MOST_INPUTS and not isinstance(given[0], int):
            raise InvalidInput.at("input", f"more than {_MOST_INPUTS} texts")
        _check_inputs(given)
    elif not isinstance(given, str) or not given:
        message = "a text, a list of texts, or tokens (a list of numbers) are required"
        raise InvalidInput.at("input", message)
    encoding = request.get("encoding_format")
    if encoding is not None and encoding not in _FORMATS:
        raise InvalidInput.at("encoding_format", "must be float or base64")
    dimensions = request.get("dimensions")
    if dimensions is not None and not (_is_number(dimensions) and dimensions > 0):
        raise InvalidInput.at("dimensions", "must be a whole number above 0")


def _check_inputs(given: list[Any]) -> None:
    if not given:
        raise InvalidInput.at("input", "at least one text is required")
    tokens = _is_number(given[0])
    for number, one in enumerate(given):
        if tokens:
            fine = _is_number(one)
        elif isinstance(one, list):
            fine = bool(one) and all(map(_is_number, one))
        else:
            fine = isinstance(one, str) and bool(one)
        if not fine:
            message = "must be a text that is not empty, or tokens; all of one kind"
            raise InvalidInput.at(f"input.{number}", message)
    if not tokens and len({type(one) for one in given}) > 1:
        raise InvalidInput.at("input", "texts and tokens cannot be mixed")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def choice_of(chat: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the message of a ``chat.completion`` and why it ended.

    Raises ``UpstreamError`` when there is no message.
    """
    choices = chat.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        raise UpstreamError("the model's answer holds no message")
    reason = first.get("finish_reason")
    return message, reason if isinstance(reason, str) else None


def chunks_of(chat: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a whole ``chat.completion`` as the chunks of a stream; the usage comes last.

    Raises ``UpstreamError`` when there is no message.
    """
    message, reason = choice_of(chat)
    frame: dict[str, Any] = {name: chat[name] for name in _FRAME if name in chat}
    frame["object"] = "chat.completion.chunk"
    delta = {name: value for name, value in message.items() if value is not None}
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        delta["tool_calls"] = [
            {"index": number, **call}
            for number, call in enumerate(calls)
            if isinstance(call, dict)
        ]
    yield {**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    if isinstance(chat.get("usage"), dict):
        yield {**frame, "choices": [], "usage": chat["usage"]}
