"""The database stops under load: calls go on, health says so, and no call is lost.

``nestor up`` as a process, callers in every dialect that do not pause, streams that last
longer than the outage. The database is stopped in two ways: another process holds every
lock of it, so that each statement waits; or the disk refuses its reads and writes, so that
each fails at once.
"""

import asyncio
import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from sqlalchemy import select
from tests.conftest import ROOT
from tests.servers.gateway_round import PATHS, Asked, ask
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.servers.told_answers import End
from tests.system.child import Child

from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.database import Database
from nestor.backends.sql.schema import lease, model_call
from nestor.model.routing import ModelCall
from nestor.settings import Settings

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]
LIMITS = {"usd": "1000", "tokens": 10**9}
PRICE_IN, PRICE_OUT = Decimal(3), Decimal(15)
CALLERS = 4
LONG = " ".join(f"word{n}" for n in range(200))
LONG_PAUSE_S = 0.12
OUTAGE_S = 12.0
"""Longer than a statement waits for locks that are held, shorter than a long stream."""
NOBODYS = "nst_" + "A" * 43
_SHM_LOCKS = (8, 120)
"""How many, and where: SQLite's locks of a WAL, bytes of the ``-shm`` file."""
_DISK = "pwrite64,fsync,fdatasync,ftruncate"


class Traced(Child):
    """A stack that strace may attach to."""

    def spawn(self, point: str = "never") -> None:
        del point
        layers = ("dashboard", "ralph", "aidb", "coordinator", "learning")
        values: dict[str, Any] = {f"{layer}_port": 0 for layer in layers}
        values |= {"home": self.home, "log_format": "json", **self._settings}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.traced_stack"],
                cwd=ROOT,
                env={**Settings.environment_for(values), "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


# How the database is stopped.


@contextmanager
def locked(child: Child, _: Path) -> Iterator[None]:
    """Hold every lock: nobody reads or writes, and everybody waits."""
    with (child.home / "nestor.db-shm").open("r+b") as file:
        deadline = time.monotonic() + 20
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *_SHM_LOCKS)
            except BlockingIOError:
                assert time.monotonic() < deadline, "no moment without a transaction"
                time.sleep(0.0005)
            else:
                break
        yield


@contextmanager
def broken(child: Child, log: Path) -> Iterator[None]:
    """Let each read and write of its files fail."""
    assert child.process is not None
    pid = child.process.pid
    files = [f"-P{child.home / 'nestor.db'}{end}" for end in ("", "-wal")]
    faults = ["-e", f"trace={_DISK}", "-e", f"inject={_DISK}:error=EIO"]
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-o", str(log), *faults, *files],
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 20
        while not _is_traced(pid):
            assert strace.poll() is None, strace.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        strace.send_signal(signal.SIGINT)  # it lets go of what it traces
        strace.communicate(timeout=30)
    assert "(INJECTED)" in log.read_text()


def _is_traced(pid: int) -> bool:
    states = Path(f"/proc/{pid}/task").glob("*/status")
    return all("TracerPid:\t0\n" not in state.read_text() for state in states)


# What is asked meanwhile.


@dataclass
class Call:
    """A request, by whose key, and when. Seconds of the monotonic clock."""

    asked: Asked
    key: str
    began: float
    ended: float | None = None


