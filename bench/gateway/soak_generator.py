"""An open loop: so many requests a second, whatever becomes of them.

    python -m bench.gateway.soak_generator

Reads one ``SoakJob`` from standard input, asks, and prints one ``Outcomes``. Some clients
leave in the middle, some requests tell the upstream to fail (``bench.gateway.upstream``).
"""

import asyncio
import random
import sys
import time
from contextlib import suppress

import msgspec
import uvloop
from bench.gateway import traffic
from bench.gateway.wire import (
    Answered,
    Connection,
    fault_of_stream,
    fault_of_whole,
    head_of,
)

MOST_OPEN = 1024
"""Requests under way; beyond, one is not put, and counted."""
_DRAIN_S = 30.0
STREAMS, LEAVES, FAULTS = 0.4, 0.06, 0.04
"""Shares of the requests."""
_KINDS = ("error", "busy", "drop", "cut")


class SoakJob(msgspec.Struct, kw_only=True):
    """What to do. ``keys``: asked with in turn."""

    port: int
    keys: list[str]
    model: str
    rate: float
    seconds: float
    seed: int


class Plan(msgspec.Struct):
    """One request."""

    stream: bool
    size: str
    leave: int | None
    fault: str


class Outcomes(msgspec.Struct, kw_only=True):
    """Serial numbers by how they ended, as the client saw it."""

    right: list[int] = []
    told: dict[str, list[int]] = {}
    """Explicit errors: a status, or an event of an error in a stream."""
    left: list[int] = []
    """Hung up on purpose."""
    faulty: list[int] = []
    """The upstream was to fail."""
    wrong: dict[str, list[int]] = {}
    not_put: int = 0
    late_ms: float = 0.0
    """The most that a request was put after its time."""


def plan_of(serial: int, seed: int) -> Plan:
    """Return what request ``serial`` is; the same each time."""
    dice = random.Random(f"{seed}:{serial}")
    stream = dice.random() < STREAMS
    size = "12k" if dice.random() < 0.3 else "2k"
    fate = dice.random()
    if fate < LEAVES:
        # Of a whole answer only before it came; of a stream after any of its events.
        leave = dice.randrange(traffic.EVENTS - 5) if stream else 0
        return Plan(stream, size, leave, "")
    fault = dice.choice(_KINDS) if fate < LEAVES + FAULTS else ""
    return Plan(stream, size, None, fault)


class Soak:
    """The requests under way."""

    def __init__(self, job: SoakJob) -> None:
        self._job = job
        self._heads = [
            head_of(job.port, "/v1/chat/completions", key) for key in job.keys
        ]
        self._idle: list[Connection] = []
        self._plans: dict[int, Plan] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_put = False
        self._drained = asyncio.Event()
        self.outcomes = Outcomes()

    async def run(self) -> Outcomes:
        """Ask for as long as the job says, then wait for the last answers."""
        began = time.monotonic()
        count = round(self._job.rate * self._job.seconds)
        for number in range(count):
            due = began + number / self._job.rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            late = (time.monotonic() - due) * 1000
            self.outcomes.late_ms = max(self.outcomes.late_ms, late)
            self._put(number + 1)
        self._all_put = True
        if self._plans:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), _DRAIN_S)
        if self._plans:
            self.outcomes.wrong["no end"] = list(self._plans)
        return self.outcomes

    def _put(self, serial: int) -> None:
        if len(self._plans) >= MOST_OPEN:
            self.outcomes.not_put += 1
            return
        plan = self._plans[serial] = plan_of(serial, self._job.seed)
        if plan.fault:
            self.outcomes.faulty.append(serial)
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                self._send(connection, serial, plan)
                return
        task = asyncio.create_task(self._open(serial, plan))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, serial: int, plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self._ended), "127.0.0.1", self._job.port
            )
        except OSError as error:
            del self._plans[serial]
            self._count(self.outcomes.wrong, f"no connection: {error}", serial)
            return
        self._send(connection, serial, plan)

    def _send(self, connection: Connection, serial: int, plan: Plan) -> None:
        body = traffic.body_of(
            self._job.model,
            plan.size,
            stream=plan.stream,
            serial=serial,
            fault=plan.fault,
        )
        head = self._heads[serial % len(self._heads)]
        connection.send(head, body, serial, plan.leave)

    def _ended(self, connection: Connection, answered: Answered) -> None:
        plan = self._plans.pop(answered.serial)
        if answered.whole:
            self._idle.append(connection)
        self._judge(plan, answered)
        if self._all_put and not self._plans:
            self._drained.set()

    def _judge(self, plan: Plan, answered: Answered) -> None:
        out, serial = self.outcomes, answered.serial
        if plan.leave is not None and not answered.whole:
            out.left.append(serial)
        elif answered.whole and answered.status >= 400:
            self._count(out.told, f"status {answered.status}", serial)
        elif not answered.whole:
            self._count(out.wrong, "the connection ended before the answer", serial)
        else:
            check = fault_of_stream if plan.stream else fault_of_whole
            fault = check(answered.body, serial)
            if not fault:
                out.right.append(serial)
            elif plan.stream and b'"error"' in answered.body[-4096:]:
                self._count(out.told, "an event of an error", serial)
            else:
                self._count(out.wrong, fault, serial)

    @staticmethod
    def _count(by: dict[str, list[int]], what: str, serial: int) -> None:
        by.setdefault(what, []).append(serial)


async def main() -> None:
    """Do the job of standard input."""
    job = msgspec.json.decode(sys.stdin.readline(), type=SoakJob)
    outcomes = await Soak(job).run()
    print(msgspec.json.encode(outcomes).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
