"""The scripted stand-in for a model: a real HTTP server whose answers are written down.

It speaks OpenAI's chat completions, streamed and not, and ``/v1/models``. It computes
nothing: each answer comes from a rule of its script, so that a test decides what "the
model" says, how slowly, and how it fails. Every request is kept for assertions.

In a test::

    async with ScriptedModel([Rule(when="capital", reply="Paris")]) as model:
        ...  # model.base_url, model.requests

As a process (prints ``{"base_url": …}`` once it listens)::

    python -m tests.servers.scripted_model --port 0 --script FILE.json

FILE.json is a list of rules, or ``{"api_key": …, "rules": […]}``.
"""

import argparse
import asyncio
import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from aiohttp import web


class Rule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One answer, and when to give it. The first rule whose conditions all hold answers.

    ``when``: must occur in the newest messages (those after the last assistant message);
    ``re:…`` is a regular expression. ``anywhere``: the same, over the whole conversation.
    ``nth``: the n-th request of this server, from 1. ``times``: at most so many answers.
    """

    when: str | None = None
    anywhere: str | None = None
    nth: int | None = None
    times: int | None = None
    model: str | None = None

    reply: str = ""
    tool_calls: list[dict[str, Any]] = []
    """``{"name": …, "arguments": {…}}``, or OpenAI's own shape."""
    usage: dict[str, Any] | None = msgspec.field(
        default_factory=lambda: {"prompt_tokens": 11, "completion_tokens": 7}
    )
    """None: the server reports no usage, as some do."""
    status: int = 200
    headers: dict[str, str] = {}
    delay_s: float = 0.0
    """Before the first byte."""
    chunk_delay_s: float = 0.0
    cut_after_chunks: int | None = None
    """The connection breaks after so many SSE events (the first one has no text)."""
    raw: str | None = None
    """Sent instead of everything above, as the body."""


class Recorded(msgspec.Struct, kw_only=True):
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    rule: int | None = None
    disconnected: bool = False
    """The client let go before the answer was complete."""


