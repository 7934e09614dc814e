"""Which of the tasks in the queue may start now: limits of each backend, and memory.

Looks at the whole queue in its order, so that one backend at its limit holds nobody of
another back. All of this is of this process and of this moment: nothing is stored.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import msgspec

from nestor.model.backend_table import BackendTable
from nestor.model.task import FINAL_STATUSES
from nestor.ports.task_queue import Need
from nestor.resilience.memory import Memory

GUESS_BYTES = 512 * 1024**2
"""What a task is taken to need when nobody said."""
FLOOR = 0.05
"""Share of all memory that admission leaves free."""
PATIENCE_S = 60.0
"""So long may smaller tasks pass the first one that waits for memory."""
_MINUTE_S = 60.0
_UNSEEN_S = 30.0
"""Whoever was let in and is not running after this long has not arrived."""

Needs = Callable[[Sequence[str]], Awaitable[list[Need]]]
ToEnd = Callable[[], Awaitable[list[Need]]]


async def _nobody() -> list[Need]:
    return []


class _Admitted(msgspec.Struct):
    backend: str
    memory_bytes: int
    since_s: float
    arrived: bool = False


class _Look(msgspec.Struct):
    """One look at the queue: what is free, and who waits for memory before all others."""

    free: float | None
    """None: unknown, which holds nobody back."""
    closed: bool = False
    """The first that waits for memory has waited long enough: nobody passes it."""
    first: str | None = None


class Gate:
    """``ports.task_engine.Gate``. Everything runs in one event loop."""

    def __init__(
        self,
        needs: Needs,
        backends: Mapping[str, BackendTable],
        *,
        memory: Callable[[], Memory],
        used: Callable[[], int | None],
        timer: Callable[[], float],
        to_end: ToEnd = _nobody,
    ) -> None:
        self._needs = needs
        self._to_end = to_end
        self._backends = backends
        self._memory = memory
        self._used = used
        """What the processes of admitted tasks have taken so far, together."""
        self._timer = timer
        self._admitted: dict[str, _Admitted] = {}
        self._starts: dict[str, deque[float]] = {}
        self._waits: dict[str, str] = {}
        self._first: tuple[str, float] | None = None
        """Who waits for memory before all others, and since when."""

    @property
    def waits(self) -> Mapping[str, str]:
        """Why tasks were not let in when they were last looked at."""
        return self._waits

    async def choose(
        self, pages: AsyncIterator[Sequence[str]], room: int, running: Sequence[str]
    ) -> list[str]:
        """Let in at most ``room`` of the waiting, which come in their order.

        Each is counted until ``left``.
        """
        self._settle(running)
        look = _Look(free=await self._free())
        chosen: list[str] = []
        waits: dict[str, str] = {}
        async for page in pages:
            for need in await self._needs(page):
                if len(chosen) == room:
                    break
                why = self._refused(need, look)
                if why is None:
                    chosen.append(need.task_id)
                    self._admit(need, look)
                else:
                    waits[need.task_id] = why
            if len(chosen) == room:
                break
        self._waits = waits
        self._first = self._waiting_first(look)
        return chosen

    async def ending(self, running: Sequence[str]) -> list[tuple[str, int]]:
        """Return task and attempt of those that only end, and that nobody here does."""
        asked = await self._to_end()
        return [(n.task_id, n.attempt) for n in asked if n.task_id not in running]

    def left(self, task_id: str) -> None:
        """Count it no longer: it has ended, or was not taken from the queue after all."""
        self._admitted.pop(task_id, None)

    def never_fits(self, backend: str, memory_bytes: int | None) -> str | None:
        """Say why a task could not even start alone; None: it could, or it is unknown."""
        table = self._backends.get(backend)
        wanted = memory_bytes or (table.memory_bytes if table else None)
        total = self._memory().total
        if wanted is None or total is None or wanted <= total * (1 - FLOOR):
            return None
        most = f"at most {_said(total * (1 - FLOOR))} of {_said(total)}"
        return f"needs {_said(wanted)}, and tasks may use {most} here; ask for less"

    def memory_for(self, backend: str, memory_bytes: int | None) -> int:
        """Return how many bytes a task is taken to need."""
        table = self._backends.get(backend)
        said = memory_bytes or (table.memory_bytes if table else None)
        return said or GUESS_BYTES

    def _settle(self, running: Sequence[str]) -> None:
        now = self._timer()
        for task_id in running:
            if task_id in self._admitted:
                self._admitted[task_id].arrived = True
        gone = [
            task_id
            for task_id, one in self._admitted.items()
            if task_id not in running and (one.arrived or now - one.since_s > _UNSEEN_S)
        ]
        for task_id in gone:
            self.left(task_id)

    async def _free(self) -> float | None:
        """What is free beyond the floor and what admitted tasks may still take."""
        reserved = sum(one.memory_bytes for one in self._admitted.values())
        memory, used = await asyncio.to_thread(self._observe, reserved > 0)
        if memory.available is None or memory.total is None:
            return None
        unused = max(reserved - (used or 0), 0)
        return memory.available - unused - memory.total * FLOOR

    def _observe(self, some_run: bool) -> tuple[Memory, int | None]:
        return self._memory(), self._used() if some_run else 0

    def _refused(self, need: Need, look: _Look) -> str | None:
        """Say why it has to wait; None: it may start."""
        if _only_ends(need):
            return None
        return self._at_its_limit(need.backend) or self._too_large(need, look)

    def _at_its_limit(self, backend: str) -> str | None:
        table = self._backends.get(backend)
        if table is None:
            return None
        now = sum(one.backend == backend for one in self._admitted.values())
        if table.concurrency is not None and now >= table.concurrency:
            return f"backend {backend} is at its limit of {table.concurrency}"
        if table.starts_per_minute is not None:
            starts = self._starts.setdefault(backend, deque())
            while starts and starts[0] <= self._timer() - _MINUTE_S:
                starts.popleft()
            if len(starts) >= table.starts_per_minute:
                in_s = math.ceil(starts[0] + _MINUTE_S - self._timer())
                limit = f"{table.starts_per_minute} starts a minute"
                return f"backend {backend} is at its limit of {limit}; next in {in_s} s"
        return None

    def _too_large(self, need: Need, look: _Look) -> str | None:
        if look.free is None:
            return None
        wanted = self.memory_for(need.backend, need.memory_bytes)
        if look.closed:
            return f"waits for memory: {look.first} needs it first"
        if wanted <= look.free or (self._is_guess(need) and not self._admitted):
            return None
        if look.first is None:
            look.first = need.task_id
            look.closed = self._has_waited_enough(need.task_id)
        return (
            f"waits for memory: needs {_said(wanted)}, {_said(max(look.free, 0))} free"
        )

    def _is_guess(self, need: Need) -> bool:
        """A need that nobody stated does not keep an idle machine idle."""
        table = self._backends.get(need.backend)
        return not (need.memory_bytes or (table and table.memory_bytes))

    def _has_waited_enough(self, task_id: str) -> bool:
        # While nothing of ours runs, holding others back would free nothing for it.
        return (
            self._first is not None
            and self._first[0] == task_id
            and self._timer() - self._first[1] >= PATIENCE_S
            and bool(self._admitted)
        )

    def _waiting_first(self, look: _Look) -> tuple[str, float] | None:
        if look.first is None:
            return None
        if self._first is not None and self._first[0] == look.first:
            waited_enough = self._timer() - self._first[1] >= PATIENCE_S
            if look.closed or not waited_enough:
                return self._first
        # Also when it waited in vain until nothing of ours ran: others get a turn.
        return look.first, self._timer()

    def _admit(self, need: Need, look: _Look) -> None:
        if _only_ends(need):
            return
        now = self._timer()
        wanted = self.memory_for(need.backend, need.memory_bytes)
        self._admitted[need.task_id] = _Admitted(need.backend, wanted, now)
        if look.free is not None:
            look.free -= wanted
        table = self._backends.get(need.backend)
        if table is not None and table.starts_per_minute is not None:
            self._starts.setdefault(need.backend, deque()).append(now)


def _only_ends(need: Need) -> bool:
    """Tell whether it was cancelled while it waited, before or after it had begun."""
    return need.status in FINAL_STATUSES or need.cancel_requested


def _said(size: float) -> str:
    if size < 1024**3:
        return f"{size / 1024**2:.0f} MiB"
    return f"{size / 1024**3:.1f}".removesuffix(".0") + " GiB"
