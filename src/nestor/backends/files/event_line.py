"""An event as one line of JSON: redacted on the way out, lenient on the way in."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from nestor.model.event import SCHEMA_VERSION, Event
from nestor.model.ids import derived_id
from nestor.telemetry import metrics
from nestor.telemetry.redact import redact_value

MAX_LINE_BYTES: Final = 4 * 1024 * 1024
"""A longer event is written without its data, and says so."""
MAX_TEXT: Final = 256 * 1024
"""Characters of one text; the rest is cut, and the text says so."""
DROPPED: Final = "[dropped]"
PROMPT_FIELDS: Final = frozenset({"query", "input", "output", "description"})
_ENVELOPE = frozenset(
    {
        "schema",
        "id",
        "event_type",
        "event",
        "timestamp",
        "source",
        "trace_id",
        "task_id",
    }
)
_SCALARS = frozenset({type(None), bool, int, float})
_encoder = msgspec.json.Encoder()


def encode(event: Event, *, keep_prompts: bool) -> bytes:
    """Return the event's line with its line end. Whatever ``data`` holds, it does not raise."""
    try:
        data = msgspec.to_builtins(event.data, str_keys=True, enc_hook=_unknown)
        line = _line(event, redact_value(_trim(data, keep_prompts=keep_prompts)))
    # RuntimeError: too deep (RecursionError), or changed by another thread meanwhile.
    except (TypeError, ValueError, RuntimeError, msgspec.MsgspecError) as error:
        metrics.EVENT_LOG_ERRORS.labels("unencodable").inc()
        return _line(event, {"unencodable": type(error).__name__})
    if len(line) > MAX_LINE_BYTES:
        metrics.EVENT_LOG_ERRORS.labels("oversize").inc()
        return _line(event, {"oversize_bytes": len(line)})
    return line


def decode(line: bytes, *, origin: tuple[object, ...]) -> Event:
    """Read a line; also the older form (``event`` for ``event_type``, no id, flat data).

    ``origin`` (file, offset) names a line that has no id of its own. Raises
    ``ValueError`` when the line is no event.
    """
    # msgspec's decoding errors are ValueErrors.
    found = msgspec.json.decode(line)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one error for bad lines
    event_type = found.get("event_type") or found.get("event")
    if not isinstance(event_type, str):
        raise ValueError("neither event_type nor event")  # noqa: TRY004
    if "timestamp" not in found:
        raise ValueError("no timestamp")
    data = found.get("data")
    if data is None:
        data = {k: v for k, v in found.items() if k not in _ENVELOPE}
    envelope = {
        "schema": found.get("schema", SCHEMA_VERSION),
        "id": found.get("id") or derived_id(*origin),
        "event_type": event_type,
        "timestamp": _utc(found["timestamp"]),
        "source": found.get("source") or "unknown",
        "trace_id": found.get("trace_id") or "",
        "task_id": found.get("task_id"),
        "data": data,
    }
    return msgspec.convert(envelope, Event)


def _line(event: Event, data: Any) -> bytes:
    envelope: dict[str, Any] = {
        "schema": event.schema,
        "id": _text(event.id),
        "event_type": _text(event.event_type),
        "timestamp": event.timestamp,
        "source": _text(event.source),
        "trace_id": _text(event.trace_id),
    }
    if event.task_id is not None:
        envelope["task_id"] = _text(event.task_id)
    envelope["data"] = data
    return _encoder.encode(envelope) + b"\n"


def _text(value: str) -> str:
    """Make lone surrogates harmless; everything else stays."""
    return value.encode("utf-8", "replace").decode()


def _unknown(value: Any) -> str:
    # Its type only: repr() may raise, and may show a secret in a shape nobody knows.
    return f"<{type(value).__name__}>"


def _trim(value: Any, *, keep_prompts: bool) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            return f"{value[:MAX_TEXT]}… [{len(value) - MAX_TEXT} more characters]"
        return value
    if isinstance(value, Mapping):
        return {
            key: DROPPED
            if not keep_prompts
            and key in PROMPT_FIELDS
            and isinstance(item, str | list | dict)
            else _trim(item, keep_prompts=keep_prompts)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_trim(item, keep_prompts=keep_prompts) for item in value]
    return value


def _utc(value: Any) -> datetime:
    """Read RFC 3339 or seconds since 1970; a time without a zone is UTC."""
    time = msgspec.convert(value, datetime, strict=False)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
