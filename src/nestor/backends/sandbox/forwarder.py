"""The only way out of a sandbox with network ``coordinator``: a few paths of one server.

Listens on a Unix socket (bound into one sandbox) or, without isolation, on a loopback
port below a secret path. Lives in the worker's process, one for each run, and knows the
task's key so that nothing inside has to.
"""

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import hdrs, web

from nestor.backends.sandbox.questions import ASK_PATH, Questions
from nestor.backends.sandbox.refusals import Refusals
from nestor.errors import SandboxError
from nestor.telemetry.trace import traceparent

log = logging.getLogger(__name__)

ADMITTED = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages?beta=true"),  # as Anthropic's SDK and Claude Code ask
        ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
    }
)
"""Method and raw request target, compared as they came: nothing is decoded or joined."""
_PASSED_IN = ("content-type", "accept", "anthropic-version", "anthropic-beta")
_PASSED_OUT = ("content-type", "retry-after", "x-trace-id")
BODY_BYTES = 8 * 1024 * 1024
PARALLEL = 8
CONNECTIONS = 32
_SUN_PATH = 100
"""A Unix socket's address holds 108 bytes."""
_CONNECT_S, _SILENCE_S, _BODY_S = 10.0, 600.0, 60.0


class Forwarder:
    """Admits what ``ADMITTED`` names, adds the key, passes bytes through."""

    def __init__(
        self,
        *,
        upstream: str,
        task_key: str,
        trace_id: str,
        iteration: int | None,
        below: str = "",
        refusals: Refusals | None = None,
        questions: Questions | None = None,
    ) -> None:
        self._upstream = upstream.rstrip("/")
        self._below = below
        self._headers = {"Authorization": f"Bearer {task_key}"}
        self._trace_id = trace_id
        if iteration is not None:
            self._headers["x-nestor-iteration"] = str(iteration)
        self._running = 0
        self._refusals = refusals or Refusals()
        self._questions = questions

    @asynccontextmanager
    async def on_socket(self, home: Path) -> AsyncIterator[Path]:
        """Serve on a Unix socket in a private folder; yields its path."""
        with tempfile.TemporaryDirectory(
            prefix="n-", dir=_short_folder(home)
        ) as folder:
            path = Path(folder) / "coordinator.sock"
            async with self._serving() as factory:
                loop = asyncio.get_running_loop()
                server = await loop.create_unix_server(factory, path)
                path.chmod(0o600)
                try:
                    yield path
                finally:
                    server.close()

    @asynccontextmanager
    async def on_port(self) -> AsyncIterator[int]:
        """Serve on a free loopback port; yields it."""
        async with self._serving() as factory:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(factory, "127.0.0.1", 0)
            try:
                yield server.sockets[0].getsockname()[1]
            finally:
                server.close()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator["_Factory"]:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S
        )
        async with aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Content-Type"),
        ) as self._session:
            server = web.Server(
                self.handle,
                handler_cancellation=True,
                auto_decompress=False,
                access_log=None,
            )
            try:
                yield _Factory(server)
            finally:
                await server.shutdown(timeout=0.1)
                if refused := self._refusals.texts:
                    log.warning("sandbox: refused: %s", "; ".join(refused[:5]))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request from inside."""
        target = request.raw_path
        path = target.removeprefix(self._below)
        ours = target.startswith(self._below)
        if ours and self._questions and (request.method, path) == ("POST", ASK_PATH):
            return await self._asked(self._questions, request)
        if not ours or (request.method, path) not in ADMITTED:
            shown = path if ours else "elsewhere"
            self._refusals.add(f"request {request.method} {shown}")
            return _problem(403, "only the model API can be reached from here")
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            return _problem(415, "send the body without content encoding")
        if self._running >= PARALLEL:
            return _problem(429, f"more than {PARALLEL} requests at once", retry="1")
        self._running += 1
        try:
            return await self._admitted(request, path)
        finally:
            self._running -= 1

    async def _asked(
        self, questions: Questions, request: web.BaseRequest
    ) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.content.read(questions.most_bytes + 1)
                while part := await request.content.read(questions.most_bytes + 1):
                    body += part
                    if len(body) > questions.most_bytes:
                        break
        except TimeoutError:
            return _problem(408, "the body did not come")
        status, answer = await questions.answer(body)
        if isinstance(answer, str):
            return _problem(status, answer)
        return web.Response(body=answer, content_type="application/json")

    async def _admitted(
        self, request: web.BaseRequest, path: str
    ) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_BODY_S):
                body = await _body(request)
        except TimeoutError:
            return _problem(408, "the body did not come")
        if body is None:
            return _problem(413, f"the body is over {BODY_BYTES} bytes")
        try:
            return await self._forward(request, path, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            what = type(error).__name__
            return _problem(502, f"the Coordinator did not answer: {what}")

    async def _forward(
        self, request: web.BaseRequest, path: str, body: bytes
    ) -> web.StreamResponse:
        headers = {k: request.headers[k] for k in _PASSED_IN if k in request.headers}
        headers |= self._headers
        headers["traceparent"] = traceparent(self._trace_id or None)
        headers["Accept-Encoding"] = "identity"
        async with self._session.request(
            request.method,
            self._upstream + path,
            data=body or None,
            headers=headers,
            allow_redirects=False,
        ) as reply:
            if 300 <= reply.status < 400:  # noqa: PLR2004 - the class of redirects
                return _problem(502, "the Coordinator answered with a redirect")
            response = web.StreamResponse(status=reply.status)
            for name, value in reply.headers.items():
                lower = name.lower()
                if lower in _PASSED_OUT or lower.startswith("x-nestor-"):
                    response.headers[name] = value
            await response.prepare(request)
            try:
                async for part in reply.content.iter_any():
                    await response.write(part)
            except (aiohttp.ClientError, TimeoutError):
                # The status is sent: an unfinished chunked body is the honest end.
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write_eof()
            return response


class _Factory:
    """Makes the protocol of each connection; those beyond the cap are closed at once."""

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def __call__(self) -> asyncio.Protocol:
        if len(self._server.connections) >= CONNECTIONS:
            return _Closed()
        return self._server()


class _Closed(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _body(request: web.BaseRequest) -> bytes | None:
    """Read the body; None when it is too large, which is known before it is kept."""
    if (request.content_length or 0) > BODY_BYTES:
        return None
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > BODY_BYTES:
            return None
    return bytes(body)


def _problem(status: int, detail: str, *, retry: str | None = None) -> web.Response:
    headers = {"Retry-After": retry} if retry else {}
    return web.json_response(
        {"type": "about:blank", "title": "sandbox", "status": status, "detail": detail},
        status=status,
        headers=headers,
        content_type="application/problem+json",
    )


def _short_folder(home: Path) -> Path:
    """Find a place whose path leaves room: the kernel takes 107 bytes for a socket."""
    (home / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    places = [home / "run", Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - a private folder is made in it
    for folder in places:
        length = len(str(folder).encode()) + len("/n-12345678/coordinator.sock")
        if length < _SUN_PATH and os.access(folder, os.W_OK):
            return folder
    message = (
        "no folder with a short enough path for a socket; set a shorter NESTOR_HOME"
    )
    raise SandboxError(message)
