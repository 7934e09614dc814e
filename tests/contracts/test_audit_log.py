"""What ``ports.audit_log.AuditLog`` promises, on real SQLite and PostgreSQL."""

import asyncio

import pytest
from sqlalchemy.exc import DBAPIError
from tests.contracts.outside import Outside
from tests.contracts.test_task_store import NOON, Queue, a_task

from nestor.backends.sql.audit_log import SqlAuditLog
from nestor.backends.sql.database import Database
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.errors import Conflict
from nestor.model.task import FINAL_STATUSES, TaskStatus
from nestor.ports.task_store import AuditNote, TaskChange, TaskStore


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def store(database: Database, queue: Queue) -> TaskStore:
    return SqlTaskStore(database, queue.put, now=lambda: NOON)


@pytest.fixture
def log(database: Database) -> SqlAuditLog:
    return SqlAuditLog(database)


def a_note(action: str = "cancel", **data: object) -> AuditNote:
    return AuditNote(action=action, actor="key-1", task_id="t1", data=data)


async def test_a_decision_and_what_it_changes_are_one_commit(
    store: TaskStore, queue: Queue, log: SqlAuditLog
) -> None:
    await store.add(a_task(), digest="d", enqueue=False, audit=[a_note("fork", k=1)])
    await store.add(a_task(), digest="d", enqueue=False, audit=[a_note("fork", k=1)])
    await store.change("t1", TaskChange(output="x"), audit=[a_note(), a_note("refuse")])
    queue.fails = True
    with pytest.raises(Conflict):
        await store.change("t1", TaskChange(), enqueue=True, audit=[a_note("resume")])
    await store.change("t1", TaskChange(status=TaskStatus.CANCELLED))
    await store.change("t1", TaskChange(), unless=FINAL_STATUSES, audit=[a_note()])

    found = await log.entries()
    assert [(one.seq, one.action) for one in found] == [
        *((1, "fork"), (2, "cancel"), (3, "refuse"))
    ]
    first = found[0]
    assert (first.actor, first.task_id, first.at) == ("key-1", "t1", NOON)
    assert first.data == {"k": 1}
    assert await log.entries(after=1, limit=1) == [found[1]]
    state = await log.verify()
    assert (state.entries, state.head) == (3, found[-1].digest)
    assert state.broken_at is None


async def test_the_database_itself_refuses_to_change_the_log(
    database: Database, store: TaskStore, log: SqlAuditLog, outside: Outside
) -> None:
    await store.add(a_task(), digest="d", enqueue=False, audit=[a_note()] * 2)
    before = await log.entries()
    over = "INSERT {} INTO audit_log VALUES (1, '', '', '', '', '', '') {}"
    attempts = [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_log WHERE seq = 2",
    ]
    if database.is_sqlite:
        attempts.append(over.format("OR REPLACE", ""))
    else:
        attempts.append("TRUNCATE audit_log")
    attempts.append(over.format("", "ON CONFLICT (seq) DO UPDATE SET actor = 'nobody'"))
    for attempt in attempts:
        with pytest.raises(DBAPIError, match="append-only"):
            async with database.write() as connection:
                await connection.exec_driver_sql(attempt)
    assert await log.entries() == before
    assert (await log.verify()).broken_at is None


async def test_entries_of_two_processes_never_follow_the_same_one(
    database_url: str, database: Database, log: SqlAuditLog
) -> None:
    async with Database.open(database_url) as other:
        stores = [SqlTaskStore(one, now=lambda: NOON) for one in (database, other)]
        for n in range(10):
            await stores[0].add(a_task(f"t{n}"), digest="d", enqueue=False)
        await asyncio.gather(
            *(
                stores[n % 2].change(f"t{n % 10}", TaskChange(), audit=[a_note(n=n)])
                for n in range(40)
            )
        )
    found = await log.entries()
    assert [one.seq for one in found] == list(range(1, 41))
    assert {one.data["n"] for one in found} == set(range(40))
    assert await log.verify() == type(await log.verify())(
        entries=40, head=found[-1].digest
    )


@pytest.mark.parametrize(
    ("tampering", "broken_at"),
    [
        ("UPDATE audit_log SET data = '{\"n\":9}' WHERE seq = 2", 2),
        ("UPDATE audit_log SET actor = 'nobody' WHERE seq = 3", 3),
        ("DELETE FROM audit_log WHERE seq = 1", 1),
        ("DELETE FROM audit_log WHERE seq = 2", 2),
        ("UPDATE audit_log SET seq = seq + 1 WHERE seq = 3", 3),
    ],
)
async def test_who_gets_past_the_database_is_found_out(
    database: Database,
    store: TaskStore,
    log: SqlAuditLog,
    outside: Outside,
    tampering: str,
    broken_at: int,
) -> None:
    await store.add(
        a_task(), digest="d", enqueue=False, audit=[a_note(n=n) for n in range(3)]
    )
    disarm = ["ALTER TABLE audit_log DISABLE TRIGGER USER"]
    if database.is_sqlite:
        disarm = [f"DROP TRIGGER audit_log_no_{what}" for what in ("update", "delete")]
    await outside.run(*disarm, tampering)
    assert (await log.verify()).broken_at == broken_at


async def test_what_an_attempt_leaves_is_there_for_the_next(store: TaskStore) -> None:
    await store.add(a_task(), digest="d", enqueue=False, carried='{"n":0}')
    assert await store.carried("t1") == '{"n":0}'
    await store.change("t1", TaskChange(iteration=1), carried='{"n":1}')
    await store.change("t1", TaskChange(iteration=2))
    await store.change("t1", TaskChange(status=TaskStatus.FAILED))
    await store.change(
        "t1", TaskChange(iteration=9), carried="no", unless=FINAL_STATUSES
    )
    assert await store.carried("t1") == '{"n":1}'
    assert await store.carried("t2") is None
