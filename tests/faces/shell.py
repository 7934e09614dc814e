"""A small service behind the real shell, on a real server; and ways to speak to it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import aiohttp
import msgspec
from litestar import Request, delete, get, post
from litestar.params import QueryParameter
from litestar.response import Stream
from msgspec.structs import asdict

from nestor import errors
from nestor.errors import NotFound
from nestor.model.access import ApiKey, KeyLimits, PageLink, PageSession, Principal
from nestor.model.health import Dependency, HealthStatus
from nestor.model.ids import new_id
from nestor.telemetry.access_log import AccessLog
from nestor.web.app import LayerApp, create_app
from nestor.web.serve import bind, serve

ADMIN_KEY = "test-admin-secret-0123456789"
SERVICE_KEY = "test-service-secret-0123456789"


class Check(msgspec.Struct, forbid_unknown_fields=True):
    run: str
    timeout_s: float = 10.0
    env: dict[str, str] = {}


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    count: int = 1
    ok: bool = False
    checks: list[Check] = []
    extra: Any = None


class MemoryKeys:
    """A key store in memory, for the shell's own tests."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[ApiKey, frozenset[str]]] = {}
        self.checked = 0
        self.down = False

    async def create(
        self, name: str, scopes: Sequence[str], limits: KeyLimits | None = None
    ) -> tuple[ApiKey, str]:
        secret = secrets.token_urlsafe(24)
        key = ApiKey(
            id=new_id(),
            name=name,
            scopes=list(scopes),
            created_at=datetime.now(UTC),
            limits=limits,
        )
        self._keys[secret] = (key, frozenset(scopes))
        return key, secret

    async def check(self, secret: str) -> Principal | None:
        self.checked += 1
        if self.down:
            raise errors.Unavailable("the key store does not answer")
        found = self._keys.get(secret)
        if found is None:
            return None
        key, held = found
        return Principal(key_id=key.id, scopes=held, limits=key.limits)

    async def all(self) -> list[ApiKey]:
        return [key for key, _ in self._keys.values()]

    async def revoke(self, key_id: str) -> None:
        for secret, (key, _) in list(self._keys.items()):
            if key.id == key_id:
                del self._keys[secret]
                return
        raise NotFound(key_id)

    async def revoke_scope(self, scope: str) -> None:
        for secret, (_, scopes) in list(self._keys.items()):
            if scope in scopes:
                del self._keys[secret]


class MemorySessions:
    """Sessions in memory, for the shell's own tests."""

    def __init__(self) -> None:
        self._links: set[str] = set()
        self._sessions: dict[str, PageSession] = {}
        self.checked = 0

    async def make_link(self) -> PageLink:
        token = "nst_" + secrets.token_urlsafe(32)
        self._links.add(token)
        return PageLink(
            token=token, expires_at=datetime.now(UTC) + timedelta(minutes=5)
        )

    async def redeem(self, token: str) -> tuple[PageSession, str]:
        if token not in self._links:
            raise errors.Unauthorized("this link was used")
        self._links.remove(token)
        now = datetime.now(UTC)
        secret = secrets.token_urlsafe(24)
        session = PageSession(
            id=new_id(), created_at=now, expires_at=now + timedelta(hours=8)
        )
        self._sessions[secret] = session
        return session, secret

    async def check(self, secret: str) -> PageSession | None:
        self.checked += 1
        return self._sessions.get(secret)

    async def end(self, session_id: str) -> None:
        for secret, session in list(self._sessions.items()):
            if session.id == session_id:
                del self._sessions[secret]

    async def end_all(self) -> None:
        self._links.clear()
        self._sessions.clear()


@dataclass
class SmallNestor:
    """What the shell needs of the wiring, and what the fake service writes down."""

    settings: Any
    keys: MemoryKeys = field(default_factory=MemoryKeys)
    sessions: MemorySessions = field(default_factory=MemorySessions)
    api_key: str = ADMIN_KEY
    service_key: str = SERVICE_KEY
    done: list[Any] = field(default_factory=list)
    dependencies: list[Dependency] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    access: list[dict[str, Any]] = field(default_factory=list)
    """Lines of the access log."""


def small_nestor(home: Path, *, allowed_hosts: Sequence[str] = ()) -> SmallNestor:
    settings = SimpleNamespace(
        allowed_hosts=list(allowed_hosts),
        host="127.0.0.1",
        telemetry_dir=home / "telemetry",
        dashboard_port=8888,
        ralph_port=8090,
        aidb_port=8091,
        coordinator_port=8092,
        learning_port=8093,
    )
    good = Dependency(
        name="store",
        status=HealthStatus.HEALTHY,
        last_observed=datetime.now(UTC),
        required=True,
    )
    return SmallNestor(settings=settings, dependencies=[good])


@post("/things", opt={"scope": "submit"})
async def make(request: Request[Any, Any, Any], data: Thing) -> dict[str, Any]:
    nestor: SmallNestor = request.app.state.nestor
    nestor.done.append(data)
    return {"got": data, "by": request.user.key_id}


@post("/optional", opt={"scope": "submit"}, status_code=200)
async def optional(data: Thing | None = None) -> dict[str, Any]:
    return {"got": data}


@get("/things", opt={"scope": "read"})
async def things(
    limit: Annotated[int, QueryParameter(ge=1, le=10)] = 5,
    of: Annotated[str | None, QueryParameter(name="status")] = None,
) -> dict[str, Any]:
    return {"limit": limit, "status": of}


@get("/needed", opt={"scope": "read"})
async def needed(phase: int) -> dict[str, Any]:
    return {"phase": phase}


