"""What ``ports.task_engine.TaskEngine`` promises, on DBOS with real SQLite and real PostgreSQL.

Over 400 lines because a port has one file of tests.
"""

import asyncio
import base64
import contextlib
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import make_url, text

import nestor
from nestor.backends.dbos import engine as dbos_engine
from nestor.backends.dbos.engine import LOOP_PROTOCOL, MAX_RECOVERIES, DbosEngine
from nestor.backends.sql.database import Database
from nestor.errors import Conflict, Unavailable
from nestor.ports.task_engine import (
    OtherVersion,
    RecoveryLimit,
    StepFailed,
    Steps,
    Workflow,
)

NOON = datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=UTC)


class Value(msgspec.Struct, frozen=True):
    at: datetime
    cost: Decimal | None
    pairs: tuple[tuple[int, str], ...]
    counts: dict[int, float]


VALUE = Value(at=NOON, cost=Decimal("0.10"), pairs=((1, "a"),), counts={7: 0.5})


class Bench:
    """An engine, what its workflows did, and the failures it reported."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.log: list[str] = []
        self.failures: list[tuple[str, Exception]] = []
        self.unavailable = 0

    async def failed(self, task_id: str, error: Exception) -> None:
        if self.unavailable:
            self.unavailable -= 1
            raise Unavailable("the database does not answer")
        self.failures.append((task_id, error))

    def new(self, workers: int, executor_id: str) -> DbosEngine:
        return DbosEngine(
            self.database.url,
            executor_id=executor_id,
            workers=workers,
            on_failure=self.failed,
            poll_s=0.02,
        )

    @asynccontextmanager
    async def engine(
        self,
        workflow: Workflow | None = None,
        *,
        workers: int = 2,
        executor_id: str = "one",
    ) -> AsyncIterator[DbosEngine]:
        engine = self.new(workers, executor_id)
        await engine.prepare()
        try:
            if workflow is not None:
                await engine.start(workflow)
            yield engine
        finally:
            await engine.stop()

    async def enqueue(
        self, engine: DbosEngine, task_id: str, priority: int = 2, *, attempt: int = 1
    ) -> None:
        async with self.database.write() as connection:
            await connection.run_sync(
                engine.enqueue_in, task_id, priority=priority, attempt=attempt
            )

    async def rows(self, sql: str) -> list[Any]:
        async with self.database.read() as connection:
            rows = await connection.execute(text(self.sql(sql)))
            return [tuple(row) for row in rows]

    def sql(self, sql: str) -> str:
        """On PostgreSQL the engine's tables have a schema of their own."""
        if self.database.is_sqlite:
            return sql
        return re.sub(
            r"(workflow_status|workflow_input|operation_outputs)", r"dbos.\1", sql
        )

    async def statuses(self) -> dict[str, str]:
        return dict(
            await self.rows("SELECT workflow_uuid, status FROM workflow_status")
        )

    async def status_becomes(self, **wanted: str) -> None:
        """``t1="SUCCESS"`` waits for the first attempt of task t1."""
        await until(self.statuses, lambda seen: wanted.items() <= short(seen).items())

    async def log_grows_to(self, length: int) -> None:
        await until(lambda: asyncio.sleep(0, len(self.log)), lambda n: n == length)

    def step(self, note: str, result: int = 0) -> Callable[[], Awaitable[int]]:
        async def action() -> int:
            self.log.append(note)
            return result

        return action


def short(statuses: dict[str, str]) -> dict[str, str]:
    return {name.removesuffix(":1"): status for name, status in statuses.items()}


async def until(
    look: Callable[[], Awaitable[Any]], enough: Callable[[Any], bool]
) -> Any:
    seen: Any = None
    for _ in range(500):
        seen = await look()
        if enough(seen):
            return seen
        await asyncio.sleep(0.02)
    raise AssertionError(f"still {seen!r} after 10 s")


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


async def forever() -> None:
    await asyncio.Event().wait()


async def test_steps_run_in_order_on_the_callers_loop(bench: Bench) -> None:
    here = asyncio.get_running_loop()
    seen: list[Any] = []

    async def workflow(task_id: str, steps: Steps) -> None:
        async def first() -> Value:
            assert asyncio.get_running_loop() is here
            return VALUE

        seen.append(await steps.run("first", Value, first))
        seen.append(await steps.run("second", int, bench.step(f"{task_id} second", 4)))

    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await bench.status_becomes(t1="SUCCESS")
        assert await engine.running() == []
    assert seen == [VALUE, 4]
    assert bench.log == ["t1 second"]
    records = await bench.rows(
        "SELECT function_name, output, serialization FROM operation_outputs "
        "ORDER BY function_id"
    )
    assert [name for name, *_ in records] == ["first", "second"]
    assert [kind for *_, kind in records] == ["portable_json"] * 2
    assert msgspec.json.decode(records[0][1])["value"]["cost"] == "0.10"


