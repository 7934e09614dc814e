"""What ``ports.task_queue.TaskQueue`` and the sweep promise, on SQLite and PostgreSQL."""

import asyncio
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from nestor.backends.files.event_log import FileEventLog
from nestor.backends.sql.database import Database
from nestor.backends.sql.task_queue import SqlTaskQueue
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.errors import Conflict, InvalidInput
from nestor.model.dependency import Unmet
from nestor.model.task import (
    FINAL_STATUSES,
    Approval,
    Budget,
    Reason,
    SandboxSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from nestor.ports.task_store import TaskChange
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.queue import DependencyQueue
from nestor.telemetry.learning_client import LearningClient

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
QUEUED, RUNNING = TaskStatus.QUEUED, TaskStatus.RUNNING
VERIFIED, FAILED = TaskStatus.VERIFIED, TaskStatus.FAILED
ROADMAP = [f"P{phase}-SEC-00{n}" for phase in range(1, 6) for n in range(1, 4)]


class World:
    """A store, its queue, and a sweep; the engine is a table that counts hand-overs."""

    def __init__(self, database: Database, place: Path) -> None:
        self.database = database
        self.store = SqlTaskStore(database, self._put, now=lambda: NOON)
        self.queue = SqlTaskQueue(database, self._put, now=lambda: NOON)
        self._log = FileEventLog(place / "telemetry")
        self.made = 0
        self.still_running: set[str] = set()

    def sweeper(self) -> DependencyQueue:
        return DependencyQueue(
            self.queue,
            OutboxRelay(self.store, self._log),
            LearningClient(self._log, "ralph"),
            clock=lambda: NOON,
        )

    def _put(
        self, connection: Connection, task_id: str, _priority: int, _attempt: int
    ) -> None:
        if task_id in self.still_running:
            raise Conflict(f"task {task_id} is still running")
        row = {"n": f"handed:{task_id}"}
        connection.execute(
            text(
                "INSERT INTO counter VALUES (:n, 1)"
                " ON CONFLICT (name) DO UPDATE SET value = counter.value + 1"
            ),
            row,
        )

    async def add(
        self, name: str, *needs: str, any_owner: bool = True, **given_: Any
    ) -> Task:
        self.made += 1
        spec = TaskSpec(task="do it", task_id=name, dependencies=list(needs))
        one = Task(
            **{
                "task_id": name,
                "name": name,
                "description": "do it",
                "status": QUEUED,
                "priority": "P2",
                "phase": None,
                "backend": "builtin",
                "created_at": NOON + timedelta(seconds=self.made),
                "max_iterations": 5,
                "budget": Budget(),
                "trace_id": "0" * 32,
                "spec": spec,
                **given_,
            }
        )
        enqueue = one.status is QUEUED
        stored, _ = await self.store.add(
            one, digest=name, enqueue=enqueue, any_owner=any_owner
        )
        return stored

    async def becomes(self, name: str, status: TaskStatus) -> None:
        ended = NOON if status in FINAL_STATUSES else None
        await self.store.change(name, TaskChange(status=status, ended_at=ended))

    async def handed(self) -> dict[str, int]:
        async with self.database.read() as connection:
            rows = await connection.execute(
                text("SELECT name, value FROM counter WHERE name LIKE 'handed:%'")
            )
            return {name.removeprefix("handed:"): value for name, value in rows}

    async def get(self, name: str) -> Task:
        return await self.store.get(name)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, tmp_path)


async def test_a_task_without_dependencies_is_handed_over_as_before(
    world: World,
) -> None:
    await world.add("a")
    assert await world.handed() == {"a": 1}


async def test_it_waits_for_what_nobody_has_submitted_and_says_so(world: World) -> None:
    stored = await world.add("b", "a", "P1-SEC-002")
    assert stored.waits_for == ["a", "P1-SEC-002"]
    assert "P1-SEC-002, which nobody has submitted yet" in stored.detail
    assert await world.get("b") == stored
    assert await world.handed() == {}
    sweep = world.sweeper()
    assert await sweep.sweep() == 0
    assert await world.handed() == {}
    await world.add("a")
    await sweep.sweep()
    assert (await world.get("b")).detail.startswith("waits for a, which is queued")


