"""One conversation, held through each SDK in its own words.

What is asked and heard is the same for all three, so that one test speaks every dialect;
how it is said is what the SDK's own documentation shows.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anthropic
import openai

CALLERS = ("chat", "responses", "messages")
DIALECT_OF = {"chat": "openai", "responses": "responses", "messages": "anthropic"}
"""What a caller speaks; an upstream of the same dialect is passed on to."""
LIMIT = 512
"""``max_tokens`` of every request that does not say another."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Heard:
    """What an SDK made of an answer."""

    text: str
    calls: Sequence[tuple[str, str, Any]]
    """Id, name, arguments."""
    stop: str
    """``end``, ``tools`` or ``length``."""
    read: int | None
    """Tokens of the request, those of a cache included, as the SDK shows them."""
    cached: int | None
    written: int | None
    shown: Any = field(repr=False)
    """The SDK's own object."""


class Talk(Protocol):
    """One conversation."""

    def say(self, text: str, *, image: bytes | None = None) -> Heard:
        """Ask, and hear the answer."""
        ...

    def results(self, given: Mapping[str, Any]) -> Heard:
        """Say what tools gave, by the id of the call; hear what the model makes of it."""
        ...


class ChatTalk:
    """``client.chat.completions``."""

    def __init__(
        self,
        client: openai.OpenAI,
        model: str,
        *,
        stream: bool,
        system: str | None = None,
        tools: Sequence[Tool] = (),
        max_tokens: int = LIMIT,
    ) -> None:
        self._client = client
        self._stream = stream
        self._messages: list[Any] = []
        if system is not None:
            self._messages.append({"role": "system", "content": system})
        self._options: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
        if tools:
            self._options["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.schema,
                    },
                }
                for tool in tools
            ]

    def say(self, text: str, *, image: bytes | None = None) -> Heard:
        """Ask."""
        content: Any = text
        if image is not None:
            shown = {"type": "image_url", "image_url": {"url": data_url(image)}}
            content = [{"type": "text", "text": text}, shown]
        self._messages.append({"role": "user", "content": content})
        return self._hear()

    def results(self, given: Mapping[str, Any]) -> Heard:
        """Answer calls."""
        self._messages += [
            {"role": "tool", "tool_call_id": name, "content": text}
            for name, text in given.items()
        ]
        return self._hear()

    def also(self, **options: Any) -> None:
        """Send these, too, from now on."""
        self._options |= options

    def _hear(self) -> Heard:
        asked = {"messages": self._messages, **self._options}
        done: Any
        if self._stream:
            asked["stream_options"] = {"include_usage": True}
            with self._client.chat.completions.stream(**asked) as events:
                try:
                    done = events.get_final_completion()
                except openai.LengthFinishReasonError as cut:
                    done = cut.completion  # how this SDK tells it
        else:
            done = self._client.chat.completions.create(**asked)
        (choice,) = done.choices
        said, usage = choice.message, done.usage
        self._messages.append(said.to_dict())
        details = usage and usage.prompt_tokens_details
        return Heard(
            text=said.content or "",
            calls=[
                (call.id, call.function.name, json.loads(call.function.arguments))
                for call in said.tool_calls or ()
            ],
            stop={"stop": "end", "tool_calls": "tools"}.get(
                choice.finish_reason, choice.finish_reason
            ),
            read=usage and usage.prompt_tokens,
            cached=details and details.cached_tokens,
            written=usage and usage.completion_tokens,
            shown=done,
        )