async def test_a_recorded_step_never_runs_again_and_gives_the_same(
    bench: Bench,
) -> None:
    seen: list[Any] = []
    stopped = False

    async def value() -> Value:
        bench.log.append("value")
        return VALUE

    async def nothing() -> None:
        bench.log.append("nothing")

    async def surrogates() -> dict[str, list[str]]:
        bench.log.append("surrogates")
        return {"x": ["a\ud800"]}

    async def broken() -> int:
        bench.log.append("broken")
        raise KeyError("k")

    async def workflow(_task_id: str, steps: Steps) -> None:
        seen.append(await steps.run("value", Value, value))
        seen.append(await steps.run("nothing", type(None), nothing))
        seen.append(await steps.run("surrogates", dict[str, list[str]], surrogates))
        with pytest.raises(StepFailed) as caught:
            await steps.run("broken", int, broken)
        seen.append(str(caught.value))
        if not stopped:
            await steps.run("wait", type(None), forever)
        await steps.run("last", int, bench.step("last"))

    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await until(lambda: asyncio.sleep(0, len(seen)), lambda n: n == 4)
    stopped = True
    assert await bench.statuses() == {"t1:1": "PENDING"}
    async with bench.engine(workflow):
        # "wait" has no record, so the workflow may well take the other way now.
        await bench.status_becomes(t1="SUCCESS")
    assert bench.log == ["value", "nothing", "surrogates", "broken", "last"]
    assert seen[:4] == seen[4:]
    assert seen[2:4] == [{"x": ["a\ufffd"]}, "step broken: KeyError: 'k'"]


async def test_enqueueing_shares_the_callers_transaction(bench: Bench) -> None:
    async def workflow(task_id: str, _steps: Steps) -> None:
        bench.log.append(task_id)

    async with bench.engine(workflow) as engine:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is tested
            async with bench.database.write() as connection:
                await connection.run_sync(engine.enqueue_in, "t1", priority=0)
                raise ZeroDivisionError
        await bench.enqueue(engine, "t2")
        await bench.status_becomes(t2="SUCCESS")
    assert bench.log == ["t2"]
    assert await bench.statuses() == {"t2:1": "SUCCESS"}


async def test_urgent_tasks_go_first_and_equals_in_order(bench: Bench) -> None:
    async def workflow(task_id: str, steps: Steps) -> None:
        await steps.run("only", int, bench.step(task_id))

    async with bench.engine() as engine:  # a process that only submits
        for task_id, priority in (("c", 3), ("b1", 1), ("b2", 1), ("a", 0), ("b3", 1)):
            await bench.enqueue(engine, task_id, priority)
    async with bench.engine(workflow, workers=1):
        await bench.status_becomes(a="SUCCESS", b3="SUCCESS", c="SUCCESS")
    assert bench.log == ["a", "b1", "b2", "b3", "c"]


async def test_no_more_run_at_once_than_there_are_workers(bench: Bench) -> None:
    now: set[str] = set()
    most = 0
    full = asyncio.Event()

    async def workflow(task_id: str, steps: Steps) -> None:
        async def work() -> None:
            nonlocal most
            now.add(task_id)
            most = max(most, len(now))
            if most == 3:
                full.set()
            async with asyncio.timeout(10):
                await full.wait()
            await asyncio.sleep(0.05)  # in which a fourth one would be seen
            now.discard(task_id)

        await steps.run("work", type(None), work)

    names = [f"t{n}" for n in range(9)]
    async with bench.engine(workflow, workers=3) as engine:
        for name in names:
            await bench.enqueue(engine, name)
        await bench.status_becomes(**dict.fromkeys(names, "SUCCESS"))
    assert most == 3


async def test_a_workflow_that_raises_is_reported_once_and_ends(bench: Bench) -> None:
    async def workflow(_task_id: str, steps: Steps) -> None:
        async def bad() -> int:
            raise ValueError("no")

        await steps.run("bad", int, bad)

    bench.unavailable = 1  # the report itself may have to wait for the database
    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await bench.status_becomes(t1="ERROR")
    async with bench.engine(workflow):
        await asyncio.sleep(0.2)
    ((task_id, error),) = bench.failures
    assert task_id == "t1"
    assert isinstance(error, StepFailed)
    assert str(error) == "step bad: ValueError: no"
    assert isinstance(error.__cause__, ValueError)