async def test_a_diamond_goes_on_once_both_sides_are_verified(world: World) -> None:
    for name, needs in {"d": ["b", "c"], "c": ["a"], "b": ["a"], "a": []}.items():
        await world.add(name, *needs)
    sweep = world.sweeper()
    order = []
    for name in ("a", "b", "c", "d"):
        await sweep.sweep()
        order.append(sorted(await world.handed()))
        await world.becomes(name, RUNNING)
        await sweep.sweep()
        await world.becomes(name, VERIFIED)
    assert order == [["a"], ["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c", "d"]]
    assert set((await world.handed()).values()) == {1}
    assert (await world.get("d")).waits_for == []
    assert (await world.get("d")).detail == ""


async def test_a_chain_of_fifteen_is_submitted_backwards_and_runs_forwards(
    world: World,
) -> None:
    for at in reversed(range(15)):
        await world.add(ROADMAP[at], *ROADMAP[max(at - 1, 0) : at])
    sweep = world.sweeper()
    for at, name in enumerate(ROADMAP):
        await sweep.sweep()
        assert sorted(await world.handed()) == ROADMAP[: at + 1]
        await world.becomes(name, VERIFIED)


async def test_a_failure_ends_all_that_needed_it_in_one_sweep(world: World) -> None:
    for at in reversed(range(15)):
        await world.add(ROADMAP[at], *ROADMAP[max(at - 1, 0) : at])
    await world.becomes(ROADMAP[0], TaskStatus.EXHAUSTED)
    assert await world.sweeper().sweep() == 14
    second, last = await world.get(ROADMAP[1]), await world.get(ROADMAP[14])
    assert {second.status, last.status} == {FAILED}
    assert {second.reason, last.reason} == {Reason.DEPENDENCY_FAILED}
    assert f"{ROADMAP[0]} ended exhausted" in second.detail
    assert f"nestor retry {ROADMAP[0]}" in second.detail
    assert f"nestor retry {ROADMAP[13]}" in last.detail
    told = await world.store.unsent()
    assert len([e for e in told if e.event_type == "task_completed"]) == 14
    assert [e.kind for e in await world.store.live(ROADMAP[14], after=0)][-1] == "end"
    assert await world.handed() == {ROADMAP[0]: 1}


@pytest.mark.parametrize("status", [RUNNING, TaskStatus.AWAITING_APPROVAL, QUEUED])
async def test_it_waits_while_what_it_needs_has_not_ended(
    world: World, status: TaskStatus
) -> None:
    await world.add("a")
    await world.becomes("a", status)
    await world.add("b", "a")
    await world.sweeper().sweep()
    after = await world.get("b")
    assert (after.status, after.waits_for) == (QUEUED, ["a"])


async def test_a_cycle_of_three_by_forward_references_is_spelt_out(
    world: World,
) -> None:
    await world.add("a", "b")
    await world.add("b", "c")
    with pytest.raises(InvalidInput, match="c → a → b → c") as caught:
        await world.add("c", "x", "a")
    assert [e.field for e in caught.value.errors] == ["dependencies"]
    await world.add("c", "x")  # nothing of the refused one was kept
    assert (await world.get("c")).waits_for == ["x"]


async def test_two_submits_at_once_cannot_close_a_cycle_together(world: World) -> None:
    for n in range(12):
        done = await asyncio.gather(
            world.add(f"a{n}", f"b{n}"),
            world.add(f"b{n}", f"a{n}"),
            return_exceptions=True,
        )
        refused = [one for one in done if isinstance(one, BaseException)]
        assert [type(one) for one in refused] == [InvalidInput]


async def test_approved_it_waits_for_what_it_needs(world: World) -> None:
    await world.add("a")
    await world.add("b", "a", status=TaskStatus.AWAITING_APPROVAL)
    sweep = world.sweeper()
    await sweep.sweep()
    answer = [Approval(id="start", what="?", approved=True)]
    change = TaskChange(status=QUEUED, approvals=answer, detail="")
    approved = await world.store.change("b", change, enqueue=True)
    assert approved.waits_for == ["a"]
    assert await sweep.unmet(approved) == ["a"]
    await world.becomes("a", VERIFIED)
    await sweep.sweep()
    assert await world.handed() == {"a": 1, "b": 1}
    assert await sweep.unmet(approved) == []


async def test_retried_after_a_failed_dependency_it_waits_again(world: World) -> None:
    await world.add("a")
    await world.add("b", "a")
    sweep = world.sweeper()
    await world.becomes("a", FAILED)
    await sweep.sweep()
    await world.becomes("a", QUEUED)
    change = TaskChange(status=QUEUED, reason=None, ended_at=None, attempt=2)
    again = await world.store.change("b", change, enqueue=True)
    assert (again.status, again.waits_for) == (QUEUED, ["a"])
    await sweep.sweep()
    assert (await world.get("b")).status is QUEUED
    await world.becomes("a", VERIFIED)
    await sweep.sweep()
    assert (await world.handed())["b"] == 1


