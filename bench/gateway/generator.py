"""The load generator: a process that asks, and checks every answer.

    python -m bench.gateway.generator

Reads one job a line (``Job`` as JSON) and prints one ``Result`` for each. Closed loop:
``concurrency`` connections, each of which asks again as soon as it was answered.
"""

import asyncio
import resource
import sys
import time
from collections import Counter

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


class Job(msgspec.Struct, kw_only=True):
    """So many requests of one kind."""

    port: int
    path: str
    key: str
    model: str
    stream: bool
    size: str
    requests: int
    concurrency: int
    first_serial: int


class Result(msgspec.Struct, kw_only=True):
    """What came of a job. Milliseconds and seconds; ``cpu_s`` is the generator's own."""

    right: int
    wrong: dict[str, int]
    example: str
    seconds: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float


class Run:
    """One job under way."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._head = head_of(job.port, job.path, job.key)
        self._next = job.first_serial
        self._end = job.first_serial + job.requests
        self._open = 0
        self._ended = asyncio.get_running_loop().create_future()
        self._check = fault_of_stream if job.stream else fault_of_whole
        self.seconds: list[float] = []
        self.first: list[float] = []
        self.wrong: Counter[str] = Counter()
        self.example = ""
        """The body of the first answer that was refused."""

    async def run(self) -> None:
        """Ask until all is asked and answered."""
        loop = asyncio.get_running_loop()
        count = min(self._job.concurrency, self._job.requests)
        connections = [
            (
                await loop.create_connection(
                    lambda: Connection(self._answered), "127.0.0.1", self._job.port
                )
            )[1]
            for _ in range(count)
        ]
        for connection in connections:
            self._ask(connection)
        await self._ended
        for connection in connections:
            connection.hang_up()

    def _ask(self, connection: Connection) -> None:
        job, serial = self._job, self._next
        self._next += 1
        self._open += 1
        body = traffic.body_of(
            job.model, job.size, stream=job.stream, serial=serial, fault=""
        )
        connection.send(self._head, body, serial, None)

    def _answered(self, connection: Connection, answered: Answered) -> None:
        self._open -= 1
        self.seconds.append(answered.seconds)
        self.first.append(answered.first_s)
        if fault := self._fault_of(answered):
            self.wrong[fault] += 1
        if self._next < self._end and not connection.closed:
            self._ask(connection)
        elif not self._open:
            self._ended.set_result(None)

    def _fault_of(self, answered: Answered) -> str:
        if not answered.whole:
            return "the connection ended before the answer"
        if answered.status != 200:
            self.example = self.example or f"{answered.body[:300]!r}"
            return f"status {answered.status}"
        return self._check(answered.body, answered.serial)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of ``values`` lies, in ms."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)


def cpu_s() -> float:
    """CPU of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def done(job: Job) -> Result:
    """Do one job."""
    run = Run(job)
    began, cpu = time.perf_counter(), cpu_s()
    await run.run()
    return Result(
        right=len(run.seconds) - run.wrong.total(),
        wrong=run.wrong,
        example=run.example,
        seconds=time.perf_counter() - began,
        cpu_s=cpu_s() - cpu,
        p50_ms=percentile(run.seconds, 0.5),
        p99_ms=percentile(run.seconds, 0.99),
        first_p50_ms=percentile(run.first, 0.5),
        first_p99_ms=percentile(run.first, 0.99),
    )


async def main() -> None:
    """Do the jobs of standard input."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        result = await done(msgspec.json.decode(line, type=Job))
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