async def test_a_step_waits_for_what_does_not_answer(bench: Bench) -> None:
    results: list[int] = []
    left = 3

    async def workflow(_task_id: str, steps: Steps) -> None:
        async def busy() -> int:
            nonlocal left
            bench.log.append("try")
            if left:
                left -= 1
                raise Unavailable("the database does not answer: busy")
            return 7

        results.append(await steps.run("busy", int, busy))

    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await bench.status_becomes(t1="SUCCESS")
    assert results == [7]
    assert bench.log == ["try"] * 4
    assert bench.failures == []


async def test_a_step_that_waits_is_left_to_the_next_start(bench: Bench) -> None:
    available = False

    async def workflow(_task_id: str, steps: Steps) -> None:
        async def busy() -> int:
            bench.log.append("try")
            if not available:
                raise Unavailable("the disk is full")
            return 7

        await steps.run("busy", int, busy)

    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await bench.log_grows_to(2)
    assert await bench.statuses() == {"t1:1": "PENDING"}
    available = True
    async with bench.engine(workflow):
        await bench.status_becomes(t1="SUCCESS")
    assert bench.failures == []


async def test_an_orderly_stop_is_neither_a_failure_nor_an_attempt(
    bench: Bench,
) -> None:
    cleaned: list[str] = []
    last = False

    async def workflow(_task_id: str, steps: Steps) -> None:
        async def work() -> None:
            bench.log.append("work")
            try:
                if not last:
                    await forever()
            finally:
                cleaned.append("x")

        await steps.run("work", type(None), work)

    for turn in range(MAX_RECOVERIES + 3):
        last = turn == MAX_RECOVERIES + 2
        async with bench.engine(workflow) as engine:
            if turn == 0:
                await bench.enqueue(engine, "t1")
            await bench.log_grows_to(turn + 1)
            if last:
                await bench.status_becomes(t1="SUCCESS")
            else:
                assert await engine.running() == ["t1"]
        if not last:
            assert await bench.statuses() == {"t1:1": "PENDING"}
    assert bench.failures == []
    assert len(cleaned) == MAX_RECOVERIES + 3


async def test_a_workflow_begun_too_often_is_reported_and_not_begun(
    bench: Bench,
) -> None:
    async def workflow(task_id: str, _steps: Steps) -> None:
        bench.log.append(task_id)

    async with bench.engine() as engine:
        await bench.enqueue(engine, "fine")
        await bench.enqueue(engine, "poison")
    async with bench.database.write() as connection:  # as dead processes leave it
        for name, begun in (
            ("fine:1", MAX_RECOVERIES),
            ("poison:1", MAX_RECOVERIES + 1),
        ):
            await connection.execute(
                text(
                    bench.sql(
                        "UPDATE workflow_status SET status = 'PENDING',"
                        " executor_id = 'one',"
                        f" application_version = '{LOOP_PROTOCOL}',"
                        " recovery_attempts = :n WHERE workflow_uuid = :w"
                    )
                ),
                {"n": begun, "w": name},
            )
    async with bench.engine(workflow):
        await bench.status_becomes(fine="SUCCESS", poison="ERROR")
    assert bench.log == ["fine"]
    ((task_id, error),) = bench.failures
    assert (task_id, type(error)) == ("poison", RecoveryLimit)


async def test_a_task_is_queued_once_and_again_after_its_end(bench: Bench) -> None:
    going = asyncio.Event()

    async def workflow(_task_id: str, steps: Steps) -> None:
        async def wait() -> None:
            bench.log.append("ran")
            await going.wait()

        await steps.run("wait", type(None), wait)

    async with bench.engine() as engine:
        await bench.enqueue(engine, "t1")
        await bench.enqueue(engine, "t1")
    async with bench.engine(workflow) as engine:
        await until(engine.running, lambda names: names == ["t1"])
        for attempt in (1, 2):
            with pytest.raises(Conflict, match="t1 is still running"):
                await bench.enqueue(engine, "t1", attempt=attempt)
        going.set()
        await bench.status_becomes(t1="SUCCESS")
        with pytest.raises(Conflict, match="attempt 1 at task t1 has ended already"):
            await bench.enqueue(engine, "t1")
        await bench.enqueue(engine, "t1", attempt=2)
        await until(bench.statuses, lambda all_: all_.get("t1:2") == "SUCCESS")
    assert bench.log == ["ran", "ran"]