class ResponsesTalk:
    """``client.responses``; the whole conversation is sent each time."""

    def __init__(
        self,
        client: openai.OpenAI,
        model: str,
        *,
        stream: bool,
        system: str | None = None,
        tools: Sequence[Tool] = (),
        max_tokens: int = LIMIT,
    ) -> None:
        self._client = client
        self._stream = stream
        self._items: list[Any] = []
        self._options: dict[str, Any] = {"model": model}
        self._options["max_output_tokens"] = max_tokens
        if system is not None:
            self._options["instructions"] = system
        if tools:
            self._options["tools"] = [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.schema,
                    "strict": False,
                }
                for tool in tools
            ]

    def say(self, text: str, *, image: bytes | None = None) -> Heard:
        """Ask."""
        content: Any = text
        if image is not None:
            content = [
                {"type": "input_text", "text": text},
                {"type": "input_image", "image_url": data_url(image)},
            ]
        self._items.append({"role": "user", "content": content})
        return self._hear()

    def results(self, given: Mapping[str, Any]) -> Heard:
        """Answer calls."""
        self._items += [
            {"type": "function_call_output", "call_id": name, "output": text}
            for name, text in given.items()
        ]
        return self._hear()

    def also(self, **options: Any) -> None:
        """Send these, too, from now on."""
        self._options |= options

    def _hear(self) -> Heard:
        asked = {"input": self._items, **self._options}
        done: Any
        if self._stream:
            # The helper of this SDK raises for an answer that was cut: read the events.
            with self._client.responses.create(stream=True, **asked) as events:
                last = list(events)[-1]
            done = last.response
        else:
            done = self._client.responses.create(**asked)
        self._items += [item.to_dict() for item in done.output]
        calls = [
            (item.call_id, item.name, json.loads(item.arguments))
            for item in done.output
            if item.type == "function_call"
        ]
        stop = "tools" if calls else "end"
        if done.status == "incomplete":
            assert done.incomplete_details.reason == "max_output_tokens"
            stop = "length"
        else:
            assert done.status == "completed"
        usage = done.usage
        return Heard(
            text=done.output_text,
            calls=calls,
            stop=stop,
            read=usage and usage.input_tokens,
            cached=usage and usage.input_tokens_details.cached_tokens,
            written=usage and usage.output_tokens,
            shown=done,
        )


class MessagesTalk:
    """``client.messages`` of Anthropic's SDK."""

    def __init__(
        self,
        client: anthropic.Anthropic,
        model: str,
        *,
        stream: bool,
        system: str | None = None,
        tools: Sequence[Tool] = (),
        max_tokens: int = LIMIT,
    ) -> None:
        self._client = client
        self._stream = stream
        self._messages: list[Any] = []
        self._options: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
        if system is not None:
            self._options["system"] = system
        if tools:
            self._options["tools"] = [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": tool.schema,
                }
                for tool in tools
            ]

    def say(self, text: str, *, image: bytes | None = None) -> Heard:
        """Ask."""
        content: Any = text
        if image is not None:
            source = {"type": "base64", "media_type": "image/png", "data": b64(image)}
            shown = {"type": "image", "source": source}
            content = [{"type": "text", "text": text}, shown]
        self._messages.append({"role": "user", "content": content})
        return self._hear()

    def results(self, given: Mapping[str, Any]) -> Heard:
        """Answer calls."""
        content = [
            {"type": "tool_result", "tool_use_id": name, "content": text}
            for name, text in given.items()
        ]
        self._messages.append({"role": "user", "content": content})
        return self._hear()

    def also(self, **options: Any) -> None:
        """Send these, too, from now on."""
        self._options |= options

    def _hear(self) -> Heard:
        asked = {"messages": self._messages, **self._options}
        done: Any
        if self._stream:
            with self._client.messages.stream(**asked) as events:
                done = events.get_final_message()
        else:
            done = self._client.messages.create(**asked)
        self._messages.append({"role": "assistant", "content": done.content})
        usage = done.usage
        cached = usage.cache_read_input_tokens
        stops = {"end_turn": "end", "tool_use": "tools", "max_tokens": "length"}
        return Heard(
            text="".join(block.text for block in done.content if block.type == "text"),
            calls=[
                (block.id, block.name, block.input)
                for block in done.content
                if block.type == "tool_use"
            ],
            stop=stops[done.stop_reason],
            read=usage.input_tokens + (cached or 0),
            cached=cached,
            written=usage.output_tokens,
            shown=done,
        )


def text_of_events(events: Sequence[Any]) -> str:
    """Return what the events of a stream say, whichever SDK read them."""
    said = []
    for event in events:
        told = event.to_dict()
        if told.get("choices"):
            said.append(told["choices"][0]["delta"].get("content") or "")
        elif told.get("type") == "response.output_text.delta":
            said.append(told["delta"])
        elif told.get("type") == "content_block_delta":
            said.append(told["delta"]["text"])
    return "".join(said)


def b64(data: bytes) -> str:
    """Return bytes as both vendors take them."""
    return base64.b64encode(data).decode()


def data_url(image: bytes) -> str:
    """Return a picture as OpenAI takes it."""
    return f"data:image/png;base64,{b64(image)}"