@dataclass
class Load:
    """Callers of one Coordinator; every call has an answer and a bill of its own."""

    model: ScriptedModel
    url: str
    keys: dict[str, tuple[str, str]]
    """Id and secret, by name."""
    session: aiohttp.ClientSession
    draw: random.Random
    tasks: asyncio.TaskGroup
    calls: list[Call] = field(default_factory=list)
    stopped: bool = False

    async def call(self, key: str, *, long: bool = False, dialect: str = "") -> Call:
        """Make one, and wait for its end."""
        draw, mark = self.draw, f"c{len(self.calls)}"
        counts = {
            "prompt_tokens": draw.randint(10, 400),
            "completion_tokens": draw.randint(1, 400),
        }
        rule = Rule(
            when=f"please {mark}.",
            reply=LONG if long else f"said to {mark} and nobody else",
            usage=counts,
            chunk_delay_s=LONG_PAUSE_S if long else draw.choice((0, 0, 0.05)),
        )
        self.model.rules.append(rule)
        asked = Asked(
            mark=mark,
            dialect=dialect or draw.choice(tuple(PATHS)),
            stream=long or draw.random() < 0.6,
            target="remote",
            max_tokens=400,
            wants_usage=True,
            rules={"remote": rule},
            trace_id=f"{draw.getrandbits(128) or 1:032x}",
        )
        call = Call(asked, key, time.monotonic())
        self.calls.append(call)
        await ask(self.session, self.url, self.keys[key][1], asked)
        call.ended = time.monotonic()
        return call

    async def keep_calling(self, key: str) -> None:
        """Call until it is stopped."""
        while not self.stopped:
            await self.call(key)
            await asyncio.sleep(0.03)

    def ended(self, since: float, before: float) -> list[Call]:
        """Calls that began and ended between."""
        return [
            one
            for one in self.calls
            if one.began >= since and one.ended is not None and one.ended <= before
        ]


@asynccontextmanager
async def under_load(child: Child, model: ScriptedModel) -> AsyncIterator[Load]:
    """Call all the time, also by long streams; at the end wait for each answer."""
    stack = await asyncio.to_thread(child.start)
    url = f"http://127.0.0.1:{child.port('coordinator')}"
    keys = {}
    for name, limits in (("plain", None), ("held", LIMITS), ("new", None)):
        body = {"name": name, "scopes": ["model"], "limits": limits}
        made = await asyncio.to_thread(
            stack.call, "coordinator", "POST", "/keys", body=body
        )
        keys[name] = (made["id"], made["key"])
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        load = Load(model, url, keys, session, random.Random(7), group)
        for number in range(CALLERS):
            group.create_task(load.keep_calling(("plain", "held")[number % 2]))
        await until(lambda: len(load.ended(0, time.monotonic())) > 30)
        await until_ready(load, "healthy")
        yield load
        load.stopped = True


async def until(what: Callable[[], bool], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)


async def health(load: Load, child: Child, what: str) -> dict[str, Any]:
    key = (child.home / "api-key").read_text().strip()
    headers = {"x-api-key": key} if what == "detailed" else {}
    target = f"{load.url}/health/{what}"
    async with load.session.get(target, headers=headers) as reply:
        assert reply.status == 200
        found: dict[str, Any] = await reply.json()
        return found


