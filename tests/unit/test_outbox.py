"""The relay from SQL to the log: what was committed arrives, once, whatever happens."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nestor.backends.files.event_log import FileEventLog, read_events
from nestor.backends.sql.database import Database
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.model.event import Event
from nestor.model.task import Budget, Task, TaskSpec, TaskStatus
from nestor.ports.task_store import TaskChange
from nestor.ralph.outbox import OutboxRelay

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class FullDisk:
    """An event log whose disk is full: it keeps ``room`` events in memory, drops others."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.memory: list[Event] = []
        self.disk: list[Event] = []
        self.appended = asyncio.Event()

    @property
    def buffered(self) -> int:
        return len(self.memory)

    def append(self, events: Sequence[Event]) -> None:
        self.memory.extend(events[: self.room - len(self.memory)])
        self.appended.set()

    def seen(self, ids: frozenset[str]) -> frozenset[str]:
        return frozenset(event.id for event in self.disk) & ids

    def mended(self) -> None:
        self.disk.extend(self.memory)
        self.memory.clear()

    def close(self) -> None: ...


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlTaskStore]:
    async with Database.open(f"sqlite:///{tmp_path}/n.db") as database:
        store = SqlTaskStore(database)
        task = Task(
            task_id="t",
            name="t",
            description="t",
            status=TaskStatus.RUNNING,
            priority="P2",
            phase=None,
            backend="command",
            created_at=NOW,
            max_iterations=1,
            budget=Budget(),
            trace_id="0" * 32,
            spec=TaskSpec(task="t"),
        )
        await store.add(task, digest="d", enqueue=False)
        await store.change("t", TaskChange(), telemetry=[event(n) for n in range(3)])
        yield store


def event(number: int) -> Event:
    return Event(
        id=f"event-{number}",
        event_type="task_iteration",
        timestamp=NOW,
        source="ralph",
        trace_id="0" * 32,
    )


async def test_events_go_to_the_log_in_order_and_once(
    store: SqlTaskStore, tmp_path: Path
) -> None:
    log = FileEventLog(tmp_path / "telemetry")
    relay = OutboxRelay(store, log)

    assert await relay.drain() == 3
    assert await relay.drain() == 0

    log.close()
    told = [event.id for event in read_events(log.path)]
    assert told == ["event-0", "event-1", "event-2"]


async def test_dying_between_the_append_and_its_note_repeats_nothing(
    store: SqlTaskStore, tmp_path: Path
) -> None:
    log = FileEventLog(tmp_path / "telemetry")
    log.append([event(0), event(1)])  # appended by a process that died right after

    await OutboxRelay(store, log).drain()

    log.close()
    told = [event.id for event in read_events(log.path)]
    assert told == ["event-0", "event-1", "event-2"]


async def test_an_interrupted_round_repeats_nothing(
    store: SqlTaskStore, tmp_path: Path
) -> None:
    disk = FullDisk(room=10)
    relay = OutboxRelay(store, disk)
    relay.start()
    await disk.appended.wait()

    disk.mended()
    await relay.stop()

    assert [e.id for e in disk.disk] == ["event-0", "event-1", "event-2"]
    assert await store.unsent() == []


async def test_an_event_is_not_sent_while_it_is_only_in_memory(
    store: SqlTaskStore,
) -> None:
    disk = FullDisk(room=2)
    drain = asyncio.create_task(OutboxRelay(store, disk).drain())
    await disk.appended.wait()
    await asyncio.sleep(0.3)

    assert len(await store.unsent()) == 3

    disk.mended()
    await asyncio.sleep(0.5)
    disk.mended()
    assert await drain == 3
    assert [e.id for e in disk.disk] == ["event-0", "event-1", "event-2"]
