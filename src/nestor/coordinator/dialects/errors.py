"""What went wrong, in the words of the caller's dialect, so that its SDK raises the right thing.

``trace_id`` is in every body: in OpenAI's ``error`` as one more member, in Anthropic's as
``request_id``. SDKs read it from a header, too: ``ID_HEADERS``.
"""

from typing import Any, Protocol, runtime_checkable

import msgspec

from nestor.model.routing import Dialect

ID_HEADERS = {
    Dialect.OPENAI: "x-request-id",
    Dialect.RESPONSES: "x-request-id",
    Dialect.ANTHROPIC: "request-id",
}
"""The reply's header that an SDK shows as ``request_id``: give it the trace id."""

_BAD, _AUTH, _PAYMENT, _FORBIDDEN, _ABSENT = 400, 401, 402, 403, 404
_TIMED_OUT, _CONFLICT, _TOO_LARGE, _TOO_MANY = 408, 409, 413, 429
_BROKEN, _BAD_GATEWAY, _UNAVAILABLE, _GATEWAY_TIMEOUT = 500, 502, 503, 504
_OVERLOADED = 529
_OPENAI: dict[int, tuple[str, str | None]] = {
    _BAD: ("invalid_request_error", None),
    _AUTH: ("authentication_error", "invalid_api_key"),
    _PAYMENT: ("insufficient_quota", "insufficient_quota"),
    _FORBIDDEN: ("permission_error", "permission_denied"),
    _ABSENT: ("invalid_request_error", "not_found"),
    _TIMED_OUT: ("timeout_error", "timeout"),
    _CONFLICT: ("conflict_error", "conflict"),
    _TOO_LARGE: ("invalid_request_error", "request_too_large"),
    _TOO_MANY: ("rate_limit_error", "rate_limit_exceeded"),
    _BROKEN: ("server_error", "server_error"),
    _BAD_GATEWAY: ("upstream_error", "upstream_error"),
    _UNAVAILABLE: ("server_error", "unavailable"),
    _GATEWAY_TIMEOUT: ("timeout_error", "upstream_timeout"),
    _OVERLOADED: ("server_error", "unavailable"),
}
"""Type and code. Unknown statuses are as 400 or 500."""
_ANTHROPIC = {
    _BAD: "invalid_request_error",
    _AUTH: "authentication_error",
    _PAYMENT: "billing_error",
    _FORBIDDEN: "permission_error",
    _ABSENT: "not_found_error",
    _TIMED_OUT: "timeout_error",
    _TOO_LARGE: "request_too_large",
    _TOO_MANY: "rate_limit_error",
    _BROKEN: "api_error",
    _UNAVAILABLE: "overloaded_error",
    _GATEWAY_TIMEOUT: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_FAILED = {_PAYMENT: "insufficient_quota", _TOO_MANY: "rate_limit_exceeded"}
"""Codes of a failed response; agents try again after all but the first."""


@runtime_checkable
class Failing(Protocol):
    """The events of an answer that can say, in their own order, that it failed."""

    def failed(self, error: dict[str, Any]) -> bytes:
        """Return the event; ``error`` is the response's (``code``, ``message``)."""
        ...

    def number(self) -> int:
        """Return the next event's number, and count it."""
        ...


def error_body(
    dialect: Dialect,
    status: int,
    message: str,
    *,
    code: str | None = None,
    field: str | None = None,
    trace_id: str,
) -> dict[str, Any]:
    """Return the JSON body of an error reply.

    ``field`` is the request's dotted path; ``code`` replaces the status's usual one.
    """
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC.get(status) or _ANTHROPIC[_family(status)]
        # The shape has one place for words, and the message already names the field.
        error: dict[str, Any] = {"type": kind, "message": message}
        if code is not None:
            error["details"] = {"error_code": code}
        return {"type": "error", "error": error, "request_id": trace_id}
    kind, usual = _OPENAI.get(status) or _OPENAI[_family(status)]
    if status == _ABSENT and field == "model":
        usual = "model_not_found"
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": field,
            "code": code or usual,
            "trace_id": trace_id,
        }
    }


def error_event(
    dialect: Dialect,
    status: int,
    message: str,
    *,
    code: str | None = None,
    field: str | None = None,
    trace_id: str,
    events: object | None = None,
) -> bytes:
    """Return the events that end a stream that broke; nothing else follows.

    ``events``: what made the events so far, if anything did; Responses numbers them, and
    tells in the last one what there was until then.
    """
    body = error_body(
        dialect, status, message, code=code, field=field, trace_id=trace_id
    )
    if dialect is Dialect.OPENAI:
        return b"data: " + msgspec.json.encode(body) + b"\n\n"
    if dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
    error = body["error"]
    failing = events if isinstance(events, Failing) else _Nothing(trace_id)
    event = {
        "type": "error",
        "code": error["code"],
        "message": message,
        "param": field,
        # SDKs raise for an event with an ``error`` in it, and for no other.
        "error": error,
        "sequence_number": failing.number(),
    }
    usual = "server_error" if _family(status) == _BROKEN else "invalid_prompt"
    failed = {"code": code or _FAILED.get(status, usual), "message": message}
    # Codex reads only the second, the SDKs nothing after the first.
    first = b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    return first + failing.failed(failed)


def _family(status: int) -> int:
    return _BROKEN if status >= _BROKEN else _BAD


class _Nothing:
    """Stands in for an answer of which nothing was said yet."""

    def __init__(self, trace_id: str) -> None:
        self._id = f"resp_{trace_id}"
        self._numbered = 0

    def number(self) -> int:
        self._numbered += 1
        return self._numbered - 1

    def failed(self, error: dict[str, Any]) -> bytes:
        response = {
            "id": self._id,
            "object": "response",
            "status": "failed",
            "error": error,
            "output": [],
        }
        event = {
            "type": "response.failed",
            "response": response,
            "sequence_number": self.number(),
        }
        return b"event: response.failed\ndata: " + msgspec.json.encode(event) + b"\n\n"
