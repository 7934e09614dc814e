"""Who of the queue may start now: limits of backends, starts a minute, memory."""

from collections.abc import AsyncIterator, Sequence

import pytest

from nestor.model.backend_table import BackendTable, by_name
from nestor.model.task import TaskStatus
from nestor.ports.task_queue import Need
from nestor.ralph.gate import FLOOR, GUESS_BYTES, PATIENCE_S, Gate
from nestor.resilience.memory import Memory

GIB = 1024**3
ROOMY = Memory(total=100 * GIB, available=90 * GIB)


class Rig:
    """A gate over a queue in memory; time and memory are given."""

    def __init__(self, *tables: BackendTable, memory: Memory = ROOMY) -> None:
        self.now, self.memory, self.used = 1000.0, memory, 0
        self.tasks: dict[str, Need] = {}
        self.running: list[str] = []
        self.gate = Gate(
            self._needs,
            by_name(tables),
            memory=lambda: self.memory,
            used=lambda: self.used,
            timer=lambda: self.now,
        )

    async def _needs(self, names: Sequence[str]) -> list[Need]:
        return [self.tasks[name] for name in names if name in self.tasks]

    def add(
        self,
        name: str,
        backend: str = "builtin",
        gib: float = 0,
        status: TaskStatus = TaskStatus.QUEUED,
    ) -> None:
        size = int(gib * GIB) or None
        self.tasks[name] = Need(
            task_id=name, status=status, backend=backend, memory_bytes=size
        )

    async def look(self, room: int = 9, page: int = 500) -> list[str]:
        async def pages() -> AsyncIterator[Sequence[str]]:
            waiting = [name for name in self.tasks if name not in self.running]
            for start in range(0, len(waiting), page):
                yield waiting[start : start + page]

        chosen = await self.gate.choose(pages(), room, list(self.running))
        self.running += chosen
        return chosen

    def end(self, name: str) -> None:
        self.running.remove(name)
        del self.tasks[name]
        self.gate.left(name)


async def test_a_backend_at_its_limit_holds_nobody_else_back() -> None:
    rig = Rig(BackendTable(name="claude", concurrency=1))
    for n in range(5):
        rig.add(f"c{n}", "claude")
    rig.add("other")
    assert await rig.look(page=2) == ["c0", "other"]
    assert await rig.look() == []
    assert rig.gate.waits["c1"] == "backend claude is at its limit of 1"
    rig.end("c0")
    assert await rig.look() == ["c1"]


async def test_the_order_holds_within_what_can_run() -> None:
    rig = Rig(BackendTable(name="claude", concurrency=2))
    for name in ("c1", "c2", "c3"):
        rig.add(name, "claude")
    rig.add("b1")
    rig.add("b2")
    assert await rig.look(room=3) == ["c1", "c2", "b1"]


async def test_no_more_starts_than_a_minute_allows() -> None:
    rig = Rig(BackendTable(name="claude", starts_per_minute=2))
    for n in range(4):
        rig.add(f"c{n}", "claude")
    assert await rig.look() == ["c0", "c1"]
    rig.end("c0")
    rig.now += 20
    assert await rig.look() == []
    said = "backend claude is at its limit of 2 starts a minute; next in 40 s"
    assert rig.gate.waits["c2"] == said
    rig.now += 40
    assert await rig.look() == ["c2", "c3"]


async def test_what_is_reserved_and_not_used_yet_is_not_given_twice() -> None:
    rig = Rig(memory=Memory(total=10 * GIB, available=8 * GIB))
    for name in ("a", "b", "c"):
        rig.add(name, gib=3)
    assert await rig.look() == ["a", "b"]  # 7.5 GiB beyond the floor
    assert rig.gate.waits["c"] == "waits for memory: needs 3 GiB, 1.5 GiB free"
    # Both have taken what they reserved: the machine has less, the reservation is used.
    rig.used, rig.memory = 6 * GIB, Memory(total=10 * GIB, available=2 * GIB)
    assert await rig.look() == []
    rig.end("a")
    rig.used, rig.memory = 3 * GIB, Memory(total=10 * GIB, available=5 * GIB)
    assert await rig.look() == ["c"]