class ScriptedModel:
    """The server. Listens on loopback between ``__aenter__`` and ``__aexit__``."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        api_key: str | None = None,
        model: str = "scripted-model",
        port: int = 0,
    ) -> None:
        self.rules = list(rules)
        self.api_key = api_key
        self.model = model
        self.requests: list[Recorded] = []
        self.port = port
        self._given: dict[int, int] = {}
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """OpenAI base URL, ending in ``/v1``."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Recorded]:
        """Requests for an answer."""
        return [r for r in self.requests if r.path.endswith("/chat/completions")]

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=32 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        try:
            body = json.loads(text) if text else None
        except ValueError:
            body = text
        seen = Recorded(
            method=request.method,
            path=request.path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
        )
        self.requests.append(seen)
        if self.api_key and seen.headers.get("authorization") != (
            f"Bearer {self.api_key}"
        ):
            return _error(401, "wrong API key")
        if request.path.endswith("/models"):
            data = [{"id": self.model, "object": "model", "owned_by": "script"}]
            return web.json_response({"object": "list", "data": data})
        if not request.path.endswith("/chat/completions") or not isinstance(body, dict):
            return _error(404, f"nothing at {request.path}")
        try:
            return await self._chat(request, seen, body)
        except (asyncio.CancelledError, ConnectionResetError):
            seen.disconnected = True
            raise

    async def _chat(
        self, request: web.Request, seen: Recorded, body: dict[str, Any]
    ) -> web.StreamResponse:
        seen.rule = self._choose(body)
        if seen.rule is None:
            return _error(501, f"the script has no rule for: {_newest(body)[-300:]!r}")
        rule = self.rules[seen.rule]
        self._given[seen.rule] = self._given.get(seen.rule, 0) + 1
        await asyncio.sleep(rule.delay_s)
        if rule.raw is not None:
            kind = "text/event-stream" if body.get("stream") else "application/json"
            return web.Response(
                text=rule.raw,
                status=rule.status,
                headers={"content-type": kind, **rule.headers},
            )
        if rule.status != 200:
            return _error(rule.status, rule.reply or "scripted error", rule.headers)
        if body.get("stream"):
            return await self._stream(request, rule, body)
        return web.json_response(self._completion(rule), headers=rule.headers)

    def _choose(self, body: dict[str, Any]) -> int | None:
        newest, whole = _newest(body), _text(body.get("messages") or [])
        number = len(self.chats)
        for index, rule in enumerate(self.rules):
            if rule.nth is not None and rule.nth != number:
                continue
            if rule.times is not None and self._given.get(index, 0) >= rule.times:
                continue
            if rule.model is not None and rule.model != body.get("model"):
                continue
            if _matches(rule.when, newest) and _matches(rule.anywhere, whole):
                return index
        return None

    def _completion(self, rule: Rule) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": rule.reply or None}
        if rule.tool_calls:
            message["tool_calls"] = self._calls(rule)
        done = {
            **self._envelope("chat.completion"),
            "choices": [
                {"index": 0, "message": message, "finish_reason": _finish(rule)}
            ],
        }
        if rule.usage is not None:
            done["usage"] = _usage(rule.usage)
        return done

    async def _stream(
        self, request: web.Request, rule: Rule, body: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", **rule.headers}
        )
        await response.prepare(request)
        asked = (body.get("stream_options") or {}).get("include_usage")
        events = self._events(rule, usage=bool(asked))
        for sent, event in enumerate(events):
            if sent == rule.cut_after_chunks:
                assert request.transport is not None
                request.transport.abort()
                return response
            if sent:
                await asyncio.sleep(rule.chunk_delay_s)
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def _events(self, rule: Rule, *, usage: bool) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": part} for part in re.findall(r"\S+\s*|\s+", rule.reply)]
        for number, call in enumerate(self._calls(rule)):
            arguments = call["function"]["arguments"]
            head = {**call, "function": {**call["function"], "arguments": ""}}
            deltas.append({"tool_calls": [{"index": number, **head}]})
            tail = {"index": number, "function": {"arguments": arguments}}
            deltas.append({"tool_calls": [tail]})
        envelope = self._envelope("chat.completion.chunk")
        events = [
            {**envelope, "choices": [_choice(delta, None)], "usage": None}
            for delta in deltas
        ]
        events.append({**envelope, "choices": [_choice({}, _finish(rule))]})
        if usage and rule.usage is not None:
            events.append({**envelope, "choices": [], "usage": _usage(rule.usage)})
        return events

    def _calls(self, rule: Rule) -> list[dict[str, Any]]:
        calls = []
        for number, call in enumerate(rule.tool_calls):
            if "function" in call:
                calls.append(call)
                continue
            function = {
                "name": call["name"],
                "arguments": json.dumps(call.get("arguments", {})),
            }
            identity = f"call_{len(self.requests)}_{number}"
            calls.append({"id": identity, "type": "function", "function": function})
        return calls

    def _envelope(self, kind: str) -> dict[str, Any]:
        identity = f"chatcmpl-{len(self.requests)}"
        return {"id": identity, "object": kind, "created": 0, "model": self.model}


def _choice(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _finish(rule: Rule) -> str:
    return "tool_calls" if rule.tool_calls else "stop"


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    total = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    return {**usage, "total_tokens": total}


def _error(
    status: int, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "scripted"}},
        status=status,
        headers=headers,
    )


def _matches(pattern: str | None, text: str) -> bool:
    if pattern is None:
        return True
    if pattern.startswith("re:"):
        return re.search(pattern[3:], text, re.DOTALL) is not None
    return pattern in text


def _newest(body: dict[str, Any]) -> str:
    """Text of the messages after the last one of the assistant."""
    messages: list[dict[str, Any]] = body.get("messages") or []
    roles = [message.get("role") for message in messages]
    start = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    return _text(messages[start:])


def _text(messages: list[dict[str, Any]]) -> str:
    parts = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(str(part.get("text", "")) for part in content)
        parts.append(str(content or ""))
        if calls := message.get("tool_calls"):
            parts.append(json.dumps(calls))
    return "\n".join(parts)


async def _main(arguments: argparse.Namespace) -> None:
    script = json.loads(arguments.script.read_text())
    settings = script if isinstance(script, dict) else {"rules": script}
    model = ScriptedModel(
        msgspec.convert(settings["rules"], list[Rule]),
        api_key=settings.get("api_key"),
        model=settings.get("model", "scripted-model"),
        port=arguments.port,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with model:
        sys.stdout.write(json.dumps({"base_url": model.base_url}) + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the scripted stand-in for a model")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path, required=True)
    asyncio.run(_main(parser.parse_args()))
