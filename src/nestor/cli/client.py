"""Calls to the running stack over HTTP.

Standard library only: a command should be done before a bigger client is imported.
Every failure becomes one of ``nestor.errors``; nothing here prints.
"""

import http.client
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from nestor.cli.inert import one_line
from nestor.errors import (
    BudgetExceeded,
    Conflict,
    FieldError,
    Forbidden,
    InvalidInput,
    Misconfigured,
    NestorError,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from nestor.resilience.secret_file import read_secret_file

if TYPE_CHECKING:
    from nestor.settings import Settings

REPLY_LIMIT_BYTES = 64 * 1024 * 1024
_KEEP_ALIVE_S = 15.0
"""The stack sends a comment this often on a stream; three missed ones mean it is gone."""
_END = "end"
_RESUMES = 20
_BY_STATUS: dict[int, type[NestorError]] = {
    400: InvalidInput,
    401: Unauthorized,
    402: BudgetExceeded,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
    500: NestorError,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a server-sent stream; ``data`` is decoded JSON."""

    id: str
    kind: str
    data: dict[str, Any]


class Stack:
    """Where the layers answer, and the key that opens them."""

    def __init__(self, host: str, ports: Mapping[str, int], key: str | None) -> None:
        self._host = host
        self._ports = ports
        self._key = key

    @classmethod
    def find(cls, settings: "Settings | None" = None) -> "Stack":
        """Find the stack of this data folder: the ports it wrote, else those of the settings."""
        settings = settings or load_settings()
        ports = {
            "dashboard": settings.dashboard_port,
            "ralph": settings.ralph_port,
            "aidb": settings.aidb_port,
            "coordinator": settings.coordinator_port,
            "learning": settings.learning_port,
        }
        run = read_run_file(settings.home) or {}
        ports |= run.get("ports", {})
        host = run.get("host") or settings.local_host
        return cls(host, ports, admin_key(settings))

    def url(self, layer: str) -> str:
        """Return the address of a layer, without a path."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._ports.get(layer, 0)}"

    def call(
        self,
        layer: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Any = None,
        raw_body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Any:
        """Make one call and return its decoded JSON (text, for another content type).

        ``body`` is sent as JSON, ``raw_body`` as it is.
        """
        given = {k: str(v) for k, v in (query or {}).items() if v is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        connection = self._connect(layer, timeout_s)
        try:
            reply = self._send(
                connection,
                layer,
                method,
                target,
                body=body,
                raw_body=raw_body,
                headers=headers,
            )
            try:
                raw = reply.read(REPLY_LIMIT_BYTES + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(self._gone(layer, error)) from error
        finally:
            connection.close()
        if len(raw) > REPLY_LIMIT_BYTES:
            raise Unavailable(f"{self.url(layer)}{path}: the reply is too large")
        return self._decode(layer, reply, raw)

    def stream(
        self, layer: str, path: str, *, until: str = _END, quiet_s: float | None = None
    ) -> Iterator[ServerEvent]:
        """Yield the events of a stream up to the first one named ``until``.

        ``end`` alone: up to the one after which the stack closes it, as a task that was
        begun again has several. A cut connection is resumed after the last event seen, so none is missed or repeated.
        ``quiet_s``: no longer than till nothing came for so long: what there is by now.
        Raises ``Unavailable`` after 20 resumes in a row without an event.
        """
        last, failures, ended = "", 0, False
        while True:
            try:
                for event in self._one_stream(layer, path, last, quiet_s):
                    failures = 0
                    last = event.id or last
                    ended = event.kind == until
                    yield event
                    if ended and until != _END:
                        return
                if ended or quiet_s:
                    return
            except Unavailable as error:
                if quiet_s and isinstance(error.__cause__, TimeoutError):
                    return
                if not last or failures >= _RESUMES:
                    raise
            failures += 1
            if failures > _RESUMES:
                raise Unavailable(f"{self.url(layer)}{path}: the stream keeps ending")
            time.sleep(min(0.1 * failures, 1.0))

    @contextmanager
    def answer(
        self, path: str, body: Any, *, timeout_s: float = 600.0
    ) -> Iterator[tuple[Mapping[str, str], Iterator[dict[str, Any]]]]:
        """Ask the Coordinator for a streamed chat completion: headers, and its chunks.

        Raises ``Unavailable``, also from the iterator: for a stream that says so, or that
        ends before its end.
        """
        connection = self._connect("coordinator", timeout_s)
        headers = {"Accept": "text/event-stream"}
        try:
            reply = self._send(
                connection, "coordinator", "POST", path, body=body, headers=headers
            )
            if reply.status != http.client.OK:
                self._decode("coordinator", reply, reply.read(REPLY_LIMIT_BYTES))
            said = {name.lower(): value for name, value in reply.getheaders()}
            yield said, self._chunks(reply)
        finally:
            connection.close()

    def _chunks(self, reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        try:
            while raw := reply.readline(REPLY_LIMIT_BYTES):
                name, _, data = raw.decode(errors="replace").rstrip().partition(": ")
                if name != "data":
                    continue
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if isinstance(error := chunk.get("error"), dict):
                    raise Unavailable(one_line(error.get("message"), 2000))
                yield chunk
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as e:
            raise Unavailable(self._gone("coordinator", e)) from e
        raise Unavailable("the answer broke off before its end")

    def _one_stream(
        self, layer: str, path: str, last: str, quiet_s: float | None
    ) -> Iterator[ServerEvent]:
        connection = self._connect(layer, quiet_s or 3 * _KEEP_ALIVE_S)
        headers = {"Accept": "text/event-stream"}
        if last:
            headers["Last-Event-ID"] = last
        try:
            reply = self._send(connection, layer, "GET", path, headers=headers)
            if reply.status != http.client.OK:
                self._decode(layer, reply, reply.read(REPLY_LIMIT_BYTES))
            try:
                yield from _events(reply)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise Unavailable(self._gone(layer, error)) from error
        finally:
            connection.close()

    def _connect(self, layer: str, timeout_s: float) -> http.client.HTTPConnection:
        port = self._ports.get(layer, 0)
        if not port:
            raise Unavailable(
                "no stack runs on this data folder, so its port is not known"
                " — start it with: nestor up"
            )
        return http.client.HTTPConnection(self._host, port, timeout=timeout_s)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        layer: str,
        method: str,
        target: str,
        *,
        body: Any = None,
        raw_body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        sent = {"Accept": "application/json"}
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
        content = raw_body
        if raw_body is not None:
            sent["Content-Type"] = "application/octet-stream"
        if body is not None:
            content = json.dumps(body, ensure_ascii=True).encode()
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        try:
            connection.request(method, target, body=content, headers=sent)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(self._gone(layer, error)) from error

    def _gone(self, layer: str, error: Exception) -> str:
        if isinstance(error, ConnectionRefusedError):
            return (
                f"nothing answers at {self.url(layer)} ({layer}): the stack is not"
                " running — start it with: nestor up"
            )
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        return (
            f"{self.url(layer)} ({layer}) does not answer: {why or type(error).__name__}"
            " — look at it with: nestor doctor"
        )

    def _decode(self, layer: str, reply: http.client.HTTPResponse, raw: bytes) -> Any:
        kind = (reply.getheader("Content-Type") or "").split(";")[0].strip()
        value: Any = raw.decode(errors="replace")
        if kind == "application/json" or kind.endswith("+json"):
            try:
                value = json.loads(raw) if raw else None
            except (ValueError, RecursionError) as error:
                raise Unavailable(
                    f"{self.url(layer)}: the reply is not JSON"
                ) from error
        if reply.status < http.client.BAD_REQUEST:
            return value
        if not isinstance(value, dict):
            raise Unavailable(
                f"{self.url(layer)} answered {reply.status}, and not as Nestor does:"
                " another program may use that port — look at it with: nestor doctor"
            )
        raise _problem(reply.status, value, reply.getheader("Retry-After"))


def load_settings() -> "Settings":
    """Read the settings; imported here because ``nestor --version`` does without."""
    from nestor.settings import Settings  # noqa: PLC0415 - 0.15 s of imports

    return Settings.load()


def task_path(task_id: str, tail: str = "") -> str:
    """Return the path of a task; an id can hold nothing that changes the path."""
    if task_id.strip(".") == "":
        raise InvalidInput.at("task_id", f"{task_id!r} is not an id")
    return f"/tasks/{quote(task_id, safe='')}{tail}"


def read_run_file(home: Path) -> dict[str, Any] | None:
    """Return what the running stack wrote about itself; None when none runs here."""
    try:
        found = json.loads((home / "run.json").read_bytes())
        pid, ports = int(found["pid"]), dict(found["ports"])
        os.kill(pid, 0)
    except PermissionError:
        pass  # it lives, and belongs to someone else
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {
        "pid": pid,
        "host": str(found["host"]) if found.get("host") else None,
        "ports": {str(name): int(port) for name, port in ports.items()},
        "started_at": found.get("started_at"),
    }


def admin_key(settings: "Settings") -> str | None:
    """Return the key in force: the setting, else the file; None before the first start."""
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    path = key_file(settings)
    try:
        return read_secret_file(path, owner_only=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Misconfigured(
            f"{path}: {error.strerror} — run as the user who started the"
            " stack, or set NESTOR_API_KEY"
        ) from error
    except ValueError as error:
        raise Misconfigured(f"{error} — or set NESTOR_API_KEY") from error


def key_file(settings: "Settings") -> Path:
    """Return where the admin key stands."""
    return settings.home / "api-key"


def _problem(status: int, body: dict[str, Any], retry_after: str | None) -> NestorError:
    if isinstance(said := body.get("error"), dict):  # a dialect's own shape
        body = {"detail": said.get("message"), "trace_id": said.get("trace_id")}
    message = one_line(body.get("detail") or body.get("title") or status, 2000)
    if status == http.client.TOO_MANY_REQUESTS:
        wait = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
        return RateLimited(f"{message} — try again in {wait:g} s", retry_after_s=wait)
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = (
            InvalidInput if status < http.client.INTERNAL_SERVER_ERROR else NestorError
        )
    if issubclass(kind, InvalidInput):
        fields = [
            FieldError(
                one_line(e.get("field", "")), one_line(e.get("message", ""), 500)
            )
            for e in body.get("errors") or []
            if isinstance(e, dict)
        ]
        return kind(message, *fields)
    if kind is Unauthorized:
        message += " — print the key with: nestor key"
    if kind is NestorError and body.get("trace_id"):
        message += f" — trace {one_line(body['trace_id'], 64)} in the stack's log"
    return kind(message)


def _events(reply: http.client.HTTPResponse) -> Iterator[ServerEvent]:
    event_id, kind, data = "", "message", list[str]()
    while raw := reply.readline(1 << 20):
        line = raw.decode(errors="replace").rstrip("\r\n")
        if not line:
            if data:
                value = json.loads("\n".join(data))
                yield ServerEvent(
                    event_id, kind, value if isinstance(value, dict) else {}
                )
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            event_id = value
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)