@delete("/things/{thing_id:str}", opt={"scope": "submit"})
async def remove(request: Request[Any, Any, Any], thing_id: str) -> None:
    request.app.state.nestor.done.append(("deleted", thing_id))


@post("/documents", opt={"scope": "submit"})
async def documents(request: Request[Any, Any, Any]) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@get("/unscoped")
async def unscoped() -> dict[str, bool]:
    return {"ok": True}


@get("/boom", opt={"scope": "read"})
async def boom() -> None:
    raise RuntimeError("secret detail s3cr3t")


@get("/fault/{name:str}", opt={"scope": "read"})
async def fault(name: str) -> None:
    kind = getattr(errors, name)
    if name in {"RateLimited", "CircuitOpen"}:
        raise kind("not now", retry_after_s=2.2)
    raise kind("told")


@get("/follow", opt={"scope": "read"})
async def follow(request: Request[Any, Any, Any]) -> Stream:
    return Stream(_endless(request.app.state.nestor), media_type="text/event-stream")


async def _endless(nestor: SmallNestor) -> AsyncIterator[bytes]:
    try:
        while True:
            yield b"data: tick\n\n"
            await asyncio.sleep(0.05)
    finally:
        nestor.done.append("stream ended")


@post("/v1/chat/completions", opt={"scope": "model"})
async def chat(request: Request[Any, Any, Any]) -> Stream:
    return Stream(_answer(request.app.state.nestor), media_type="text/event-stream")


async def _answer(nestor: SmallNestor) -> AsyncIterator[bytes]:
    yield b"data: first\n\n"
    await nestor.hold.wait()
    yield b"data: last\n\n"


@get("/v1/models", opt={"scope": "model"})
async def models() -> dict[str, Any]:
    return {"data": []}


@get("/v1/secret", opt={"scope": "admin"})
async def only_admin() -> dict[str, Any]:
    return {}


@post("/slow", opt={"scope": "submit"})
async def slow(request: Request[Any, Any, Any]) -> dict[str, bool]:
    nestor: SmallNestor = request.app.state.nestor
    nestor.done.append("slow began")
    await nestor.hold.wait()
    nestor.done.append("slow ended")
    return {"ok": True}


@post("/stubborn", opt={"scope": "submit"})
async def stubborn(request: Request[Any, Any, Any]) -> dict[str, bool]:
    nestor: SmallNestor = request.app.state.nestor
    nestor.done.append("stubborn began")
    try:
        await nestor.hold.wait()
    except asyncio.CancelledError:
        await nestor.hold.wait()
    return {"ok": True}


HANDLERS = [
    stubborn,
    make,
    optional,
    things,
    needed,
    remove,
    documents,
    unscoped,
    boom,
    fault,
    follow,
    chat,
    models,
    only_admin,
    slow,
]


def small_app(nestor: SmallNestor, layer: str = "coordinator") -> LayerApp:
    async def dependencies() -> list[Dependency]:
        return nestor.dependencies

    return create_app(
        layer,
        nestor,
        HANDLERS,
        dependencies=dependencies,
        access_log=AccessLog(lambda lines: nestor.access.extend(map(asdict, lines))),
    )


class Served:
    """A running server and one client of it."""

    def __init__(
        self,
        nestor: SmallNestor,
        app: LayerApp,
        port: int,
        stop: asyncio.Event,
        ended: asyncio.Task[None],
    ) -> None:
        self.nestor = nestor
        self.app = app
        self.port = port
        self.stop = stop
        self.url = f"http://127.0.0.1:{port}"
        self.ended = ended

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None = ADMIN_KEY,
        headers: dict[str, str] | None = None,
        **how: Any,
    ) -> "Reply":
        given = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, self.url + path, headers={**given, **(headers or {})}, **how
            ) as reply,
        ):
            return Reply(reply.status, reply.headers.copy(), await reply.read())

    async def access_lines(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many lines of the access log, which come in batches."""
        async with asyncio.timeout(10):
            while len(self.nestor.access) < count:
                await asyncio.sleep(0.02)
        return self.nestor.access

    async def raw(self, *parts: bytes, wait_s: float = 5.0) -> bytes:
        """Send bytes as they are; return all that comes until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            async with asyncio.timeout(wait_s):
                return await reader.read()
        finally:
            writer.close()

    def head(self, line: str, *more: str, key: str | None = ADMIN_KEY) -> bytes:
        """A request head with the right Host, closing afterwards."""
        lines = [line, f"Host: 127.0.0.1:{self.port}", "Connection: close", *more]
        if key:
            lines.append(f"Authorization: Bearer {key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def status_of(raw: bytes) -> int:
    return int(raw.split(b" ", 2)[1])


def tell(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def ready() -> None:
        event.set()

    return ready


@asynccontextmanager
async def serving(nestor: SmallNestor, app: LayerApp) -> AsyncIterator[Served]:
    stop, told = asyncio.Event(), asyncio.Event()
    sockets = bind({app.layer: ("127.0.0.1", 0)})
    port = sockets[app.layer].getsockname()[1]
    task = asyncio.create_task(
        serve({app.layer: app}, sockets, ready=tell(told), stop=stop)
    )
    await asyncio.wait(
        {task, asyncio.create_task(told.wait())}, return_when=asyncio.FIRST_COMPLETED
    )
    if task.done():
        task.result()
    running = Served(nestor, app, port, stop, task)
    try:
        yield running
    finally:
        nestor.hold.set()
        stop.set()
        await task


@asynccontextmanager
async def served(
    nestor: SmallNestor, *, layer: str = "coordinator"
) -> AsyncIterator[Served]:
    async with serving(nestor, small_app(nestor, layer)) as running:
        yield running
