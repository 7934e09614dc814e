"""Death between any two writes of what people do with tasks: the same call again ends right."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from tests.conftest import Rounds
from tests.system.test_approving import asks, question, stored
from tests.system.test_control import agent, tip
from tests.system.workbench import (
    ADMIN,
    NOBODY,
    ended,
    repository,
    stack,
    task,
    until_ended,
)

from nestor.backends.git.workspaces import GitWorkspaces
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.errors import Conflict
from nestor.model.task import ApprovalKind, Iteration, Task, TaskStatus
from nestor.ports.task_store import TaskChange
from nestor.ralph.attempts import GOES_ON, Further
from nestor.ralph.records import Carried
from nestor.settings import Settings
from nestor.wiring import Nestor, running

WRITES = (
    (SqlTaskStore, "change"),
    (SqlTaskStore, "add"),
    (GitWorkspaces, "deliver"),
    (GitWorkspaces, "discard"),
)
POINTS = {"rollback": 7, "cancel": 7}
"""Instants before, between and after the writes of a call, and none; of others 3."""


class Killed(BaseException):
    """The process is gone: nothing that handles errors sees it."""


class Death:
    """Comes before or after a write; ``points``: how many the last call passed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.points = 0
        for owner, name in WRITES:
            monkeypatch.setattr(owner, name, self._mortal(getattr(owner, name)))

    def _mortal(self, write: Callable[..., Awaitable[Any]]) -> Any:
        async def mortal(*args: Any, **how: Any) -> Any:
            self._pass()
            done = await write(*args, **how)
            self._pass()
            return done

        return mortal

    def _pass(self) -> None:
        self.points += 1
        if self.points == self.at:
            raise Killed

    def comes_at(self, point: int | None) -> None:
        self.at, self.points = point, 0


class World:
    """One task with two iterations, and what may be done with it."""

    def __init__(self, home: Path, repo: Path, recorded: list[Iteration]) -> None:
        self.home = home
        self.repo = repo
        self.recorded = recorded
        self.forks = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Nestor]:
        """A process that takes calls and works on nothing."""
        settings = Settings(home=self.home)
        async with running(settings, coordinator_url=NOBODY) as nestor:
            yield nestor

    def choose(self, now: Task, dice: random.Random) -> tuple[str, Any]:
        if now.status is TaskStatus.QUEUED:
            return "cancel", None
        if now.status is TaskStatus.AWAITING_APPROVAL:
            return dice.choice([("cancel", None), ("approve", None), self._back(dice)])
        options = [self._back(dice), ("fork", dice.randint(0, 2)), ("park", None)]
        if now.status in GOES_ON:
            options += [("resume", None), ("retry", None)]
        return dice.choice(options)

    def _back(self, dice: random.Random) -> tuple[str, Any]:
        return "rollback", dice.randint(0, 2)

    async def do(self, nestor: Nestor, what: str, k: Any) -> None:
        ralph, one = nestor.ralph, Further(iterations=1)
        match what:
            case "cancel":
                await ralph.cancel("t", by=ADMIN)
            case "resume":
                await ralph.resume("t", one, by=ADMIN)
            case "retry":
                await ralph.retry("t", one, by=ADMIN)
            case "rollback":
                await ralph.rollback("t", k, by=ADMIN)
            case "fork":
                await ralph.fork("t", k, into=f"f{self.forks}", by=ADMIN)
            case "approve":
                await ralph.approve("t", approved=True, note=None, principal=ADMIN)

    async def check(self, nestor: Nestor, before: Task, what: str, k: Any) -> None:
        """What the call promises is so."""
        now = await nestor.ralph.get("t")
        carried = await self.carried(nestor)
        match what:
            case "cancel":
                assert now.status is TaskStatus.CANCELLED
                if carried.judged != carried.prepared.base:
                    assert now.branch == "nestor/t"
                    if before.branch is None:
                        assert tip(self.repo, "nestor/t") == carried.judged
            case "resume" | "retry" | "approve":
                assert now.status is TaskStatus.QUEUED
                assert now.attempt == before.attempt + 1
                assert await self.waiting(nestor) == 1
                if what == "retry":
                    assert carried.commit == carried.prepared.base
            case "rollback":
                assert now.rolled_back_to == k
                assert carried.commit == (
                    self.recorded[k - 1].snapshot if k else carried.prepared.base
                )
                assert "not moved" not in now.detail
                if now.branch is not None:
                    assert tip(self.repo, "nestor/t") == carried.judged
            case "fork":
                forked = await nestor.ralph.get(f"f{self.forks}")
                assert forked.forked_from is not None
                assert forked.forked_from.iteration == k

    async def safe(self, nestor: Nestor) -> None:
        """At any instant."""
        assert (await nestor.audit.verify()).broken_at is None
        now = await nestor.ralph.get("t")
        if now.success:
            assert tip(self.repo, "nestor/t") == self.recorded[-1].commit
            assert (await self.carried(nestor)).judged == self.recorded[-1].commit
        assert await self.waiting(nestor) <= 1
        if now.status is TaskStatus.QUEUED:
            assert await self.waiting(nestor) == 1

    async def carried(self, nestor: Nestor) -> Carried:
        body = await (await stored(nestor)).carried("t")
        assert body is not None
        return msgspec.json.decode(body, type=Carried)

    async def waiting(self, nestor: Nestor) -> int:
        """Workflows of the task that the engine is to begin."""
        query = (
            "SELECT count(*) FROM workflow_status"
            " WHERE workflow_uuid LIKE 't:%' AND status IN ('ENQUEUED', 'PENDING')"
        )
        database = (await stored(nestor))._database
        async with database.read() as connection:
            return int(await connection.scalar(text(query)) or 0)


