"""The task engine on DBOS, with its tables in Nestor's own database.

DBOS is one object a process, reads no file here, opens no port and sends nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import msgspec
import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer

from nestor.backends.dbos.claims import SPARE, GatedClaims
from nestor.backends.dbos.tamed import quiet, read_json_only
from nestor.backends.dbos.workflow_rows import (
    WorkflowRows,
    attempt_of,
    task_id_of,
    workflow_id,
)
from nestor.backends.sql.database import prepare_sqlite, sync_url, translated
from nestor.backends.sql.rows import encode
from nestor.errors import Unavailable
from nestor.ports.task_engine import (
    FailureHook,
    Gate,
    OtherVersion,
    RecoveryLimit,
    StepFailed,
    Workflow,
)
from nestor.telemetry.logs import get_logger

T = TypeVar("T")
_log = get_logger("nestor.engine")

LOOP_PROTOCOL = "2"
"""Raise it when recorded steps no longer fit the workflow's code: DBOS replays a
workflow only under the version that began it. What others left is told at the start."""
MAX_RECOVERIES = 5
STOP_TIMEOUT_S = 10.0
"""How long ``stop`` waits for steps to clean up after being cancelled."""

_APPLICATION = "nestor"
_WORKFLOW = "nestor.task"
_QUEUE = "nestor-tasks"
_REPORT_AGAIN_S = 1.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class DbosEngine:
    """``ports.task_engine.TaskEngine``.

    ``executor_id`` is unique to this process and the same after a restart: what it left
    behind is recovered by it, and by nobody else. ``prepare`` comes before the first
    ``enqueue_in``; ``start`` does it, too.
    """

    _started: ClassVar["DbosEngine | None"] = None

    def __init__(
        self,
        database_url: str,
        *,
        executor_id: str,
        workers: int,
        on_failure: FailureHook,
        gate: Gate | None = None,
        poll_s: float = 0.1,
    ) -> None:
        self._url = sync_url(database_url)
        self._executor_id = executor_id
        self._workers = workers
        self._on_failure = on_failure
        self._gate = gate
        self._poll_s = poll_s
        self._engine: sa.Engine | None = None
        self._client: DBOSClient | None = None
        self._dbos: DBOS | None = None
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._abandoned: set[str] = set()
        self._queue: Any = None
        self._draining = False
        self._rows = WorkflowRows(
            None if self._url.startswith("sqlite") else "dbos",
            queue=_QUEUE,
            version=LOOP_PROTOCOL,
        )

    async def prepare(self) -> None:
        """Make or update the engine's tables. Raises ``Unavailable``."""
        if self._client is None:
            quiet(logging.WARNING)
            read_json_only()
            await asyncio.to_thread(self._migrate)
            self._engine = self._new_engine()
            self._client = DBOSClient(
                system_database_engine=self._engine,
                serializer=DBOSPortableJSONSerializer(),
                application_name=_APPLICATION,
                lazy=True,
            )

    async def start(self, workflow: Workflow) -> None:
        """Begin taking tasks, in the loop where the steps are to run; left ones first."""
        if DbosEngine._started is not None:
            raise RuntimeError("a process runs one task engine")
        await self.prepare()
        DbosEngine._started = self
        self._draining = False
        self._abandoned.clear()
        try:
            await self._take_over()
            await self._launch(workflow)
        except BaseException:
            await self.stop()
            raise

    async def _take_over(self) -> None:
        """Go on with what other versions left, or say that nobody can."""

        def look() -> list[str]:
            with translated(), self._connected() as connection:
                return self._rows.take_over(connection, self._executor_id)

        def end(name: str) -> None:
            with translated(), self._connected() as connection:
                self._rows.end(connection, name)

        for name in await asyncio.to_thread(look):
            await self._report(task_id_of(name), OtherVersion(task_id_of(name)))
            await asyncio.to_thread(end, name)

    async def _launch(self, workflow: Workflow) -> None:
        dbos = self._dbos = DBOS(config=self._config())

        async def run_task(task_id: str) -> None:
            await self._run(workflow, task_id)

        # No limit of DBOS's own: it would park the workflow without telling anybody.
        DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=None)(run_task)
        # A queue in memory, as DBOS's own are: one in the database would share its
        # worker count between processes and cost a read a poll.
        self._queue = dbos._registry._register_internal_queue(  # noqa: SLF001 - dbos is pinned
            _QUEUE, worker_concurrency=0, polling_interval_sec=self._poll_s
        )
        dbos._background_event_loop.set_main_loop()  # noqa: SLF001 - here steps are to run
        # Beside the loop: it writes, and who holds the write lock may need the loop to go on.
        launching = asyncio.create_task(asyncio.to_thread(DBOS.launch))
        with translated():
            try:
                await asyncio.shield(launching)
            except asyncio.CancelledError:
                await asyncio.wait({launching})
                raise
        spare = 0
        if self._gate is not None:
            claims = GatedClaims(self._gate, self, dbos, _QUEUE, workers=self._workers)
            claims.take_over()
            spare = SPARE
        self._take(self._workers + spare)

    def _take(self, most: int) -> None:
        """Let DBOS have that many of our workflows running; 0: it asks for none."""
        if self._queue is not None:
            self._queue._worker_concurrency = most  # noqa: SLF001 - in memory, read each poll

    def waiting(self, start: int, count: int) -> list[str]:
        """Read a page of the ids of workflows that wait, in the order they are taken."""
        with self._connected() as connection:
            return self._rows.waiting(connection, start, count)

    def _config(self) -> DBOSConfig:
        return {
            "name": _APPLICATION,
            "system_database_url": self._url,
            "system_database_engine": self._engine,
            "application_version": LOOP_PROTOCOL,
            "executor_id": self._executor_id,
            "serializer": DBOSPortableJSONSerializer(),
            "run_migrations": False,
            "enable_otlp": False,
            "log_level": "WARNING",
            "max_executor_threads": 32 + self._workers,
        }

    async def drain(self, limit_s: float) -> list[str]:
        """Take no more; let running steps end; returns what still runs, for ``stop``."""
        self._draining = True
        self._take(0)
        quiet(logging.ERROR)  # DBOS warns of each cancelled workflow
        if self._running and limit_s > 0:
            await asyncio.wait(set(self._running.values()), timeout=limit_s)
        return list(self._running)

    async def stop(self) -> None:
        """Take no more; leave running workflows to be recovered at the next start.

        Their running step is cancelled and not recorded. An orderly stop does not count
        towards ``MAX_RECOVERIES``.
        """
        if DbosEngine._started is not self:
            await self._close()
            return
        await self.drain(0)
        self._give_up_writing()
        running = set(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=STOP_TIMEOUT_S)
        # DBOS has made its pool the loop's default, and is about to close it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        quiet(logging.WARNING)
        DbosEngine._started = None
        try:
            await asyncio.to_thread(self._uncount, sorted(self._abandoned))
        finally:
            await self._close()

    def _give_up_writing(self) -> None:
        """Let no thread wait for a server that is away: the process could not end.

        What is not written is done again at the next start.
        """
        database = self._dbos._sys_db_field if self._dbos else None  # noqa: SLF001 - dbos is pinned
        if database is not None:
            database._retry_connection_errors = False  # noqa: SLF001

    def enqueue_in(
        self,
        connection: Any,
        task_id: str,
        *,
        priority: int,
        attempt: int = 1,
    ) -> None:
        """Enqueue inside the caller's own SQL transaction (sync SQLAlchemy connection).

        ``priority`` 0 is first. ``attempt``: the task's, as its row says. Nothing when
        that one waits in the queue already; an earlier one that does leaves it. Raises
        ``Conflict`` while one is running.
        """
        if self._client is None:
            raise RuntimeError("prepare() comes before enqueue_in()")
        if self._rows.make_room(connection, task_id, attempt):
            self._client.enqueue_in_transaction(
                connection,
                {
                    "workflow_name": _WORKFLOW,
                    "queue_name": _QUEUE,
                    "workflow_id": workflow_id(task_id, attempt),
                    "priority": priority + 1,
                },
                task_id,
            )

    async def running(self) -> list[str]:
        """Return the ids of the tasks that this process is executing now."""
        return self.executing()

    async def held_by_nobody(self, attempts: Mapping[str, int]) -> set[str]:
        """Return those of these tasks (with their attempt) whose workflow is in the queue."""
        if self._engine is None:  # stopped: nobody knows
            return set()

        def look() -> set[str]:
            names = [workflow_id(*one) for one in attempts.items()]
            with translated(), self._connected() as connection:
                return self._rows.enqueued(connection, names)

        return {task_id_of(name) for name in await asyncio.to_thread(look)}

    def executing(self) -> list[str]:
        """Return the same, from any thread."""
        return list(self._running)

    async def _run(self, workflow: Workflow, task_id: str) -> None:
        name = DBOS.workflow_id
        task = asyncio.current_task()
        if name is None or task is None:
            raise RuntimeError("not in a workflow")
        self._running[task_id] = task
        try:
            await self._attempt(workflow, name, task_id)
        except asyncio.CancelledError:
            self._abandoned.add(name)
            raise
        finally:
            del self._running[task_id]
            if self._gate is not None:
                self._gate.left(task_id)

    async def _attempt(self, workflow: Workflow, name: str, task_id: str) -> None:
        try:
            await self._begin(name)
            await workflow(task_id, _DbosSteps(attempt_of(name), self._stop_here))
        except Exception as error:  # the edge between the engine and any workflow
            await self._report(task_id, error)
            raise

    async def _begin(self, name: str) -> None:
        await self._stop_here()  # taken from the queue after drain() looked around
        begun = await asyncio.to_thread(self._begun, name)
        if begun > MAX_RECOVERIES + 1:
            raise RecoveryLimit(f"begun {begun} times without coming to an end")

    async def _stop_here(self) -> None:
        """End the workflow between two steps, as ``stop`` would within one."""
        if self._draining:
            raise asyncio.CancelledError

    async def _report(self, task_id: str, error: Exception) -> None:
        while True:
            try:
                return await self._on_failure(task_id, error)
            except Unavailable:
                await asyncio.sleep(_REPORT_AGAIN_S)

    def _begun(self, name: str) -> int:
        with self._connected() as connection:
            return self._rows.begun(connection, name)

    def _uncount(self, names: list[str]) -> None:
        if names:
            with translated(), self._connected() as connection:
                self._rows.uncount(connection, names)

    def _connected(self) -> Any:
        if self._engine is None:
            raise RuntimeError("the engine is closed")
        return self._engine.begin()

    def _new_engine(self) -> sa.Engine:
        if not self._url.startswith("sqlite"):
            return sa.create_engine(self._url, pool_pre_ping=True)
        engine = sa.create_engine(self._url)
        prepare_sqlite(engine, begin=False)
        return engine

    def _migrate(self) -> None:
        with translated():
            DBOS.migrate(self._url)

    async def _close(self) -> None:
        client, engine = self._client, self._engine
        self._client = self._engine = None
        if client is not None:
            client.destroy()
        if engine is not None:
            await asyncio.to_thread(engine.dispose)