async def test_an_attempt_takes_those_of_before_out_of_the_queue(bench: Bench) -> None:
    attempts: list[int] = []

    async def workflow(_task_id: str, steps: Steps) -> None:
        attempts.append(steps.attempt)
        await steps.run("wait", type(None), forever)

    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await until(engine.running, lambda names: names == ["t1"])
        while not attempts:
            await asyncio.sleep(0.01)
    async with bench.engine() as engine:  # as a restart finds it while all are busy
        async with bench.database.write() as connection:
            again = "UPDATE workflow_status SET status = 'ENQUEUED'"
            await connection.execute(text(bench.sql(again)))
        await bench.enqueue(engine, "t1", attempt=3)
        assert await bench.statuses() == {"t1:1": "CANCELLED", "t1:3": "ENQUEUED"}
    async with bench.engine(workflow) as engine:
        await until(lambda: asyncio.sleep(0, attempts), lambda seen: len(seen) == 2)
    assert attempts == [1, 3]
    assert bench.failures == []


async def test_what_another_version_left_is_told_or_gone_on_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def workflow(task_id: str, steps: Steps) -> None:
        await steps.run("first", int, bench.step(f"{task_id} first"))
        await steps.run("second", type(None), forever)

    monkeypatch.setattr(dbos_engine, "LOOP_PROTOCOL", "before")
    async with bench.engine(workflow, workers=2, executor_id="one") as engine:
        for name in ("begun", "again"):
            await bench.enqueue(engine, name)
        await bench.log_grows_to(2)
        await bench.enqueue(engine, "fresh")
        # A step is recorded a moment after it has run.
        recorded = "SELECT count(*) FROM operation_outputs"
        await until(lambda: bench.rows(recorded), lambda rows: rows == [(2,)])
    async with bench.database.write() as connection:
        for change, name in (
            ("status = 'ENQUEUED'", "again"),  # put back by a recovery
            # Drained before its first step.
            ("status = 'PENDING', executor_id = 'one'", "fresh"),
        ):
            was = f"UPDATE workflow_status SET {change}, application_version = 'before'"
            await connection.execute(
                text(bench.sql(f"{was} WHERE workflow_uuid = '{name}:1'"))
            )
    monkeypatch.undo()
    bench.log.clear()
    async with bench.engine(workflow, executor_id="two"):
        await asyncio.sleep(0.2)
    # What another process holds is not its own to judge.
    assert [name for name, _ in bench.failures] == ["again"]
    for _ in range(2):
        async with bench.engine(workflow, executor_id="one") as engine:
            await until(engine.running, lambda names: names == ["fresh"])
            await bench.log_grows_to(1)
            await until(lambda: bench.rows(recorded), lambda rows: rows == [(3,)])
    assert bench.log == ["fresh first"]
    assert sorted(name for name, _ in bench.failures) == ["again", "begun"]
    assert {type(error) for _, error in bench.failures} == {OtherVersion}
    assert await bench.statuses() == {
        **dict.fromkeys(("begun:1", "again:1"), "CANCELLED"),
        "fresh:1": "PENDING",
    }


async def test_what_another_process_runs_is_left_to_it(bench: Bench) -> None:
    async def workflow(task_id: str, _steps: Steps) -> None:
        bench.log.append(task_id)
        await forever()

    async with bench.engine(workflow, executor_id="one") as engine:
        await bench.enqueue(engine, "t1")
        await until(engine.running, lambda names: names == ["t1"])
        while not bench.log:
            await asyncio.sleep(0.01)
    async with bench.engine(workflow, executor_id="two"):
        await asyncio.sleep(0.3)
    assert bench.log == ["t1"]


async def test_both_engines_write_one_file_without_a_locked_database(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def workflow(task_id: str, steps: Steps) -> None:
        for number in range(5):
            await steps.run(f"s{number}", int, bench.step(task_id))

    async def scribble(n: int) -> None:
        async with bench.database.write() as connection:
            await connection.execute(
                text("INSERT INTO counter VALUES (:n, 1)"), {"n": str(n)}
            )

    names = [f"t{n}" for n in range(8)]
    async with bench.engine(workflow, workers=4) as engine:
        await asyncio.gather(
            *(bench.enqueue(engine, name) for name in names), *map(scribble, range(60))
        )
        await bench.status_becomes(**dict.fromkeys(names, "SUCCESS"))
    assert len(bench.log) == 40
    assert [one.getMessage() for one in caplog.records if one.name == "dbos"] == []
    if bench.database.is_sqlite:
        ((mode,),) = await bench.rows("PRAGMA journal_mode")
        assert mode == "wal"


def network_sockets(server_port: int | None) -> set[str]:
    """Inodes of this process's TCP and UDP sockets (not the loops' own wake-up pairs).

    Not counted: those that lead to the database's server.
    """
    mine = set[str]()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            mine.add(str(link.readlink()))
    known = {
        f"socket:[{line.split()[9]}]"
        for kind in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]
        if int(line.split()[2].rpartition(":")[2], 16) != server_port
    }
    return mine & known


