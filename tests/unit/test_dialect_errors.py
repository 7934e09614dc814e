"""What OpenAI's and Anthropic's own SDKs raise for the errors that callers are sent."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from nestor.coordinator.dialects.errors import ID_HEADERS, error_body, error_event
from nestor.coordinator.dialects.responses import Responses
from nestor.model.routing import Dialect

TRACE = "0af7651916cd43dd8448eb211c80319c"
ASK: Any = [{"role": "user", "content": "hi"}]
BEGUN = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "one"}}]}
START = b'event: ping\ndata: {"type":"ping"}\n\n'

Case = tuple[int, type[Exception], str, str | None]
OPENAI: tuple[Case, ...] = (
    (400, openai.BadRequestError, "invalid_request_error", None),
    (401, openai.AuthenticationError, "authentication_error", "invalid_api_key"),
    (402, openai.APIStatusError, "insufficient_quota", "insufficient_quota"),
    (403, openai.PermissionDeniedError, "permission_error", "permission_denied"),
    (404, openai.NotFoundError, "invalid_request_error", "not_found"),
    (409, openai.ConflictError, "conflict_error", "conflict"),
    (413, openai.APIStatusError, "invalid_request_error", "request_too_large"),
    (422, openai.UnprocessableEntityError, "invalid_request_error", None),
    (429, openai.RateLimitError, "rate_limit_error", "rate_limit_exceeded"),
    (500, openai.InternalServerError, "server_error", "server_error"),
    (502, openai.InternalServerError, "upstream_error", "upstream_error"),
    (503, openai.InternalServerError, "server_error", "unavailable"),
    (504, openai.InternalServerError, "timeout_error", "upstream_timeout"),
    (599, openai.InternalServerError, "server_error", "server_error"),
)
ANTHROPIC: tuple[tuple[int, type[Exception], str], ...] = (
    (400, anthropic.BadRequestError, "invalid_request_error"),
    (401, anthropic.AuthenticationError, "authentication_error"),
    (402, anthropic.APIStatusError, "billing_error"),
    (403, anthropic.PermissionDeniedError, "permission_error"),
    (404, anthropic.NotFoundError, "not_found_error"),
    (409, anthropic.ConflictError, "invalid_request_error"),
    (413, anthropic.APIStatusError, "request_too_large"),
    (429, anthropic.RateLimitError, "rate_limit_error"),
    (500, anthropic.InternalServerError, "api_error"),
    (502, anthropic.InternalServerError, "api_error"),
    (503, anthropic.InternalServerError, "overloaded_error"),
    (504, anthropic.InternalServerError, "timeout_error"),
    (529, anthropic.InternalServerError, "overloaded_error"),
)


@asynccontextmanager
async def answering(
    dialect: Dialect, status: int, body: dict[str, Any] | bytes
) -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        headers = {ID_HEADERS[dialect]: TRACE}
        if isinstance(body, bytes):
            return web.Response(
                body=body, content_type="text/event-stream", headers=headers
            )
        return web.json_response(body, status=status, headers=headers)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


def asking(client: openai.AsyncOpenAI, dialect: Dialect, **how: Any) -> Awaitable[Any]:
    if dialect is Dialect.OPENAI:
        return client.chat.completions.create(model="m", messages=ASK, **how)
    return client.responses.create(model="m", input="hi", **how)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dialect", [Dialect.OPENAI, Dialect.RESPONSES])
@pytest.mark.parametrize(("status", "raised", "kind", "code"), OPENAI)
async def test_openais_sdk_raises_what_the_status_means(
    dialect: Dialect,
    status: int,
    raised: type[Exception],
    kind: str,
    code: str | None,
    streamed: bool,
) -> None:
    body = error_body(dialect, status, "x.y: no", field="x.y", trace_id=TRACE)
    async with (
        answering(dialect, status, body) as url,
        openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await asking(client, dialect, stream=streamed)
    error = caught.value
    assert type(error) is raised
    assert (error.type, error.code, error.param) == (kind, code, "x.y")
    assert error.request_id == TRACE
    told: Any = error.body
    assert (told["message"], told["trace_id"]) == ("x.y: no", TRACE)
    assert "x.y: no" in str(error)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "raised", "kind"), ANTHROPIC)
async def test_anthropics_sdk_raises_what_the_status_means(
    status: int, raised: type[Exception], kind: str, streamed: bool
) -> None:
    dialect = Dialect.ANTHROPIC
    body = error_body(dialect, status, "x: no", code="c", field="x", trace_id=TRACE)
    async with (
        answering(dialect, status, body) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(
                model="m", messages=ASK, max_tokens=5, stream=streamed
            )
    error = caught.value
    assert isinstance(error, raised)
    assert (error.type, error.error_code) == (kind, "c")
    assert error.request_id == TRACE
    told: Any = error.body
    assert (told["request_id"], told["error"]["message"]) == (TRACE, "x: no")


def test_a_model_that_nobody_has_is_known_by_its_code() -> None:
    body = error_body(Dialect.OPENAI, 404, "no", field="model", trace_id=TRACE)
    assert body["error"]["code"] == "model_not_found"
    own = error_body(Dialect.OPENAI, 400, "no", code="own", trace_id=TRACE)
    assert (own["error"]["code"], own["error"]["param"]) == ("own", None)


async def read(stream: Any, raised: type[Exception]) -> tuple[int, Any]:
    seen = 0
    try:
        async for _ in stream:
            seen += 1
    except raised as error:
        return seen, error
    pytest.fail("nothing was raised")


async def test_openais_sdk_raises_in_the_middle_of_a_chat() -> None:
    dialect = Dialect.OPENAI
    raw = b'data: {"choices":[]}\n\n'
    raw += error_event(dialect, 502, "far: cut\n\n", trace_id=TRACE)
    async with (
        answering(dialect, 200, raw) as url,
        openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client,
    ):
        stream = await asking(client, dialect, stream=True)
        seen, error = await read(stream, openai.APIError)
    assert (seen, error.message) == (1, "far: cut\n\n")
    assert (error.type, error.code) == ("upstream_error", "upstream_error")
    assert error.body["trace_id"] == TRACE


async def test_anthropics_sdk_raises_in_the_middle_of_a_message() -> None:
    dialect = Dialect.ANTHROPIC
    raw = START + error_event(dialect, 503, "far: cut", trace_id=TRACE)
    async with (
        answering(dialect, 200, raw) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
    ):
        stream = await client.messages.create(
            model="m", messages=ASK, max_tokens=5, stream=True
        )
        _, error = await read(stream, anthropic.APIStatusError)
    assert error.type == "overloaded_error"
    assert error.body["request_id"] == TRACE


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_prompt"),
        (402, "insufficient_quota"),
        (429, "rate_limit_exceeded"),
        (502, "server_error"),
    ],
)
async def test_a_response_that_breaks_is_raised_and_says_failed(
    begun: bool, status: int, code: str
) -> None:
    dialect = Dialect.RESPONSES
    events = Responses().events({"model": "m", "input": "hi"}) if begun else None
    raw = events.feed(BEGUN) if events is not None else b""
    raw += error_event(dialect, status, "far: cut", trace_id=TRACE, events=events)
    assert raw.count(b"event: response.failed") == 1
    assert f'"status":"failed","error":{{"code":"{code}"'.encode() in (
        raw.replace(b'"background":false,', b"")
    )
    async with (
        answering(dialect, 200, raw) as url,
        openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client,
    ):
        stream = await asking(client, dialect, stream=True)
        seen, error = await read(stream, openai.APIError)
        asked: dict[str, Any] = {"model": "m", "input": "hi"}
        async with client.responses.stream(**asked) as kept:
            _, same = await read(kept, openai.APIError)
    assert (seen > 0, error.message) == (begun, "far: cut")
    assert same.body == error.body
    assert error.body["trace_id"] == TRACE