async def test_a_cancelled_one_is_neither_started_nor_ended_again(world: World) -> None:
    await world.add("a")
    await world.add("b", "a")
    await world.becomes("b", TaskStatus.CANCELLED)
    for status in (VERIFIED, FAILED):
        await world.becomes("a", status)
        assert await world.sweeper().sweep() == 0
    assert (await world.get("b")).status is TaskStatus.CANCELLED
    assert await world.handed() == {"a": 1}


async def test_of_several_processes_one_hands_over(world: World) -> None:
    await world.add("a")
    for n in range(10):
        await world.add(f"b{n}", "a")
        await world.add(f"c{n}", f"b{n}")
    await world.becomes("a", VERIFIED)
    for n in range(5):
        await world.becomes(f"b{n}", FAILED)
    moved = await asyncio.gather(*(world.sweeper().sweep() for _ in range(4)))
    assert sum(moved) == 10  # five b go on, five c end
    handed = await world.handed()
    assert handed == dict.fromkeys(["a", *(f"b{n}" for n in range(5, 10))], 1)
    told = await world.store.unsent()
    assert len(told) == 5


async def test_a_sweeper_that_runs_goes_on_by_itself_and_when_nudged(
    world: World,
) -> None:
    sweep = world.sweeper()
    store = SqlTaskStore(
        world.database, world._put, ended=sweep.nudge, now=lambda: NOON
    )
    await world.add("a")
    await world.add("b", "a")
    await world.add("c", "b")
    sweep.start()
    try:
        await store.change("a", TaskChange(status=VERIFIED))
        await until_handed(world, "b")
        await world.becomes("b", VERIFIED)  # another process: nobody nudges
        await until_handed(world, "c")
    finally:
        await sweep.stop()


async def until_handed(world: World, name: str) -> None:
    async with asyncio.timeout(20):
        while name not in await world.handed():
            await asyncio.sleep(0.02)


async def test_one_whose_last_attempt_is_about_to_end_goes_on_with_the_next_look(
    world: World,
) -> None:
    await world.add("a")
    for name in ("b", "c"):
        await world.add(name, "a")
    await world.becomes("a", VERIFIED)
    world.still_running = {"b"}
    sweep = world.sweeper()
    assert await sweep.sweep() == 1
    assert (await world.get("b")).waits_for == ["a"]
    world.still_running.clear()
    assert await sweep.sweep() == 1
    assert await world.handed() == dict.fromkeys("abc", 1)


async def test_positions_count_those_that_could_start(world: World) -> None:
    await world.add("waits", "x", priority="P0")
    await world.add("low", priority="P3")
    first = await world.add("first", priority="P1")
    second = await world.add("second", priority="P1")
    low = await world.get("low")
    waits = await world.get("waits")
    found = [await world.queue.position(t) for t in (first, second, low, waits)]
    assert found == [1, 2, 3, 0]


async def test_whose_end_was_asked_for_while_it_runs_is_told(world: World) -> None:
    for name in ("runs", "asked", "ended", "queued"):
        await world.add(name)
    asked = TaskChange(cancel_requested=True)
    for name, status in (("runs", RUNNING), ("asked", RUNNING), ("ended", FAILED)):
        await world.becomes(name, status)
    for name in ("asked", "ended", "queued"):
        await world.store.change(name, asked)
    await world.store.change("asked", TaskChange(attempt=3))
    (found,) = await world.queue.to_end()
    assert (found.task_id, found.attempt, found.cancel_requested) == ("asked", 3, True)


async def test_looking_at_the_queue_reads_no_whole_task(world: World) -> None:
    long = TaskSpec(task="do it", context={"x": "y" * 1_000_000})
    for n in range(30):
        await world.add(f"t{n}", spec=long)
    await world.add("waits", "t0")
    last = await world.get("t29")
    names = [f"t{n}" for n in range(30)]
    tracemalloc.start()
    try:
        assert len(await world.queue.needs(names)) == 30
        assert await world.queue.position(last) == 30
        assert list(await world.queue.waiting()) == ["waits"]
        assert await world.queue.to_end() == []
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3_000_000, "of 30 MB"


