"""``/v1``: agents and SDKs call models here, each in its own dialect.

Plain ASGI behind the edge: a framework's request and response objects would cost as much
as all of the routing and metering does.
"""

import asyncio
from typing import Any

import msgspec

from nestor.coordinator.dialects.errors import ID_HEADERS, error_body
from nestor.coordinator.gateway import Whole
from nestor.coordinator.limits import Caller
from nestor.errors import FieldError, InvalidInput, UpstreamError
from nestor.model.access import Principal
from nestor.model.routing import BETAS, Dialect
from nestor.resilience.retry import may_retry
from nestor.telemetry.trace import current_trace_id
from nestor.web import errors, wire
from nestor.web.edge import Message, Receive, Scope, Send
from nestor.web.errors import Headers

ITERATION, CACHE, TAGS = b"x-nestor-iteration", b"x-nestor-cache", b"x-nestor-tags"
LAST_ITERATION, _MAX_DIGITS = 10_000, 15
_MAX_TAGS, _MAX_TAG_CHARS = 16, 64
_BETAS = BETAS.encode()
_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class ModelCalls:
    """ASGI: one path of the gateway. ``nestor`` has a ``coordinator``."""

    def __init__(
        self, nestor: Any, dialect: Dialect, *, embeddings: bool = False
    ) -> None:
        self._nestor = nestor
        self._dialect = dialect
        self._embeddings = embeddings
        self._id_header = ID_HEADERS[dialect].encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what it raises is rendered by ``render``."""
        body = await read_body(receive)
        request = errors.decode_object(body)
        caller = caller_of(scope)
        if self._dialect is Dialect.ANTHROPIC and (betas := _betas(scope)):
            request[BETAS] = betas
        leave_with_the_client(scope)
        gateway = self._nestor.coordinator.gateway
        if self._embeddings:
            done = await gateway.embed(request, caller=caller, request_bytes=len(body))
        else:
            done = await gateway.ask(
                self._dialect, request, caller=caller, request_bytes=len(body)
            )
        headers: Headers = [
            *done.headers,
            (self._id_header, current_trace_id().encode()),
        ]
        if isinstance(done, Whole):
            size = (b"content-length", b"%d" % len(done.body))
            await send(_start([*headers, _JSON, size]))
            await send({"type": "http.response.body", "body": done.body})
            return
        try:
            await send(_start([*headers, _EVENTS]))
            async for piece in done:
                await send(
                    {"type": "http.response.body", "body": piece, "more_body": True}
                )
            await send({"type": "http.response.body", "body": b""})
        finally:
            await done.aclose()

    def render(self, error: Exception, trace_id: str) -> tuple[int, Headers, bytes]:
        """Say an error in the dialect's shape: status, headers, body."""
        told = errors.explain(error, trace_id)
        field = told.fields[0] if told.fields else FieldError("", "")
        body = msgspec.json.encode(
            error_body(
                self._dialect,
                told.status,
                told.detail,
                field=field.field or None,
                trace_id=trace_id,
            )
        )
        return (
            told.status,
            [
                _JSON,
                (b"content-length", b"%d" % len(body)),
                (self._id_header, trace_id.encode()),
                *told.headers,
                *_asking_again(error),
            ],
            body,
        )


def _asking_again(error: Exception) -> Headers:
    """Tell a client not to ask again where that is no use, as OpenAI and Anthropic do.

    Their SDKs ask a 502 again by themselves; a key that the model's server refuses stays
    refused.
    """
    if isinstance(error, UpstreamError) and not may_retry(error):
        return [(b"x-should-retry", b"false")]
    return []


def caller_of(scope: Scope) -> Caller:
    """Return on whose behalf a request asks. Raises ``InvalidInput`` that names a header."""
    user: Principal = scope["user"]
    given = {
        name: value
        for name, value in scope["headers"]
        if name in {ITERATION, CACHE, TAGS}
    }
    if not given:
        return Caller(key_id=user.key_id, limits=user.limits, task_id=user.task_id)
    iteration = _iteration(given.get(ITERATION))
    return Caller(
        key_id=user.key_id,
        limits=user.limits,
        task_id=user.task_id,
        # The sandbox's forwarder says it, of its own task alone.
        iteration=iteration if user.task_id else None,
        tags=_tags(given.get(TAGS)),
        cache=_cache(given.get(CACHE)),
    )


def leave_with_the_client(scope: Scope) -> None:
    """End the request when its client leaves, so that the upstream stops too."""
    cycle = scope["extensions"].get(wire.CYCLE)
    task = asyncio.current_task()
    if cycle is not None and task is not None:
        cycle.when_gone(task.cancel)


async def read_body(receive: Receive) -> bytes:
    """Read a whole request; the edge bounds it."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts = [body]
    while message.get("more_body", False):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts)


def _start(headers: Headers) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _iteration(given: bytes | None) -> int | None:
    if given is None:
        return None
    # Counted first: Python refuses to read digits without end.
    short = given.isdigit() and len(given) <= _MAX_DIGITS
    if not (short and 0 < int(given) <= LAST_ITERATION):
        raise InvalidInput.at(ITERATION.decode(), "must be a number from 1")
    return int(given)


def _tags(given: bytes | None) -> tuple[str, ...]:
    if given is None:
        return ()
    tags = tuple(tag.strip() for tag in given.decode("latin-1").split(","))
    if len(tags) > _MAX_TAGS or not all(0 < len(t) <= _MAX_TAG_CHARS for t in tags):
        message = "names of tags, separated by commas"
        raise InvalidInput.at(TAGS.decode(), message)
    return tags


def _betas(scope: Scope) -> list[str]:
    """Return the betas that the caller asks for; what they may be called, ``check`` knows."""
    given = [value for name, value in scope["headers"] if name == _BETAS]
    said = b",".join(given).decode("latin-1")
    return [name for part in said.split(",") if (name := part.strip())]


def _cache(given: bytes | None) -> bool:
    if given not in {None, b"true", b"false"}:
        raise InvalidInput.at(CACHE.decode(), "must be true or false")
    return given == b"true"
