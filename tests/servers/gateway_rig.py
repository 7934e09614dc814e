"""The Coordinator as ``nestor up`` wires it, on a real server, with short time limits.

All of it is the product: settings, wiring, SQLite, journal, keys, the edge. A test gives it
deployments and looks afterwards for anything that was left behind.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from nestor.backends.anthropic.client import AnthropicClient
from nestor.backends.model_http import stream
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import time_text
from nestor.backends.sql.schema import lease, model_call
from nestor.coordinator.upstream import Upstream
from nestor.model.access import KeyLimits
from nestor.model.routing import Deployment, Dialect, ModelCall
from nestor.ports.budget_store import Slice
from nestor.resilience.retry import Backoff
from nestor.settings import Settings
from nestor.web import coordinator
from nestor.web.app import create_app
from nestor.web.edge import MAX_IN_FLIGHT
from nestor.web.serve import bind, serve
from nestor.wiring import Nestor, running

ADMIN_KEY = "test-admin-secret-0123456789"
IDLE_S, LINGER_S, BACKOFF_S = 0.3, 0.15, 0.03
_LONG_LIVED = {"metering", "key uses", "budgets"}
"""Tasks of the process, not of a request; of the last one at most, the sweeper."""


@dataclass
class GatewayRig:
    """What runs. ``url``: of the Coordinator."""

    nestor: Nestor
    session: aiohttp.ClientSession
    """To upstreams."""
    database: Database
    app: Any
    url: str
    _retired: list[Upstream] = field(default_factory=list)
    _before: tuple[set[asyncio.Task[Any]], int] = (set(), 0)

    def remember(self) -> None:
        """Take note of what is there before anything begins."""
        self._before = (asyncio.all_tasks(), _sockets())

    def load(self, deployments: Sequence[Deployment], *, recovery_s: float) -> None:
        """Take these in the place of those before. ``recovery_s``: of each breaker."""
        pool = self.nestor.models.pool
        # Names are used again: nothing of a round before counts against this one.
        quota: Any = self.nestor.coordinator._quota
        quota._own.clear()
        self._retired = list(pool.upstreams)
        pool.load([(one, self._client(one)) for one in deployments])
        for upstream in pool.upstreams:
            upstream.breaker._recovery_s = recovery_s

    def _client(self, deployment: Deployment) -> OpenAIClient | AnthropicClient:
        kind = (
            AnthropicClient if deployment.dialect is Dialect.ANTHROPIC else OpenAIClient
        )
        return kind(deployment, self.session, idle_s=IDLE_S)

    async def key(self, limits: KeyLimits | None) -> tuple[str, str]:
        """Make a key for models; return its id and its secret."""
        made, secret = await self.nestor.keys.create("round", ["model"], limits)
        return made.id, secret

    async def calls(self, since: Any) -> list[ModelCall]:
        """Every call that began since then, oldest first."""
        await self.nestor.coordinator.metering.fold_now()
        query = (
            select(model_call.c.body)
            .where(model_call.c.at >= time_text(since))
            .order_by(model_call.c.at)
        )
        async with self.database.read() as connection:
            bodies = (await connection.execute(query)).scalars().all()
        return [msgspec.json.decode(body, type=ModelCall) for body in bodies]

    async def is_idle(self) -> None:
        """Wait until no request holds anything; say what is held."""
        await until(lambda: not self._held(), self._held)

    async def nothing_is_left(self) -> None:
        """Wait until all is let go of; say what is not."""
        await self.is_idle()
        await self.nestor.coordinator.metering.fold_now()
        journal = self.nestor.coordinator.metering._journal
        assert (journal.waiting, journal.unwritten) == (0, 0)
        tasks, sockets = self._before
        await until(lambda: not self._tasks(tasks), lambda: self._tasks(tasks))
        await until(
            lambda: _sockets() <= sockets, lambda: f"{_sockets()} > {sockets} sockets"
        )

    def _held(self) -> list[str]:
        """Name what requests hold."""
        parts = self.nestor.coordinator
        held = []
        for upstream in (*parts.pool.upstreams, *self._retired):
            name = upstream.deployment.name
            if upstream.in_flight:
                held.append(f"{upstream.in_flight} calls of {name} are in flight")
            if upstream.breaker._probe_out:
                held.append(f"a probe of {name} is out")
        for account, one in parts._budgets._held.items():
            if one.open or one.usd.reserved or one.tokens.reserved:
                held.append(f"{account} has {one.open} reservations")
            if one.lease is not None:
                held.append(f"{account} waits for a lease")
        journal: Any = parts.metering._journal
        if began := len(journal._open):
            held.append(f"{began} calls began and did not end")
        connector: Any = self.session.connector
        if connector._acquired:
            held.append(f"{len(connector._acquired)} connections are taken")
        room = _gate(self.app)._known._free
        if room != MAX_IN_FLIGHT:
            held.append(f"{MAX_IN_FLIGHT - room} places at the edge are taken")
        return held

    def _tasks(self, before: set[asyncio.Task[Any]]) -> list[str]:
        here = asyncio.current_task()
        more = [t for t in asyncio.all_tasks() - before if t is not here]
        more = [t for t in more if t.get_name() not in _LONG_LIVED]
        # The server's own, which waits for the stop half a second at a time.
        waits = [t for t in more if getattr(t.get_coro(), "__name__", "") == "wait"]
        return [repr(t) for t in more if t not in waits[:1]]

    async def account(self, key_id: str) -> Any:
        """Return what is spent of a key's budget, and what this process holds of it.

        As SQL has it; that it is what the process believes is checked here.
        """
        parts = self.nestor.coordinator
        account, holder = f"key:{key_id}", parts.metering._journal.id
        store = SqlBudgetStore(self.database)
        for _ in range(100):
            spent = await store.spent(account, holder=holder)
            held = parts._budgets._held.get(account)
            believed = _limited(held)
            if believed == _limited(held, spent.own):
                return spent
            # What a sweep gives back is away here at once, and there in a moment.
            await asyncio.sleep(0.02)
        raise AssertionError(f"{account} holds {believed}, and in SQL {spent.own}")


def _limited(held: Any, own: Slice | None = None) -> list[int]:
    """Return what is held of the sides that have a limit: by the process, or in SQL."""
    if held is None:
        return []
    usd, tokens = held.usd.free, held.tokens.free
    if own is not None:
        usd, tokens = int(own.usd.scaleb(12)), own.tokens
    found = [usd] if held.account.usd is not None else []
    return found + ([tokens] if held.account.tokens is not None else [])


@asynccontextmanager
async def gateway(home: Path) -> AsyncIterator[GatewayRig]:
    """Serve; at the end every lease must be given back."""
    settings = Settings(home=home, api_key=SecretStr(ADMIN_KEY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "LINGER_S", LINGER_S)
        async with model_session() as session:
            async with (
                running(settings, coordinator_url="http://127.0.0.1:9") as parts,
                Database.open(settings.database, migrate=False) as database,
                _served(parts) as (app, url),
            ):
                parts.coordinator._dispatcher._backoff = Backoff(base_s=BACKOFF_S)
                yield GatewayRig(parts, session, database, app, url)
            async with (
                Database.open(settings.database, migrate=False) as database,
                database.read() as connection,
            ):
                left = (await connection.execute(select(lease))).all()
            assert not left, f"leases are left: {left}"


@asynccontextmanager
async def _served(parts: Nestor) -> AsyncIterator[tuple[Any, str]]:
    app = create_app(
        "coordinator",
        parts,
        coordinator.handlers(),
        dependencies=parts.coordinator.dependencies,
    )
    sockets = bind({"coordinator": ("127.0.0.1", 0)})
    port = sockets["coordinator"].getsockname()[1]
    told, stop = asyncio.Event(), asyncio.Event()

    async def ready() -> None:
        told.set()

    serving = asyncio.create_task(
        serve({"coordinator": app}, sockets, ready=ready, stop=stop)
    )
    await told.wait()
    try:
        yield app, f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        await serving


def _gate(app: Any) -> Any:
    """Return the edge in front of an application."""
    return app._edge


def _sockets() -> int:
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder's own is gone
            found += str(path.readlink()).startswith("socket:")
    return found


async def until(
    what: Callable[[], bool], why: Callable[[], Any], *, within_s: float = 5.0
) -> None:
    """Wait for something to come about."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not what():
        assert loop.time() < deadline, why()
        await asyncio.sleep(0.005)