async def test_of_others_tasks_nothing_is_told_and_nothing_waited_for(
    world: World,
) -> None:
    await world.add("theirs", "unknown", "mine", submitted_by="them")
    await world.add("done", submitted_by="them")
    await world.becomes("done", VERIFIED)
    needs = ("theirs", "done", "own", "nobody")
    # A circle over what is not there for it is none to tell of.
    mine = await world.add("mine", *needs, submitted_by="me", any_owner=False)
    told = "; and ".join(f"{name}, which nobody has submitted yet" for name in needs)
    assert mine.detail == f"waits for {told}"
    await world.becomes("theirs", FAILED)
    await world.sweeper().sweep()
    assert (await world.get("mine")).detail == f"waits for {told}"
    await world.add("own", submitted_by="me")
    await world.sweeper().sweep()
    assert "own, which is queued" in (await world.get("mine")).detail
    found = {one.task_id: one.status for one in await world.queue.unmet(mine)}
    assert found == {"theirs": None, "done": None, "own": QUEUED, "nobody": None}


async def test_an_own_circle_is_told_though_other_ways_are_hidden(world: World) -> None:
    await world.add("theirs", "mine", submitted_by="them")
    await world.add("own", "mine", submitted_by="me", any_owner=False)
    with pytest.raises(InvalidInput) as caught:
        await world.add("mine", "theirs", "own", submitted_by="me", any_owner=False)
    assert "mine → own → mine" in str(caught.value)
    assert "theirs" not in str(caught.value)


async def test_needs_come_in_the_order_asked_for(world: World) -> None:
    sandbox = SandboxSpec(memory_bytes=1 << 30)
    await world.add("a", backend="claude")
    await world.add("b", spec=TaskSpec(task="do it", sandbox=sandbox))
    found = await world.queue.needs(["b", "nobody", "a"])
    assert [(n.task_id, n.backend, n.memory_bytes) for n in found] == [
        ("b", "builtin", 1 << 30),
        ("a", "claude", None),
    ]


GRAPHS = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from(["submit", "verified", "failed", "cancelled", "sweep"]),
        st.sets(st.integers(0, 7), max_size=3),
    ),
    max_size=25,
)


class Model:
    """What a reader of the documentation expects, without SQL."""

    def __init__(self) -> None:
        self.needs: dict[str, list[str]] = {}
        self.status: dict[str, str] = {}
        self.handed: set[str] = set()

    def reaches(self, start: str, goal: str) -> bool:
        seen, todo = set[str](), [start]
        while todo:
            name = todo.pop()
            if name == goal:
                return True
            if name not in seen:
                seen.add(name)
                todo += self.needs.get(name, [])
        return False

    def submit(self, name: str, needs: Sequence[str]) -> bool:
        if any(self.reaches(other, name) for other in needs):
            return False
        self.needs[name], self.status[name] = list(needs), "queued"
        if all(self.status.get(other) == "verified" for other in needs):
            self.handed.add(name)
        return True

    def sweep(self) -> None:
        changed = True
        while changed:
            changed = False
            for name, needs in self.needs.items():
                if self.status[name] != "queued" or name in self.handed:
                    continue
                states = [self.status.get(other) for other in needs]
                if any(s in {"failed", "cancelled"} for s in states):
                    self.status[name], changed = "failed", True
                elif all(s == "verified" for s in states):
                    self.handed.add(name)
                    changed = True


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=GRAPHS)
async def test_random_graphs_behave_as_their_model(
    world: World, steps: list[tuple[int, str, set[int]]]
) -> None:
    async with world.database.write() as connection:
        for table in ("task_dependency", "task_event", "event_outbox", "task"):
            await connection.execute(text(f"DELETE FROM {table}"))
        await connection.execute(text("DELETE FROM counter WHERE name LIKE 'handed:%'"))
    model, sweep = Model(), world.sweeper()
    for number, what, others in steps:
        name, needs = f"t{number}", sorted(f"t{n}" for n in others - {number})
        if what == "sweep":
            await sweep.sweep()
            model.sweep()
        elif what == "submit" and name not in model.status:
            if model.submit(name, needs):
                await world.add(name, *needs)
            else:
                with pytest.raises(InvalidInput, match="circle"):
                    await world.add(name, *needs)
        elif (
            what in {"verified", "failed", "cancelled"}
            and name in model.handed
            and model.status[name] == "queued"
        ):
            model.status[name] = what
            await world.becomes(name, TaskStatus(what))
        assert {n: (await world.get(n)).status for n in model.status} == model.status
        assert await world.handed() == dict.fromkeys(model.handed, 1)


async def test_unmet_names_each_with_its_status(world: World) -> None:
    await world.add("a")
    task = await world.add("c", "x", "a")
    assert await world.queue.unmet(task) == [
        Unmet(task_id="x", status=None),
        Unmet(task_id="a", status=QUEUED),
    ]