class _DbosSteps:
    """``ports.task_engine.Steps``. Even the first result is decoded from its record.

    A dependency that does not answer is no result: the action runs again until it does.
    """

    def __init__(self, attempt: int, boundary: Callable[[], Awaitable[None]]) -> None:
        self.attempt = attempt
        self._boundary = boundary

    async def run(
        self, name: str, kind: type[T], action: Callable[[], Awaitable[T]]
    ) -> T:
        await self._boundary()
        cause: Exception | None = None

        async def call() -> dict[str, Any]:
            nonlocal cause
            try:
                record = encode({"value": await _until_available(name, action)})
            except Exception as error:  # noqa: BLE001 - recorded, so a replay fails alike
                cause = error
                record = encode({"error": f"{type(error).__name__}: {error}"})
            return msgspec.json.decode(record, type=dict[str, Any])

        record = await DBOS.run_step_async({"name": name}, call)
        if "error" in record:
            raise StepFailed(f"step {name}: {record['error']}") from cause
        return msgspec.convert(record["value"], kind, str_keys=True)


async def _until_available(name: str, action: Callable[[], Awaitable[T]]) -> T:
    """Run ``action`` until it does not raise ``Unavailable``; the engine's stop cancels."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await action()
        except Unavailable as error:
            _log.warning("step_waits", step=name, error=str(error), pause_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
