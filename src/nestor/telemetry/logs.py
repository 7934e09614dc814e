r"""Logs: one line a record on one stream, structured, redacted, with the trace id.

``configure`` routes structlog and the standard library's logging (uvicorn, DBOS,
Alembic, Litestar) through the same processors. Use ``get_logger(name)`` with a short
event name and keys: ``log.warning("circuit_breaker_open", name=name)``.

No value can break out of its line or steer a terminal: line ends, escape sequences,
control and bidirectional characters are written as ``\n``, ``\x1b``, ``\u202e``.
"""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from nestor.telemetry.redact import redact, redact_value
from nestor.telemetry.trace import known_trace_id

_ROUTED: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "dbos", "alembic")
_LITESTAR: Final = "litestar"
# Their INFO is a line a request or a line a query; the metrics count those.
_QUIET: Final = (
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "alembic",
    "httpx",
    "aiohttp.access",
    "sqlalchemy",
    "asyncio",
)
_MAX_DEPTH = 16
_MAX_VALUE = 16_384
"""Characters of one value; the rest is cut, and the text says so."""
# C0 without tab, DEL, C1, line and paragraph separators, bidirectional and zero-width
# format characters, byte order mark, tags.
_UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_PLAIN = re.compile(r"[\w./:@+%,-]+")


_LINE = msgspec.json.Encoder()
_output: tuple[str, TextIO] | None = None
"""Format and stream, once configured."""


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """Say that a record was lost; the default prints its arguments, unredacted."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write("log record lost: it could not be written\n")


def configure(log_format: str, stream: TextIO, *, level: int = logging.INFO) -> None:
    """Send all logs of this process to ``stream`` as ``console`` or ``json`` lines.

    May be called again; the last call holds.
    """
    global _output  # noqa: PLW0603 - one log a process, as in ``logging`` itself
    _output = (log_format, stream)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_id,
    ]
    render = render_json if log_format == "json" else render_console
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                # Plain tracebacks: the rich ones print local variables.
                structlog.processors.format_exc_info,
                redact_record,
                render,
            ],
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in (*_ROUTED, _LITESTAR):
        logger = logging.getLogger(name)
        # Not empty: DBOS adds a console handler of its own where it finds none.
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def get_logger(name: str) -> Any:
    """Return a logger that never writes to standard output, ``configure`` called or not.

    Before ``configure``: console lines on standard error, redacted as well.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _add_trace_id,
                structlog.processors.format_exc_info,
                redact_record,
                render_console,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            # Looked up at each record: standard error may be replaced.
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
            cache_logger_on_first_use=False,
        )
    return structlog.get_logger(name)


def write_lines(records: Sequence[msgspec.Struct]) -> None:
    """Write records that are complete and redacted, in one go, in the configured format.

    For lines too many to take the usual way one by one.
    """
    log_format, stream = _output or ("console", sys.stderr)
    if log_format == "json":
        text = _LINE.encode_lines(records).decode()
    else:
        shown = (msgspec.structs.asdict(record) for record in records)
        text = "".join(render_console(None, "", one) + "\n" for one in shown)
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def _add_trace_id(_: WrappedLogger, __: str, record: EventDict) -> EventDict:
    if "trace_id" not in record and (trace_id := known_trace_id()):
        record["trace_id"] = trace_id
    return record


def redact_record(_: WrappedLogger, __: str, record: EventDict) -> EventDict:
    """Take secrets out of every value, the traceback included, and bound its length."""
    cleaned = redact_value({key: _plain(value) for key, value in record.items()})
    return {key: _cut(value) for key, value in cleaned.items()}


def _plain(value: Any, depth: int = 0) -> Any:
    """Turn objects into text before redaction: what ``repr`` shows may hold a secret."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        # Far above the bound: cut before the work of redaction, and again after it.
        return value if len(value) <= 4 * _MAX_VALUE else value[: 4 * _MAX_VALUE]
    if depth > _MAX_DEPTH:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    return _plain(str(value) if isinstance(value, BaseException) else repr(value))


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_VALUE:
        return f"{value[:_MAX_VALUE]}… [cut]"
    return value


def escape(text: str) -> str:
    """Write line ends, control, escape and bidirectional characters visibly."""
    return _UNSAFE.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


def render_json(_: WrappedLogger, __: str, record: EventDict) -> str:
    """Render one JSON object; everything outside ASCII is escaped."""
    return json.dumps(record, default=lambda value: redact(repr(value)))


def render_console(_: WrappedLogger, __: str, record: EventDict) -> str:
    """Render ``time level event key=value …``; a traceback follows, each line marked."""
    traceback = record.pop("exception", None) or record.pop("stack", None)
    head = [
        str(record.pop("timestamp", "")),
        f"{record.pop('level', ''):<8}",
        escape(str(record.pop("event", ""))),
    ]
    record.pop("logger", None)
    pairs = [f"{escape(key)}={_console_value(value)}" for key, value in record.items()]
    lines = [" ".join([*head, *pairs])]
    if traceback:
        # Marked, so that no line of a message inside can pass for a record of its own.
        lines += [f"  | {escape(line)}" for line in str(traceback).split("\n")]
    return "\n".join(lines)


def _console_value(value: Any) -> str:
    if type(value) in (int, float):
        return str(value)
    if not isinstance(value, str):
        return escape(json.dumps(value, ensure_ascii=False, default=str))
    if _PLAIN.fullmatch(value):
        return value
    return '"' + escape(value).replace('"', '\\"') + '"'
