"""From an exception to an RFC 9457 problem: the only table of statuses in the HTTP face."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, NotFoundException, ValidationException

from nestor import errors
from nestor.errors import FieldError, InvalidInput
from nestor.telemetry.logs import get_logger
from nestor.telemetry.trace import current_trace_id

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]

STATUS: dict[type[errors.NestorError], int] = {
    errors.NotFound: 404,
    errors.TooLarge: 413,
    errors.InvalidInput: 400,
    errors.Conflict: 409,
    errors.Forbidden: 403,
    errors.Unauthorized: 401,
    errors.BudgetExceeded: 402,
    errors.RateLimited: 429,
    errors.CircuitOpen: 503,
    errors.UpstreamError: 502,
    errors.UpstreamTimeout: 504,
    errors.Unavailable: 503,
    errors.WorkspaceError: 400,
    errors.SandboxError: 503,
    errors.Misconfigured: 500,
}

MAX_TEXT = 2_000
"""Characters of a caller's own words that an error repeats."""
MAX_CHECKED_BYTES = 1 << 20
"""Bodies over this (documents) are not searched for repeated names: it would block."""

_MAX_DIGITS = 20
_log = get_logger("nestor.web")
_WHERE = re.compile(
    r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$", re.DOTALL
)
_NAMED = re.compile(r"(?:unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)
_INDEX = re.compile(r"\[(\d+)\]")


class Refused(errors.NestorError):
    """The request was turned away before any service saw it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        allow: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow
        self.retry_after_s = retry_after_s


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every reply that is an error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: Sequence[dict[str, str]] = ()
    trace_id: str


def status_of(error: Exception) -> int:
    """Return the HTTP status of an exception; 500 for one that nobody planned."""
    if isinstance(error, (Refused, HTTPException)):
        return error.status if isinstance(error, Refused) else error.status_code
    return next((STATUS[c] for c in type(error).__mro__ if c in STATUS), 500)


class Told(NamedTuple):
    """What may be said of an exception, whatever the shape of the reply."""

    status: int
    slug: str
    detail: str
    fields: Sequence[FieldError]
    headers: Headers


def explain(error: Exception, trace_id: str) -> Told:
    """Say what a caller may know of an exception; log it, once, when it is a bug."""
    status = status_of(error)
    planned = isinstance(error, (Refused, *STATUS)) or (
        isinstance(error, HTTPException) and status < HTTPStatus.INTERNAL_SERVER_ERROR
    )
    detail = "an unexpected error; the log has it under this trace_id"
    fields: Sequence[FieldError] = ()
    if planned:
        detail, fields = _explain(error)
    else:
        _log.error("unexpected_error", trace_id=trace_id, exc_info=error)
    return Told(
        status=status,
        slug=_slug(error, status),
        detail=_printable(detail),
        fields=[FieldError(_printable(e.field), _printable(e.message)) for e in fields],
        headers=_headers_of(error, status),
    )


def render(error: Exception, trace_id: str) -> tuple[int, Headers, bytes]:
    """Turn an exception into status, headers and the body of a problem."""
    told = explain(error, trace_id)
    problem = Problem(
        type=f"urn:nestor:problem:{told.slug}",
        title=told.slug.replace("-", " ").capitalize(),
        status=told.status,
        detail=told.detail,
        errors=[{"field": e.field, "message": e.message} for e in told.fields],
        trace_id=trace_id,
    )
    body = msgspec.json.encode(problem)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        *told.headers,
    ]
    return told.status, headers, body


def handle(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer for Litestar: whatever a handler raised becomes a problem."""
    status, headers, body = render(error, current_trace_id())
    extra = {
        name.decode(): value.decode()
        for name, value in headers
        if name not in {b"content-type", b"content-length"}
    }
    return Response(
        body,
        status_code=status,
        media_type="application/problem+json",
        headers=extra,
    )


def decode(body: bytes, of: type[T]) -> T:
    """Decode JSON strictly into ``of``: no coercion, no repeated names, no NaN.

    Raises ``InvalidInput`` that names the field as a dotted path (``checks.0.run``).
    """
    try:
        value = msgspec.json.decode(body, type=of)
    except msgspec.ValidationError as error:
        raise explain_validation(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else "not UTF-8"
        raise InvalidInput.at("body", f"not valid JSON: {reason}") from None
    except RecursionError:
        raise InvalidInput.at("body", "nested too deeply") from None
    _refuse_ambiguous(body)
    return value


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object of any shape, as ``decode`` does, where each microsecond counts.

    Written anew, an object has each name once: only where that makes a difference is the
    body searched for what two readers would see as different values.
    """
    try:
        value = msgspec.json.decode(body)
        unlike = _names_in(msgspec.json.encode(value)) != _names_in(body)
    except OverflowError:  # an integer beyond 64 bits cannot be written
        unlike = True
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return decode(body, dict[str, Any])
    if not isinstance(value, dict):
        return decode(body, dict[str, Any])
    if unlike:
        _refuse_ambiguous(body)
    return value


def _names_in(body: bytes) -> int:
    """Count what looks like a name; in a text a quote has a backslash before it."""
    return body.count(b'":') - body.count(b'\\":')


def explain_validation(message: str, *, inside: str = "") -> InvalidInput:
    """Turn what msgspec says (``… - at `$.checks[0].run```) into the field it means."""
    match = _WHERE.match(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    steps = [s for s in _INDEX.sub(r".\1", path).replace("[...]", "").split(".") if s]
    if named := _NAMED.search(what):
        steps.append(named["name"])
        what = "unknown field" if "unknown" in what else "required, but missing"
    field = ".".join([*([inside] if inside else []), *steps]) or "body"
    return InvalidInput.at(field, what)


def _refuse_ambiguous(body: bytes) -> None:
    """Refuse what two readers may see as different values.

    In ``{"a": 1, "a": 2}`` one takes the first and one the last; an integer beyond 64 bits
    is rounded by one and refused by another, such as the store that is to keep it.
    """
    if len(body) > MAX_CHECKED_BYTES:
        return
    try:
        found = json.loads(body, object_pairs_hook=_once_each, parse_int=_integer)
    except RecursionError:
        raise InvalidInput.at("body", "nested too deeply") from None
    _refuse_beyond("body", found)


def _once_each(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, value in pairs:
        if name in seen:
            raise InvalidInput.at(name, "given twice")
        seen.add(name)
        _refuse_beyond(name, value)


class _Beyond(str):
    """The beginning of an integer that no column and no other reader would hold."""

    __slots__ = ()


def _integer(digits: str) -> _Beyond | None:
    # Counted first: to read digits without end takes time, and Python refuses to.
    if len(digits) > _MAX_DIGITS or not -(1 << 63) <= int(digits) < 1 << 63:
        return _Beyond(digits[:_MAX_DIGITS])
    return None


def _refuse_beyond(field: str, value: Any) -> None:
    """Objects inside were looked at as they were read; what is left are lists."""
    todo = [value]
    for item in todo:
        if isinstance(item, list):
            todo += item
        elif isinstance(item, _Beyond):
            raise InvalidInput.at(field, f"the integer {item}… is beyond 64 bits")


def _explain(error: Exception) -> tuple[str, Sequence[FieldError]]:
    if isinstance(error, InvalidInput):
        return str(error), error.errors
    if isinstance(error, ValidationException):
        found = list(_from_litestar(error.extra))
        if found:
            return "; ".join(f"{e.field}: {e.message}" for e in found), found
    if isinstance(error, NotFoundException):
        return "nothing is served at this path", ()
    return (error.detail if isinstance(error, HTTPException) else str(error)), ()


def _from_litestar(extra: Any) -> Iterable[FieldError]:
    for item in extra if isinstance(extra, list) else []:
        name, message = str(item.get("key", "")), str(item.get("message", ""))
        if name == "data":
            yield FieldError("body", "a JSON body is required")
        elif message.strip("'") == name:  # a KeyError's text: the value was not there
            yield FieldError(name, "required, but missing")
        else:
            yield FieldError(name or "request", message)


def _headers_of(error: Exception, status: int) -> Headers:
    found: Headers = []
    if status == HTTPStatus.UNAUTHORIZED:
        found.append((b"www-authenticate", b"Bearer"))
    wait_s = getattr(error, "retry_after_s", None)
    if wait_s is not None:
        # Whole seconds, rounded up: coming back early would be refused again.
        found.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))
    allow = error.allow if isinstance(error, Refused) else ""
    if isinstance(error, HTTPException) and error.headers:
        allow = error.headers.get("allow", "")
    if allow:
        found.append((b"allow", allow.encode()))
    return found


def _slug(error: Exception, status: int) -> str:
    known = next((c for c in type(error).__mro__ if c in STATUS), None)
    if known:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", known.__name__).lower()
    return HTTPStatus(status).phrase.lower().replace(" ", "-")


def _printable(text: str) -> str:
    """Cut, and make encodable: an error about bad text must not fail on that text."""
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()