async def test_the_floor_stays_free() -> None:
    rig = Rig(memory=Memory(total=100 * GIB, available=10 * GIB))
    rig.add("first", gib=1)
    rig.add("a", gib=10 - 100 * FLOOR)
    assert await rig.look() == ["first"]
    rig.end("first")
    assert await rig.look() == ["a"]


async def test_unknown_memory_holds_nobody_back() -> None:
    rig = Rig(memory=Memory())
    rig.add("a", gib=1000)
    assert await rig.look() == ["a"]
    assert rig.gate.never_fits("builtin", 1000 * GIB) is None


async def test_a_need_that_nobody_stated_does_not_keep_an_idle_machine_idle() -> None:
    rig = Rig(memory=Memory(total=GIB, available=GUESS_BYTES // 4))
    rig.add("a")
    rig.add("b")
    assert await rig.look() == ["a"]
    assert "needs 512 MiB" in rig.gate.waits["b"]


async def test_a_large_one_is_passed_by_smaller_ones_for_a_bounded_time() -> None:
    rig = Rig(memory=Memory(total=10 * GIB, available=10 * GIB))
    rig.add("running", gib=5)
    assert await rig.look() == ["running"]
    rig.add("large", gib=9)
    rig.add("small1", gib=1)
    assert await rig.look() == ["small1"]
    rig.now += PATIENCE_S + 1
    rig.add("small2", gib=1)
    assert await rig.look() == []
    assert rig.gate.waits["small2"] == "waits for memory: large needs it first"
    rig.end("running")
    assert await rig.look() == []
    rig.end("small1")
    assert await rig.look() == ["large"]
    assert "needs 1 GiB, 512 MiB free" in rig.gate.waits["small2"]


async def test_a_large_one_that_waits_for_others_memory_does_not_stop_all() -> None:
    rig = Rig(memory=Memory(total=10 * GIB, available=2 * GIB))
    rig.add("large", gib=8)
    assert await rig.look() == []
    rig.now += PATIENCE_S + 1
    rig.add("small", gib=1)
    assert await rig.look() == ["small"]  # nothing of ours runs that it could wait for


async def test_a_cancelled_one_passes_and_takes_no_place() -> None:
    rig = Rig(BackendTable(name="claude", concurrency=1))
    rig.add("a", "claude")
    rig.add("gone", "claude", status=TaskStatus.CANCELLED)
    rig.add("b", "claude")
    assert await rig.look() == ["a", "gone"]


async def test_who_was_let_in_and_never_arrives_is_forgotten() -> None:
    rig = Rig(BackendTable(name="claude", concurrency=1))
    rig.add("a", "claude")
    assert await rig.look() == ["a"]
    rig.running.clear()
    del rig.tasks["a"]
    rig.add("b", "claude")
    assert await rig.look() == []
    rig.now += 31
    assert await rig.look() == ["b"]


async def test_the_memory_of_a_backend_counts_where_the_task_says_nothing() -> None:
    table = BackendTable(name="claude", memory_bytes=6 * GIB)
    rig = Rig(table, memory=Memory(total=10 * GIB, available=10 * GIB))
    rig.add("a", "claude")
    rig.add("b", "claude", gib=3)
    rig.add("c", "claude", gib=3)
    assert await rig.look() == ["a", "b"]


@pytest.mark.parametrize(("gib", "refused"), [(9, False), (9.6, True), (24, True)])
def test_what_could_never_fit_is_told(gib: float, *, refused: bool) -> None:
    rig = Rig(memory=Memory(total=10 * GIB, available=GIB))
    why = rig.gate.never_fits("builtin", int(gib * GIB))
    assert bool(why) is refused
    assert not why or "at most 9.5 GiB of 10 GiB" in why
    assert rig.gate.never_fits("builtin", None) is None
