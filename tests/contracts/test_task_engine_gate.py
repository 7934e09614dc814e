"""What a gate in front of the queue holds back, and what draining leaves behind."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from sqlalchemy import text
from tests.contracts.test_task_engine import Bench, forever, until

from nestor.backends.dbos.engine import LOOP_PROTOCOL, MAX_RECOVERIES, DbosEngine
from nestor.backends.sql.database import Database
from nestor.ports.task_engine import RecoveryLimit, Steps, Workflow


class Doorman:
    """Lets in whose id begins with one of ``open``; at most one of ``single`` at a time."""

    def __init__(self, *names: str, single: str = "none") -> None:
        self.open, self.single = list(names), single
        self.inside: set[str] = set()
        self.ends: list[tuple[str, int]] = []
        self.asked = 0
        self.told: set[str] = set()
        """Who was said to run: at a moment before, so that some may have left since."""

    async def choose(
        self, pages: AsyncIterator[Sequence[str]], room: int, running: Sequence[str]
    ) -> list[str]:
        self.asked += 1
        chosen: list[str] = []
        async for page in pages:
            for name in page:
                taken = any(one.startswith(self.single) for one in self.inside)
                held = taken and name.startswith(self.single)
                if (
                    len(chosen) < room
                    and not held
                    and name.startswith(tuple(self.open))
                ):
                    chosen.append(name)
                    self.inside.add(name)
        self.told |= set(running)
        return chosen

    async def ending(self, running: Sequence[str]) -> list[tuple[str, int]]:
        return [one for one in self.ends if one[0] not in running]

    def left(self, task_id: str) -> None:
        self.inside.discard(task_id)


class Gated(Bench):
    doorman: Doorman

    def new(self, workers: int, executor_id: str) -> DbosEngine:
        return DbosEngine(
            self.database.url,
            executor_id=executor_id,
            workers=workers,
            on_failure=self.failed,
            gate=self.doorman,
            poll_s=0.02,
        )

    async def claims(self) -> dict[str, int]:
        rows = await self.rows(
            "SELECT workflow_uuid, recovery_attempts FROM workflow_status"
        )
        return {name.split(":")[0]: count for name, count in rows}


@pytest.fixture
def bench(database: Database) -> Gated:
    return Gated(database)


def noting(bench: Bench) -> Workflow:
    async def workflow(task_id: str, steps: Steps) -> None:
        await steps.run("only", int, bench.step(task_id))

    return workflow


async def test_only_who_is_let_in_is_taken(bench: Gated) -> None:
    bench.doorman = Doorman("b")
    async with bench.engine(workers=1) as engine:  # submitted before the gate was there
        for name, priority in (("a1", 0), ("b1", 3), ("b2", 1), ("a2", 0)):
            await bench.enqueue(engine, name, priority)
    async with bench.engine(noting(bench), workers=1):
        await bench.status_becomes(b1="SUCCESS", b2="SUCCESS")
        asked = bench.doorman.asked
        await until(lambda: asyncio.sleep(0, bench.doorman.asked), lambda n: n > asked)
        assert bench.log == ["b2", "b1"]
        assert (await bench.claims())["a1"] == 0
        bench.doorman.open.append("a")
        await bench.status_becomes(a1="SUCCESS", a2="SUCCESS")
    assert bench.log[2:] == ["a1", "a2"]
    assert bench.doorman.inside == set()


async def test_one_that_is_held_back_holds_nobody_back(bench: Gated) -> None:
    bench.doorman = Doorman("a", "b", single="a")
    now, most = 0, 0
    both = asyncio.Event()

    async def workflow(task_id: str, steps: Steps) -> None:
        async def work() -> None:
            nonlocal now, most
            bench.log.append(task_id)
            if task_id.startswith("a"):
                now, most = now + 1, max(most, now + 1)
                await both.wait()
                now -= 1
            elif len([n for n in bench.log if n.startswith("b")]) == 3:
                both.set()

        await steps.run("work", type(None), work)

    names = ["a1", "a2", "a3", "b1", "b2", "b3"]
    async with bench.engine(workflow, workers=3) as engine:
        for name in names:
            await bench.enqueue(engine, name, 0 if name.startswith("a") else 3)
        await bench.status_becomes(**dict.fromkeys(names, "SUCCESS"))
    assert most == 1
    assert bench.doorman.told & {"a1", "a2", "a3"}


async def test_those_behind_a_long_line_are_found(bench: Gated) -> None:
    bench.doorman = Doorman("b")
    async with (
        bench.engine(workers=1) as engine,
        bench.database.write() as connection,
    ):
        for n in range(520):  # more than a page
            await connection.run_sync(engine.enqueue_in, f"a{n}", priority=0)
        await connection.run_sync(engine.enqueue_in, "b", priority=3)
    async with bench.engine(noting(bench), workers=1):
        await bench.status_becomes(b="SUCCESS")
    assert bench.log == ["b"]


async def test_who_only_ends_needs_no_worker(bench: Gated) -> None:
    bench.doorman = Doorman("busy", "next")

    async def workflow(task_id: str, steps: Steps) -> None:
        bench.log.append(task_id)
        if task_id == "busy":
            await steps.run("work", type(None), forever)

    async with bench.engine(workflow, workers=1) as engine:
        await bench.enqueue(engine, "busy", 0)
        await bench.log_grows_to(1)
        await bench.enqueue(engine, "next", 0)
        await bench.enqueue(engine, "ends", 3, attempt=4)
        bench.doorman.ends = [("ends", 4), ("elsewhere", 1)]
        await until(bench.statuses, lambda all_: all_["ends:4"] == "SUCCESS")
        assert bench.log == ["busy", "ends"]
        assert await engine.held_by_nobody({"next": 1, "busy": 1, "ends": 4}) == {
            "next"
        }
        await engine.drain(0)
        await bench.enqueue(engine, "ends", 3, attempt=5)
        bench.doorman.ends = [("ends", 5)]
        await asyncio.sleep(1.5)  # in which it would be looked for
        assert (await bench.statuses())["ends:5"] == "ENQUEUED"


async def test_an_empty_queue_asks_nobody(bench: Gated) -> None:
    bench.doorman = Doorman("a")
    async with bench.engine(noting(bench)) as engine:
        await asyncio.sleep(0.3)
        assert bench.doorman.asked == 0
        await bench.enqueue(engine, "a")
        await bench.status_becomes(a="SUCCESS")


async def test_a_poison_task_parks_behind_a_gate_in_any_attempt(bench: Gated) -> None:
    bench.doorman = Doorman("p")
    async with bench.engine(noting(bench)) as engine:
        await bench.enqueue(engine, "poison")
        await bench.status_becomes(poison="SUCCESS")
        bench.doorman.open.clear()
        bench.doorman.open.append("nobody")
        await bench.enqueue(engine, "poison", attempt=2)
    dead = (
        "UPDATE workflow_status SET status = 'PENDING', executor_id = 'one',"
        f" application_version = '{LOOP_PROTOCOL}', recovery_attempts = :n"
        " WHERE workflow_uuid = 'poison:2'"
    )
    async with bench.database.write() as connection:  # as dead processes leave it
        await connection.execute(text(bench.sql(dead)), {"n": MAX_RECOVERIES + 1})
    async with bench.engine(noting(bench)):
        await until(bench.statuses, lambda all_: all_["poison:2"] == "ENQUEUED")
        await asyncio.sleep(0.3)  # waiting at the gate is no attempt
        assert bench.failures == []
        bench.doorman.open.append("poison")
        await until(bench.statuses, lambda all_: all_["poison:2"] == "ERROR")
    assert bench.log == ["poison"]
    ((task_id, error),) = bench.failures
    assert (task_id, type(error)) == ("poison", RecoveryLimit)
    assert bench.doorman.inside == set()


async def test_draining_lets_a_step_end_and_begins_no_other(bench: Gated) -> None:
    bench.doorman = Doorman("t")
    going = asyncio.Event()

    async def workflow(task_id: str, steps: Steps) -> None:
        async def first() -> int:
            bench.log.append(f"{task_id} first")
            await going.wait()
            return 1

        assert await steps.run("first", int, first) == 1
        await steps.run("second", int, bench.step(f"{task_id} second"))

    async with bench.engine(workflow, workers=1) as engine:
        await bench.enqueue(engine, "t1")
        await bench.enqueue(engine, "t2")
        await bench.log_grows_to(1)
        assert await engine.drain(0) == ["t1"]
        draining = asyncio.create_task(engine.drain(20))
        await asyncio.sleep(0.2)
        assert not draining.done()
        await bench.enqueue(engine, "t3")  # still stored
        going.set()
        assert await draining == []
        await asyncio.sleep(0.2)
        assert bench.log == ["t1 first"]
    assert await bench.claims() == {"t1": 0, "t2": 0, "t3": 0}
    async with bench.engine(workflow, workers=1):
        await bench.status_becomes(t1="SUCCESS", t2="SUCCESS", t3="SUCCESS")
    assert bench.log[:2] == ["t1 first", "t1 second"], "a recorded step ran twice"


async def test_draining_gives_up_after_its_time_and_stop_ends_the_step(
    bench: Gated,
) -> None:
    bench.doorman = Doorman("t")
    cleaned: list[str] = []

    async def workflow(task_id: str, steps: Steps) -> None:
        async def work() -> None:
            bench.log.append("work")
            try:
                await forever()
            finally:
                cleaned.append(task_id)

        await steps.run("work", type(None), work)

    async with bench.engine(workflow) as engine:
        await bench.enqueue(engine, "t1")
        await bench.log_grows_to(1)
        assert await engine.drain(0.2) == ["t1"]
        assert cleaned == []
    assert cleaned == ["t1"]
    assert await bench.claims() == {"t1": 0}