async def until_ready(load: Load, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        async with load.session.get(f"{load.url}/health/ready") as reply:
            said: dict[str, Any] = await reply.json()
            assert reply.status == 200, said
        if said["status"] == status:
            return said
        assert time.monotonic() < deadline, said
        await asyncio.sleep(0.05)


async def refused(load: Load, secret: str) -> tuple[int, str]:
    """Ask with a key; return the status and the error's words. It must be no answer."""
    body = {"model": "remote", "messages": [{"role": "user", "content": "please x."}]}
    async with load.session.post(
        load.url + PATHS["openai"],
        json=body,
        headers={"authorization": f"Bearer {secret}"},
    ) as reply:
        said = await reply.json()
        assert "choices" not in said
        return reply.status, said["error"]["message"]


@pytest.mark.parametrize("stopped", [locked, broken])
async def test_calls_go_on_while_the_database_is_stopped_and_none_is_lost(
    tmp_path: Path, stopped: Callable[[Child, Path], Any]
) -> None:
    async with ScriptedModel() as model:
        with Traced(
            tmp_path / "home",
            remote_model="scripted",
            remote_base_url=model.base_url,
            remote_price_input=PRICE_IN,
            remote_price_output=PRICE_OUT,
        ) as child:
            async with under_load(child, model) as load:
                outage = await an_outage(load, child, tmp_path, stopped)
                await until_ready(load, "healthy")
                assert (await load.call("new")).asked.status == 200
            went_on(load, *outage)
            await nothing_is_lost(load, child)


async def an_outage(
    load: Load,
    child: Child,
    folder: Path,
    stopped: Callable[[Child, Path], Any],
) -> tuple[float, float]:
    """Stop the database for a while; return from when until when it was."""
    for dialect in PATHS:
        load.tasks.create_task(load.call("plain", long=True, dialect=dialect))
    await until(lambda: all(call.asked.raw for call in load.calls[-1:]))
    holding = stopped(child, folder / "strace")
    await asyncio.to_thread(holding.__enter__)
    try:
        began = time.monotonic()
        said = await until_ready(load, "degraded")
        assert said["details"]["dependencies"]["call ledger"] == "degraded"
        assert said["message"] == "call ledger: degraded"
        strangers = [load.keys["new"][1], NOBODYS] if stopped is locked else [NOBODYS]
        told = await asyncio.gather(*(refused(load, one) for one in strangers))
        if stopped is locked:
            assert {status for status, _ in told} == {503}
            assert all("the database does not answer" in why for _, why in told)
        else:  # it can still be read
            assert told == [(401, "nobody knows this key")]
        await asyncio.sleep(max(0.0, began + OUTAGE_S - time.monotonic()))
        waiting = len(load.ended(began, time.monotonic() - 1))
        detailed = await health(load, child, "detailed")
        (ledger,) = [
            one
            for one in detailed["details"]["dependencies"]
            if one["name"] == "call ledger"
        ]
        found = re.match(r"(\d+) calls wait in the journal", ledger["message"])
        assert found, ledger
        assert int(found[1]) >= waiting, "nothing could be written meanwhile"
        return began, time.monotonic()
    finally:
        await asyncio.to_thread(holding.__exit__, None, None, None)


def went_on(load: Load, began: float, until: float) -> None:
    """Every call was answered: before, during and after the outage."""
    for call in load.calls:
        one = call.asked
        assert (one.status, one.broke) == (200, ""), (one, call)
        assert one.told is not None
        assert one.told.end is End.WHOLE, one.told
        assert one.told.text == one.rules["remote"].reply
    meanwhile = load.ended(began, until)
    kinds = Counter((c.key, c.asked.dialect, c.asked.stream) for c in meanwhile)
    assert len(kinds) == 2 * len(PATHS) * 2, kinds
    over = [one for one in load.calls if one.asked.rules["remote"].reply == LONG]
    assert len(over) == len(PATHS)
    for call in over:
        assert call.began < began
        assert call.ended is not None
        assert call.ended > until, "the outage was longer than its stream"


async def nothing_is_lost(load: Load, child: Child) -> None:
    """Stop the process; what is recorded then is what the model's server bills."""
    assert child.process is not None
    child.process.terminate()
    assert await asyncio.to_thread(child.process.wait, 60) == 0
    url = f"sqlite:///{child.home / 'nestor.db'}"
    async with Database.open(url, migrate=False) as database:
        async with database.read() as connection:
            bodies = (await connection.execute(select(model_call.c.body))).scalars()
            rows = [msgspec.json.decode(body, type=ModelCall) for body in bodies]
            assert (await connection.execute(select(lease))).all() == []
        spent = await SqlBudgetStore(database).spent(f"key:{load.keys['held'][0]}")
    calls = {row.trace_id: row for row in rows}
    assert len(rows) == len(load.calls) == len(load.model.chats)
    for one in load.calls:
        row, counts = calls[one.asked.trace_id], one.asked.rules["remote"].usage
        assert counts is not None
        read, wrote = counts["prompt_tokens"], counts["completion_tokens"]
        assert row.ok
        assert (row.usage.input_tokens, row.usage.output_tokens) == (read, wrote)
        assert row.cost_usd == (PRICE_IN * read + PRICE_OUT * wrote) / 10**6
        assert row.key_id == load.keys[one.key][0]
    held = [row for row in rows if row.key_id == load.keys["held"][0]]
    assert spent.usd == sum((row.cost_usd or Decimal(0) for row in held), Decimal(0))
    assert spent.tokens == sum(row.usage.total for row in held)
    told = Counter(
        event["data"]["interaction_id"]
        for event in child.events()
        if event["event_type"] == "model_called"
    )
    assert told == Counter(row.interaction_id for row in rows)
    assert list((child.home / "calls").iterdir()) == []