async def first_two(home: Path, repo: Path) -> World:
    """A task that was verified in its second iteration."""
    async with stack(home) as nestor:
        first = await ended(nestor, task(repo, agent(2), task_id="t"))
        assert first.status is TaskStatus.VERIFIED
        world = World(home, repo, await nestor.ralph.iterations("t"))
        while await world.waiting(nestor):  # a moment longer than the task
            await asyncio.sleep(0.05)
    return world


async def test_a_rollback_that_died_never_leaves_verified_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await first_two(tmp_path / "home", repository(tmp_path / "repo"))
    death = Death(monkeypatch)
    async with world.open() as nestor:
        verified = await nestor.ralph.get("t")
        for point in range(1, 7):
            death.comes_at(point)
            with pytest.raises(Killed):
                await nestor.ralph.rollback("t", 1, by=ADMIN)
            death.comes_at(None)
            await world.safe(nestor)
            await world.do(nestor, "rollback", 1)
            await world.check(nestor, verified, "rollback", 1)
            await world.do(nestor, "rollback", 2)
            again = TaskChange(status=TaskStatus.VERIFIED)
            await (await stored(nestor)).change("t", again)


async def test_a_call_that_died_anywhere_is_made_again_and_ends_right(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: Rounds,
) -> None:
    home = tmp_path / "home"
    world = await first_two(home, repository(tmp_path / "repo"))
    death = Death(monkeypatch)
    for _, dice in counted("calls of people", 2, 40):
        died = set()
        async with world.open() as nestor:
            for _ in range(16):
                before = await nestor.ralph.get("t")
                what, k = world.choose(before, dice)
                if what == "park":
                    death.comes_at(None)
                    asked = question("t", ApprovalKind.COMMAND, f"make {dice.random()}")
                    await asks(nestor, "t", asked)
                    # As one that was parked in its first attempt: nothing is delivered.
                    await (await stored(nestor)).change("t", TaskChange(branch=None))
                    continue
                world.forks += 1
                death.comes_at(dice.randint(1, POINTS.get(what, 3)))
                try:
                    await world.do(nestor, what, k)
                except Killed:
                    died.add((what, death.at))
                    death.comes_at(None)
                    await world.safe(nestor)
                    try:
                        await world.do(nestor, what, k)
                    except Conflict:  # it was done before it died
                        assert what in {"resume", "retry", "approve"}
                death.comes_at(None)
                await world.check(nestor, before, what, k)
                await world.safe(nestor)
        assert len(died) >= 3

    # And the work goes on: once, from where the last call left it.
    async with stack(home) as nestor:
        now = await nestor.ralph.get("t")
        if now.status is TaskStatus.AWAITING_APPROVAL:
            now = await nestor.ralph.cancel("t", by=ADMIN)
        if now.status is TaskStatus.VERIFIED:
            now = await nestor.ralph.rollback("t", 1, by=ADMIN)
        if now.status is not TaskStatus.QUEUED:
            await nestor.ralph.resume("t", Further(iterations=2), by=ADMIN)
        done = await until_ended(nestor, "t")
        assert done.iteration > 2
        assert await world.waiting(nestor) <= 1