async def test_a_start_waits_for_who_is_writing_and_lets_them_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the write lock goes on in the very loop that starts the engine."""
    writes = asyncio.Event()

    async def write() -> None:
        async with bench.database.write() as connection:
            await connection.execute(text("INSERT INTO counter VALUES ('held', 1)"))
            writes.set()
            await asyncio.sleep(0.5)

    async def workflow(task_id: str, steps: Steps) -> None:
        await steps.run("only", int, bench.step(task_id))

    async with bench.engine() as engine:
        before, writing = engine._take_over, []

        async def then_somebody_writes() -> None:
            await before()
            writing.append(asyncio.create_task(write()))
            await writes.wait()

        monkeypatch.setattr(engine, "_take_over", then_somebody_writes)
        await engine.start(workflow)
        await asyncio.gather(*writing)
        await bench.enqueue(engine, "t1")
        await bench.status_becomes(t1="SUCCESS")


async def test_it_is_silent_and_opens_no_port(
    bench: Bench, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def workflow(_task_id: str, steps: Steps) -> None:
        await steps.run("only", int, bench.step("x"))

    port = make_url(bench.database.url).port
    before = network_sockets(port)
    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await bench.status_becomes(t1="SUCCESS")
        assert network_sockets(port) == before
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("dbos").propagate
    files = await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    assert {one.name.split(".")[0] for one in files} <= {"nestor"}


async def test_four_processes_may_prepare_at_once(bench: Bench) -> None:
    script = (
        "import asyncio, sys\n"
        "from nestor.backends.dbos.engine import DbosEngine\n"
        "async def main():\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    engine = DbosEngine(\n"
        "        sys.argv[1], executor_id='x', workers=1, on_failure=None)\n"
        "    await engine.prepare()\n"
        "    await engine.stop()\n"
        "asyncio.run(main())\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    command = (sys.executable, "-c", script, bench.database.url)
    processes = [
        await asyncio.create_subprocess_exec(*command, **pipes)  # type: ignore[arg-type]
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        await process.stdout.readline()
    ended = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [process.returncode for process in processes] == [0] * 4, ended
    assert [error for _, error in ended] == [b""] * 4  # and quietly
    assert await bench.statuses() == {}


async def test_threads_still_work_after_a_stop(bench: Bench) -> None:
    async def workflow(_task_id: str, steps: Steps) -> None:
        await steps.run("only", int, bench.step("x"))

    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await bench.status_becomes(t1="SUCCESS")
    assert await asyncio.to_thread(lambda: 5) == 5


async def test_a_process_runs_one_engine(bench: Bench) -> None:
    async def workflow(_task_id: str, _steps: Steps) -> None: ...

    async with bench.engine(workflow):
        with pytest.raises(RuntimeError, match="one task engine"):
            async with bench.engine(workflow):
                pass
        with pytest.raises(RuntimeError, match="prepare"):
            DbosEngine(
                bench.database.url, executor_id="x", workers=1, on_failure=bench.failed
            ).enqueue_in(None, "t1", priority=1)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)

    def __init__(self, path: Path) -> None:
        self.path = path


async def test_f1_a_planted_pickle_is_not_run(bench: Bench, tmp_path: Path) -> None:
    import pickle  # noqa: PLC0415 - the attack

    async def workflow(task_id: str, _steps: Steps) -> None:
        bench.log.append(task_id)

    trap = tmp_path / "PICKLE_CODE_RAN"
    planted = base64.b64encode(pickle.dumps(_Payload(trap))).decode()
    async with bench.engine() as engine:
        await bench.enqueue(engine, "t1")
    async with bench.database.write() as connection:
        for sql in (
            "UPDATE workflow_status SET serialization = 'py_pickle'",
            "UPDATE workflow_input SET inputs = :x",
        ):
            given = {"x": planted} if ":x" in sql else {}
            await connection.execute(text(bench.sql(sql)), given)
    async with bench.engine(workflow):
        await bench.status_becomes(t1="ERROR")
    assert not trap.exists()
    assert bench.log == []


def test_f1_nothing_of_ours_unpickles() -> None:
    found = [
        f"{path.name}: {line}"
        for path in Path(nestor.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"import.*\b(c?[Pp]ickle|dill|marshal|shelve)\b|pickle\.", line)
    ]
    assert found == []
