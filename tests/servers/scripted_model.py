"""The scripted stand-in for a model: a real HTTP server whose answers are written down.

It speaks OpenAI's chat completions and Anthropic's messages, streamed and not, OpenAI's
embeddings, and ``/v1/models``. It computes nothing: each answer comes from a rule of its
script, so that a test decides what "the model" says, how slowly, and how it fails. Every
request is kept for assertions, with what the provider would put on the bill for it.

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
from tests.servers import scripted_answers as answers
from tests.servers.scripted_answers import Rule

from nestor.model.task import Usage

__all__ = ["Recorded", "Rule", "ScriptedModel"]


class Recorded(msgspec.Struct, kw_only=True):
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    rule: int | None = None
    billed: Usage | None = None
    """What this request cost: said in the answer, or not, as it may have been cut. None:
    nothing (an error), or the script does not say."""
    disconnected: bool = False
    """The client let go before the answer was complete."""

    @property
    def dialect(self) -> str:
        """Whose words the request is in."""
        return "anthropic" if self.path.endswith("/messages") else "openai"


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
    def anthropic_url(self) -> str:
        """Base URL as Anthropic's SDKs take it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def chats(self) -> list[Recorded]:
        """Requests for an answer."""
        ends = ("/chat/completions", "/messages")
        return [r for r in self.requests if r.path.endswith(ends)]

    @property
    def embeddings(self) -> list[Recorded]:
        """Requests for embeddings."""
        return [r for r in self.requests if r.path.endswith("/embeddings")]

    @property
    def billed(self) -> Usage:
        """All bills added up."""
        bills = [r.billed for r in self.requests if r.billed is not None]
        return Usage(
            input_tokens=sum(bill.input_tokens or 0 for bill in bills),
            output_tokens=sum(bill.output_tokens or 0 for bill in bills),
            cached_tokens=sum(bill.cached_tokens or 0 for bill in bills),
            cache_write_tokens=sum(bill.cache_write_tokens or 0 for bill in bills),
            reasoning_tokens=sum(bill.reasoning_tokens or 0 for bill in bills),
        )

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
        given = seen.headers.get("x-api-key") or seen.headers.get("authorization")
        if self.api_key and given not in {self.api_key, f"Bearer {self.api_key}"}:
            return _error(seen, 401, "wrong API key")
        if request.path.endswith("/models"):
            data = [{"id": self.model, "object": "model", "owned_by": "script"}]
            return web.json_response({"object": "list", "data": data})
        asked = request.path.endswith(("/chat/completions", "/messages", "/embeddings"))
        if not asked or not isinstance(body, dict):
            return _error(seen, 404, f"nothing at {request.path}")
        try:
            return await self._answer(request, seen, body)
        except (asyncio.CancelledError, ConnectionResetError):
            seen.disconnected = True
            raise

    async def _answer(
        self, request: web.Request, seen: Recorded, body: dict[str, Any]
    ) -> web.StreamResponse:
        seen.rule = self._choose(body)
        if seen.rule is None:
            text = f"the script has no rule for: {_newest(body)[-300:]!r}"
            return _error(seen, 501, text)
        rule = self.rules[seen.rule]
        self._given[seen.rule] = self._given.get(seen.rule, 0) + 1
        embedding = seen.path.endswith("/embeddings")
        if rule.status == 200 and rule.raw is None:
            seen.billed = answers.billed(rule, embedding=embedding)
        await asyncio.sleep(rule.delay_s)
        if rule.raw is not None:
            kind = "text/event-stream" if body.get("stream") else "application/json"
            return web.Response(
                text=rule.raw,
                status=rule.status,
                headers={"content-type": kind, **rule.headers},
            )
        if rule.status != 200:
            text = rule.reply or "scripted error"
            return _error(seen, rule.status, text, rule.headers)
        if embedding:
            reply = answers.embeddings(rule, body, self.model)
        elif body.get("stream"):
            return await self._stream(request, rule, seen)
        elif seen.dialect == "anthropic":
            number = len(self.requests)
            reply = answers.message(rule, f"msg_{number}", self.model, number)
        else:
            reply = answers.completion(rule, self._envelope(), len(self.requests))
        return web.json_response(reply, headers=rule.headers)

    def _choose(self, body: dict[str, Any]) -> int | None:
        newest, whole = _newest(body), _whole(body)
        number = len(self.chats) + len(self.embeddings)
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

    async def _stream(
        self, request: web.Request, rule: Rule, seen: Recorded
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", **rule.headers}
        )
        await response.prepare(request)
        for sent, event in enumerate(self._events(rule, seen)):
            if sent == rule.cut_after_chunks:
                assert request.transport is not None
                request.transport.abort()
                return response
            if sent == rule.error_after_chunks:
                await response.write(_error_event(seen))
                return response
            if sent:
                await asyncio.sleep(rule.chunk_delay_s)
            await response.write(event)
        return response

    def _events(self, rule: Rule, seen: Recorded) -> list[bytes]:
        number = len(self.requests)
        if seen.dialect == "anthropic":
            return answers.message_events(rule, f"msg_{number}", self.model, number)
        options = seen.body.get("stream_options") or {}
        asked = bool(options.get("include_usage"))
        return answers.chunks(rule, self._envelope(), number, asked_usage=asked)

    def _envelope(self) -> dict[str, Any]:
        identity = f"chatcmpl-{len(self.requests)}"
        return {"id": identity, "created": 0, "model": self.model}


def _error(
    seen: Recorded, status: int, text: str, headers: dict[str, str] | None = None
) -> web.Response:
    body: dict[str, Any] = {"error": {"message": text, "type": "scripted"}}
    if seen.dialect == "anthropic":
        body = answers.anthropic_error(status, text)
    return web.json_response(body, status=status, headers=headers)


def _error_event(seen: Recorded) -> bytes:
    if seen.dialect == "anthropic":
        return answers.anthropic_event(answers.anthropic_error(529, answers.OVERLOADED))
    body = {"error": {"message": answers.OVERLOADED, "type": "scripted"}}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _matches(pattern: str | None, text: str) -> bool:
    if pattern is None:
        return True
    if pattern.startswith("re:"):
        return re.search(pattern[3:], text, re.DOTALL) is not None
    return pattern in text


def _newest(body: dict[str, Any]) -> str:
    """Text of the messages after the last one of the assistant, or of what is embedded."""
    if "messages" not in body:
        return _content(body.get("input"))
    messages: list[dict[str, Any]] = body["messages"] or []
    roles = [message.get("role") for message in messages]
    start = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    return _text(messages[start:])


def _whole(body: dict[str, Any]) -> str:
    if "messages" not in body:
        return _content(body.get("input"))
    return "\n".join((_content(body.get("system")), _text(body["messages"] or [])))


def _text(messages: list[dict[str, Any]]) -> str:
    parts = []
    for message in messages:
        parts.append(_content(message.get("content")))
        if calls := message.get("tool_calls"):
            parts.append(json.dumps(calls))
    return "\n".join(parts)


def _content(content: Any) -> str:
    """Text of a content: a string, or blocks of either dialect, results of tools included."""
    if isinstance(content, list):
        return "\n".join(_content(part) for part in content)
    if isinstance(content, dict):
        if content.get("type") == "tool_use":
            return json.dumps(content)
        return str(content.get("text", "")) or _content(content.get("content"))
    return str(content or "")


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
