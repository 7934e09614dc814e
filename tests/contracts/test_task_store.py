"""What ``ports.task_store.TaskStore`` promises, on real SQLite and PostgreSQL.

Over 400 lines because a port has one file of tests.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from tests.contracts.outside import Outside

from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.errors import Conflict, NotFound, Unavailable
from nestor.model.event import Event
from nestor.model.task import (
    FINAL_STATUSES,
    Approval,
    Budget,
    DiffStat,
    Iteration,
    Reason,
    Spent,
    Task,
    TaskSpec,
    TaskStatus,
    Usage,
    Verdict,
)
from nestor.ports.task_store import (
    BackendTotals,
    TaskChange,
    TaskFilter,
    TaskStore,
    TaskTotals,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class Queue:
    """A second writer in the same transaction: where the engine will be."""

    def __init__(self) -> None:
        self.fails = False

    def put(
        self, connection: Connection, task_id: str, priority: int, _attempt: int
    ) -> None:
        connection.execute(
            text("INSERT INTO counter VALUES (:n, :v)"), {"n": task_id, "v": priority}
        )
        if self.fails:
            raise Conflict("still running")

    async def tasks(self, database: Database) -> dict[str, int]:
        async with database.read() as connection:
            rows = await connection.execute(text("SELECT name, value FROM counter"))
            return dict(rows.all())


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def store(database: Database, queue: Queue) -> TaskStore:
    return SqlTaskStore(database, queue.put, now=lambda: NOON)


def a_task(task_id: str = "t1", **given: Any) -> Task:
    fields: dict[str, Any] = {
        "name": "a task",
        "description": "do it",
        "status": TaskStatus.QUEUED,
        "priority": "P2",
        "phase": None,
        "backend": "builtin",
        "created_at": NOON,
        "max_iterations": 5,
        "budget": Budget(usd=Decimal("1.10"), seconds=60.0),
        "trace_id": "0" * 32,
        "spec": TaskSpec(task="do it", context={"k": [1, None, {"x": "y"}]}),
    }
    return Task(task_id=task_id, **(fields | given))


def an_event(event_id: str, **data: Any) -> Event:
    return Event(
        id=event_id,
        event_type="task_iteration",
        timestamp=NOON,
        source="ralph",
        trace_id="0" * 32,
        data=data,
    )


async def test_a_task_comes_back_as_it_went_in(store: TaskStore) -> None:
    task = a_task(
        spent=Spent(usd=Decimal("0.10"), tokens=3),
        approvals=[Approval(id="a", what="begin", decided_at=NOON)],
        phase=3,
        started_at=NOON + timedelta(microseconds=1),
    )
    assert await store.add(task, digest="d", enqueue=False) == (task, True)
    assert await store.get("t1") == task
    assert (await store.get("t1")).spent.usd == Decimal("0.10")


async def test_unknown_cost_stays_unknown(store: TaskStore) -> None:
    await store.add(a_task(spent=Spent(usd=None)), digest="d", enqueue=False)
    assert (await store.get("t1")).spent.usd is None


async def test_the_same_task_again_is_the_stored_one(store: TaskStore) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    await store.change("t1", TaskChange(status=TaskStatus.RUNNING))
    again, created = await store.add(a_task(name="later"), digest="d", enqueue=False)
    assert (again.status, again.name, created) == (TaskStatus.RUNNING, "a task", False)


async def test_another_body_under_the_same_id_is_a_conflict(store: TaskStore) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    with pytest.raises(Conflict, match="t1"):
        await store.add(a_task(), digest="other", enqueue=False)


async def test_task_and_enqueue_are_one_commit(
    database: Database, store: TaskStore, queue: Queue
) -> None:
    await store.add(a_task(priority="P1"), digest="d", enqueue=True)
    await store.add(a_task(priority="P1"), digest="d", enqueue=True)  # not again
    assert await queue.tasks(database) == {"t1": 1}
    queue.fails = True
    with pytest.raises(Conflict):
        await store.add(a_task("t2"), digest="d", enqueue=True)
    with pytest.raises(NotFound):
        await store.get("t2")
    await store.add(a_task("t3"), digest="d", enqueue=False)
    with pytest.raises(Conflict):
        await store.change("t3", TaskChange(output="x"), enqueue=True)
    assert (await store.get("t3")).output == ""
    assert await queue.tasks(database) == {"t1": 1}


async def test_a_task_and_its_first_events_are_one_commit(
    store: TaskStore, queue: Queue
) -> None:
    first: dict[str, Any] = {
        "telemetry": [an_event("e1")],
        "live": [("approval", {"a": 1})],
    }
    queue.fails = True
    with pytest.raises(Conflict):
        await store.add(a_task(), digest="d", enqueue=True, **first)
    assert await store.unsent() == []
    queue.fails = False
    await store.add(a_task(), digest="d", enqueue=True, **first)
    await store.add(a_task(), digest="d", enqueue=True, **first)  # not again
    (event,) = await store.live("t1", after=0)
    assert (event.id, event.kind, event.data) == (1, "approval", {"a": 1})
    assert [one.id for one in await store.unsent()] == ["e1"]


async def test_a_task_nobody_knows_is_not_found(store: TaskStore) -> None:
    with pytest.raises(NotFound, match="t9"):
        await store.get("t9")
    with pytest.raises(NotFound):
        await store.change("t9", TaskChange())
    with pytest.raises(NotFound):
        await store.tell("t9", "task", {})
    with pytest.raises(NotFound):
        await store.iterations("t9")
    assert await store.live("t9", after=0) == []


async def test_tasks_are_listed_newest_first_by_every_filter(store: TaskStore) -> None:
    # A whole second sorts wrongly against its own fractions when text drops the zeros.
    times = [NOON, NOON + timedelta(microseconds=500_000), NOON + timedelta(seconds=1)]
    for number, at in reversed(list(enumerate(times))):
        await store.add(
            a_task(f"t{number}", created_at=at, priority=f"P{number}", phase=number),
            digest="d",
            enqueue=False,
        )
    await store.change("t1", TaskChange(status=TaskStatus.RUNNING))

    async def ids(limit: int = 10, **which: Any) -> list[str]:
        tasks = await store.all(TaskFilter(**which), limit=limit)
        return [task.task_id for task in tasks]

    assert await ids() == ["t2", "t1", "t0"]
    assert await ids(limit=2) == ["t2", "t1"]
    assert await ids(status=TaskStatus.RUNNING) == ["t1"]
    assert await ids(priority="P2") == await ids(phase=2) == ["t2"]
    assert await ids(priority="P2", phase=1) == []
    assert await store.counts() == {"queued": 2, "running": 1}
    assert await ids(ended=True) == []
    for number, status in enumerate((TaskStatus.FAILED, TaskStatus.VERIFIED)):
        await store.change(f"t{number}", TaskChange(status=status))
    assert await ids(ended=True) == ["t1", "t0"]
    assert await ids(ended=True, status=TaskStatus.FAILED) == ["t0"]


async def test_all_tasks_are_added_up_however_many(
    database: Database, store: TaskStore
) -> None:
    assert await store.totals() == TaskTotals()
    first = a_task("a", backend="command", spent=Spent(usd=None), iteration=2)
    await store.add(first, digest="d", enqueue=False)
    await store.change("a", TaskChange(status=TaskStatus.FAILED))
    one = a_task("b", spent=Spent(usd=Decimal("0.10")), iteration=3)
    body = encode(msgspec.structs.replace(one, status=TaskStatus.VERIFIED))
    async with database.write() as connection:
        await connection.execute(
            text(
                "INSERT INTO task (task_id, digest, status, priority, created_at, body)"
                " VALUES (:id, 'd', 'verified', 'P2', 'x', :body)"
            ),
            [{"id": f"b{n:04}", "body": body} for n in range(1500)],
        )
    assert await store.totals() == TaskTotals(
        tasks=1501,
        by_status={"failed": 1, "verified": 1500},
        by_backend={
            "builtin": BackendTotals(ended=1500, verified=1500),
            "command": BackendTotals(ended=1, verified=0),
        },
        iterations=4502,
        cost_usd=Decimal("150.00"),
        cost_unknown_tasks=1,
    )


async def test_a_change_sets_what_it_names_and_nothing_else(store: TaskStore) -> None:
    task = a_task(branch="b", reason=Reason.STALLED)
    await store.add(task, digest="d", enqueue=False)
    changed = await store.change("t1", TaskChange(branch=None, iteration=2))
    assert changed == msgspec.structs.replace(task, branch=None, iteration=2)
    assert await store.get("t1") == changed


async def test_a_final_task_is_left_alone_when_asked(
    database: Database, store: TaskStore, queue: Queue
) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    await store.change("t1", TaskChange(status=TaskStatus.CANCELLED))
    task = await store.change(
        "t1",
        TaskChange(status=TaskStatus.RUNNING),
        iteration=Iteration(n=1, started_at=NOON),
        telemetry=[an_event("e")],
        live=[("task", {})],
        unless=FINAL_STATUSES,
        enqueue=True,
    )
    assert task.status is TaskStatus.CANCELLED
    assert await store.iterations("t1") == []
    assert await store.unsent() == []
    assert await store.live("t1", after=0) == []
    assert await queue.tasks(database) == {}


async def test_a_change_of_another_attempt_is_none(store: TaskStore) -> None:
    await store.add(a_task("t1"), digest="d", enqueue=False)
    running = TaskChange(status=TaskStatus.RUNNING)
    stands = await store.change("t1", running, attempt=2, live=[("task", {})])
    assert (stands.status, stands.attempt) == (TaskStatus.QUEUED, 1)
    assert await store.live("t1", after=0) == []
    assert (await store.change("t1", running, attempt=1)).status is TaskStatus.RUNNING


async def test_an_iteration_replaces_the_one_of_its_number(store: TaskStore) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    first = Iteration(
        n=1,
        started_at=NOON,
        verdicts=[
            Verdict(check="c", phase="after", passed=False, exit_code=1, duration_s=0.1)
        ],
        usage=Usage(input_tokens=1),
        cost_usd=Decimal("0.30"),
        diff_stat=DiffStat(files=1),
    )
    second = Iteration(n=2, started_at=NOON)
    again = msgspec.structs.replace(first, output_tail="again")
    for one in (second, first, again):
        await store.change("t1", TaskChange(), iteration=one)
    assert await store.iterations("t1") == [again, second]


async def test_live_events_count_on_per_task(store: TaskStore) -> None:
    for task_id in ("t1", "t2"):
        await store.add(a_task(task_id), digest="d", enqueue=False)
    await store.change(
        "t1", TaskChange(), live=[("task", {"a": 1}), ("output", {"b": "\x00é"})]
    )
    await store.change("t2", TaskChange(), live=[("task", {})])
    await store.tell("t1", "end", {})
    await store.tell("t2", "end", {"c": "\x00é"})
    events = await store.live("t1", after=0)
    assert [(one.id, one.kind) for one in events] == [
        (1, "task"),
        (2, "output"),
        (3, "end"),
    ]
    assert (events[1].data, events[1].at) == ({"b": "\x00é"}, NOON)
    assert [one.id for one in await store.live("t1", after=1, limit=1)] == [2]
    told = (await store.live("t2", after=1))[0]
    assert (told.id, told.kind, told.at) == (2, "end", NOON)
    assert told.data == {"c": "\x00é"}


async def test_many_at_once_tell_each_event_once(store: TaskStore) -> None:
    await store.add(a_task("t1"), digest="d", enqueue=False)
    await store.add(a_task("t2"), digest="d", enqueue=False)
    await asyncio.gather(
        *(store.tell("t1", "output", {"n": n}) for n in range(12)),
        *(store.change("t1", TaskChange(), live=[("task", {})]) for _ in range(12)),
    )
    events = await store.live("t1", after=0)
    assert [one.id for one in events] == list(range(1, 25))
    said = [one.data["n"] for one in events if one.kind == "output"]
    assert sorted(said) == list(range(12))


async def test_telemetry_is_queued_once_and_sent_once(store: TaskStore) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    await store.change(
        "t1", TaskChange(), telemetry=[an_event("b", n=1), an_event("a", n=2)]
    )
    await store.change(
        "t1", TaskChange(), telemetry=[an_event("a", n=9), an_event("c")]
    )
    assert [one.id for one in await store.unsent()] == ["b", "a", "c"]
    assert [one.id for one in await store.unsent(limit=1)] == ["b"]
    assert (await store.unsent())[1] == an_event("a", n=2)
    await store.mark_sent(["a", "b", "unknown"])
    await store.change("t1", TaskChange(), telemetry=[an_event("a")])
    assert [one.id for one in await store.unsent()] == ["c"]


async def test_text_that_utf8_cannot_hold_is_kept_as_far_as_it_can(
    store: TaskStore,
) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    await store.change(
        "t1", TaskChange(output="a\ud800b\x00"), live=[("o", {"x": "\udfff"})]
    )
    assert (await store.get("t1")).output == "a\ufffdb\x00"
    assert (await store.live("t1", after=0))[0].data == {"x": "\ufffd"}


async def test_two_processes_of_one_file_never_collide(
    database_url: str, database: Database
) -> None:
    async with Database.open(database_url) as other:
        stores = [SqlTaskStore(one, now=lambda: NOON) for one in (database, other)]
        made = await asyncio.gather(
            *(store.add(a_task(), digest="d", enqueue=False) for store in stores * 5)
        )
        assert [created for _, created in made].count(True) == 1

        async def append(store: SqlTaskStore, n: int) -> None:
            await store.change(
                "t1",
                TaskChange(iteration=n),
                telemetry=[an_event(f"e{n % 10}")],
                live=[("output", {"n": n}), ("output", {"n": n})],
            )

        await asyncio.gather(
            *(append(stores[n % 2], n) for n in random.Random(1).sample(range(40), 40))
        )
        events = await stores[0].live("t1", after=0)
        assert [one.id for one in events] == list(range(1, 81))
        # Two events of one change stand together: nothing came between.
        assert all(
            a.data == b.data for a, b in zip(events[::2], events[1::2], strict=True)
        )
        assert len(await stores[1].unsent()) == 10


async def test_of_two_that_end_a_task_at_once_one_wins(store: TaskStore) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    ends = [TaskStatus.VERIFIED, TaskStatus.CANCELLED] * 5
    after = await asyncio.gather(
        *(
            store.change(
                "t1",
                TaskChange(status=end),
                live=[("end", {})],
                unless=FINAL_STATUSES,
            )
            for end in ends
        )
    )
    assert len({task.status for task in after}) == 1
    assert len(await store.live("t1", after=0)) == 1


async def test_a_locked_database_is_unavailable_and_nothing_is_half_written(
    impatient: None, store: TaskStore, outside: Outside
) -> None:
    await store.add(a_task(), digest="d", enqueue=False)
    async with outside.writing():
        with pytest.raises(Unavailable):
            await store.change("t1", TaskChange(output="x"))
    assert (await store.get("t1")).output == ""


async def test_a_store_without_an_engine_refuses_to_enqueue(database: Database) -> None:
    store = SqlTaskStore(database)
    with pytest.raises(RuntimeError, match="without an engine"):
        await store.add(a_task(), digest="d", enqueue=True)
    assert await store.counts() == {}


CHANGES = st.builds(
    TaskChange,
    status=st.sampled_from(TaskStatus) | st.just(msgspec.UNSET),
    output=st.text(max_size=5) | st.just(msgspec.UNSET),
    reason=st.sampled_from(Reason) | st.none() | st.just(msgspec.UNSET),
)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["t1", "t2"]),
        CHANGES,
        st.lists(st.sampled_from("abc"), max_size=3),
        st.integers(0, 3),
        st.sampled_from([frozenset(), FINAL_STATUSES]),
        st.booleans(),
    ),
    max_size=12,
)


@given(operations=OPERATIONS)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_sequence_of_changes_is_what_a_dictionary_would_do(
    fresh_url: Callable[[], str], operations: list[Any]
) -> None:
    async def run() -> None:
        async with Database.open(fresh_url()) as database:
            store = SqlTaskStore(database, now=lambda: NOON)
            tasks = {name: a_task(name) for name in ("t1", "t2")}
            for task in tasks.values():
                await store.add(task, digest="d", enqueue=False)
            live, queued, sent = {"t1": 0, "t2": 0}, list[str](), set[str]()
            for name, change, events, lines, unless, send in operations:
                await store.change(
                    name,
                    change,
                    telemetry=[an_event(one) for one in events],
                    live=[("output", {})] * lines,
                    unless=unless,
                )
                if tasks[name].status not in unless:
                    given = {
                        field: value
                        for field, value in msgspec.structs.asdict(change).items()
                        if value is not msgspec.UNSET
                    }
                    tasks[name] = msgspec.structs.replace(tasks[name], **given)
                    live[name] += lines
                    queued += [
                        one for one in dict.fromkeys(events) if one not in queued
                    ]
                if send and queued:
                    await store.mark_sent([queued[0]])
                    sent.add(queued[0])
            for name, task in tasks.items():
                assert await store.get(name) == task
                ids = [one.id for one in await store.live(name, after=0)]
                assert ids == list(range(1, live[name] + 1))
            assert [one.id for one in await store.unsent()] == [
                one for one in queued if one not in sent
            ]

    asyncio.run(run())
