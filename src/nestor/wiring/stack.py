"""Open every part that the settings name, and close them all on the way out."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from nestor.aidb.service import Aidb
from nestor.aidb.spool import Spool
from nestor.backends.agents import backends as agent_backends
from nestor.backends.dbos.engine import DbosEngine
from nestor.backends.files.data_folder import DataFolder
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.git.workspaces import GitWorkspaces
from nestor.backends.llama_cpp.server import refuse_model_file
from nestor.backends.replay.cassette import Cassette
from nestor.backends.sandbox.choice import sandbox_of
from nestor.backends.sql.audit_log import SqlAuditLog
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.database import Database
from nestor.backends.sql.key_store import SqlKeyStore, hash_of
from nestor.backends.sql.session_store import SqlSessionStore
from nestor.backends.sql.task_queue import SqlTaskQueue
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.coordinator.service import Coordinator
from nestor.errors import Misconfigured
from nestor.model.backend_table import by_name, refuse_unknown
from nestor.model.health import Dependency, HealthStatus
from nestor.model.network import password_in
from nestor.model.routing import Kind
from nestor.ports.audit_log import AuditLog
from nestor.ports.budget_store import BudgetStore
from nestor.ports.call_ledger import CallLedger
from nestor.ports.event_log import EventLog
from nestor.ports.key_store import KeyStore
from nestor.ports.rate_limiter import RateLimiter
from nestor.ports.session_store import SessionStore
from nestor.ports.task_queue import Need
from nestor.ralph.environment import Environments
from nestor.ralph.gate import Gate
from nestor.ralph.loop import TaskLoop
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.parts import Parts
from nestor.ralph.queue import DependencyQueue
from nestor.ralph.recording import give_up
from nestor.ralph.sealing import Sealing
from nestor.ralph.service import Ralph
from nestor.ralph.verification import Verifier
from nestor.ralph.waiting import Waiting
from nestor.resilience import memory
from nestor.resilience.rate_limit import MovingWindow
from nestor.settings import FILE, Settings
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.logs import get_logger
from nestor.telemetry.redact import remember
from nestor.wiring.knowledge import aidb_of, refuse_knowledge
from nestor.wiring.models import Models, coordinator_of

PROXY_REQUESTS, PROXY_WINDOW_S = 60, 60
"""What the dashboard's proxy admits of one client."""
INSIDE_MODEL_URL = "http://127.0.0.1:8092/v1"
"""Where an agent finds its model, inside the sandbox."""
GUARDIAN = "guardian.py"
"""On the command line of every process that runs agents and checks."""
_log = get_logger("nestor")


@dataclass(frozen=True, kw_only=True)
class Nestor:
    """The running parts, as the faces see them."""

    settings: Settings
    api_key: str
    service_key: str
    keys: KeyStore
    sessions: SessionStore
    proxy_limiter: RateLimiter
    aidb: Aidb
    spool: Spool
    coordinator: Coordinator
    ralph: Ralph
    audit: AuditLog
    ledger: CallLedger
    budgets: BudgetStore
    event_log: FileEventLog
    folder: DataFolder
    models: Models

    async def reload(self) -> None:
        """Take over the deployments of ``nestor.toml`` as it stands now; streams go on.

        What cannot be taken over is logged and shown in health; the old ones stay.
        """
        try:
            found = await asyncio.to_thread(Settings.load)
            self.models.load(found.deployments)
        except Misconfigured as error:
            _log.error("configuration_not_taken_over", error=str(error))
            self.models.pool.refuse(str(error).removeprefix(f"{FILE}: "))
            return
        names = [upstream.deployment.name for upstream in self.models.pool.upstreams]
        _log.info("deployments_taken_over", deployments=names)
        mine, theirs = self.settings, found
        changed = [
            n for n in Settings.model_fields if getattr(mine, n) != getattr(theirs, n)
        ]
        if changed:
            _log.warning("settings_need_a_restart", settings=changed)

    async def dependencies(self) -> list[Dependency]:
        """Look at every layer, for the one page that shows all."""
        layers = {
            "ralph": self.ralph.dependencies,
            "aidb": self.aidb.dependencies,
            "coordinator": self.coordinator.dependencies,
            "learning": self.telemetry_health,
            "dashboard": self.proxy_limiter.dependencies,
        }
        return [
            msgspec.structs.replace(part, name=f"{layer}: {part.name}", required=False)
            for layer, look in layers.items()
            for part in await look()
        ]

    async def telemetry_health(self) -> list[Dependency]:
        """Look at the event log."""
        waiting = self.event_log.buffered
        written = HealthStatus.HEALTHY if not waiting else HealthStatus.DEGRADED
        return [
            Dependency(
                name="event log",
                status=written,
                message=f"{waiting} events wait for the disk" if waiting else "written",
                last_observed=datetime.now(UTC),
            )
        ]


def refuse_if_running(settings: Settings) -> None:
    """Raise ``Misconfigured`` when another process runs on the same data folder."""
    DataFolder.refuse_if_held(settings.home)


def refuse_what_cannot_run(settings: Settings) -> None:
    """Raise ``Misconfigured`` for settings that no start could follow; makes nothing."""
    known = agent_backends()
    if settings.default_backend not in known:
        wrong = (
            f"{settings.default_backend!r} is not one of: {', '.join(sorted(known))}"
        )
        raise Misconfigured(f"NESTOR_DEFAULT_BACKEND: {wrong}")
    refuse_limits_of_nobody(settings)
    replayed, recorded = settings.replay_cassette, settings.record_cassette
    if replayed is not None and recorded is not None:
        raise Misconfigured("NESTOR_RECORD_CASSETTE: cannot record what is replayed")
    _refuse_cassette("NESTOR_REPLAY_CASSETTE", replayed)
    if recorded is not None and recorded.exists():
        _refuse_cassette("NESTOR_RECORD_CASSETTE", recorded)
    if settings.starts_llama_cpp and replayed is None:
        refuse_model_file(settings.local_model_file)
    _refuse_judge(settings)
    _proxy_limiter(settings)
    refuse_knowledge(settings)


def _refuse_judge(settings: Settings) -> None:
    """Raise ``Misconfigured`` for a judge that no deployment is."""
    if settings.judge_model is None:
        return
    made = {
        name
        for name, kind in settings.made_deployments.items()
        if kind is Kind.CHAT
        for name in (name, getattr(settings, f"{name}_model"))
    }
    chats = [one for one in settings.deployments if one.kind is Kind.CHAT]
    made |= {name for one in chats for name in (one.name, one.model, one.side.value)}
    known = sorted({"auto", *made}) if made else []
    if settings.judge_model not in known:
        listed = ", ".join(known) or "none, for no model is configured"
        wrong = f"{settings.judge_model!r} is not one of: {listed}"
        raise Misconfigured(f"NESTOR_JUDGE_MODEL: {wrong}")


def refuse_limits_of_nobody(settings: Settings) -> None:
    """Raise ``Misconfigured`` for a ``[[backend]]`` table of a backend that there is not."""
    try:
        refuse_unknown(settings.backends, agent_backends())
    except ValueError as error:
        raise Misconfigured(f"{FILE}: {error}") from None


def _refuse_cassette(name: str, path: Path | None) -> None:
    try:
        if path is not None:
            Cassette.load(path)
    except Misconfigured as error:
        raise Misconfigured(f"{name}: {error}") from error


@asynccontextmanager
async def running(settings: Settings, *, coordinator_url: str) -> AsyncIterator[Nestor]:
    """Open every part that the settings name; close them all on the way out.

    Tasks are not taken yet: that begins with ``nestor.ralph.start()``, once the
    Coordinator can be reached at ``coordinator_url``. Raises ``Misconfigured`` before
    anything is made.
    """
    refuse_what_cannot_run(settings)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(DataFolder.locked(settings.home))
        configured = settings.api_key
        api_key = configured.get_secret_value() if configured else folder.admin_key()
        service_key = secrets.token_urlsafe(32)
        remember(api_key, service_key, *_secrets(settings))
        event_log = FileEventLog(
            settings.telemetry_dir, keep_prompts=settings.keep_prompts
        )
        stack.callback(event_log.close)
        database = await stack.enter_async_context(Database.open(settings.database))
        aidb, spool = await aidb_of(stack, settings, database, event_log)
        coordinator, ledger, models = await coordinator_of(
            stack, settings, database, event_log, aidb
        )
        keys = SqlKeyStore(database)
        stack.push_async_callback(keys.close)
        ralph = await _ralph(
            stack,
            settings,
            folder=folder,
            database=database,
            event_log=event_log,
            aidb=aidb,
            coordinator=coordinator,
            keys=keys,
            coordinator_url=coordinator_url,
        )
        limiter = _proxy_limiter(settings)
        stack.push_async_callback(limiter.close)
        yield Nestor(
            settings=settings,
            api_key=api_key,
            service_key=service_key,
            keys=keys,
            sessions=SqlSessionStore(database, made_under=hash_of(api_key)),
            proxy_limiter=limiter,
            aidb=aidb,
            spool=spool,
            coordinator=coordinator,
            ralph=ralph,
            audit=SqlAuditLog(database),
            ledger=ledger,
            budgets=SqlBudgetStore(database),
            event_log=event_log,
            folder=folder,
            models=models,
        )


def _proxy_limiter(settings: Settings) -> RateLimiter:
    """Nothing is asked of Redis yet. Raises ``Misconfigured``."""
    local = MovingWindow(PROXY_REQUESTS, PROXY_WINDOW_S)
    if settings.redis_url is None:
        return local
    try:
        from nestor.backends.redis.connection import RedisConnection  # noqa: PLC0415 - an extra
        from nestor.backends.redis.rate_limiter import RedisWindow  # noqa: PLC0415

        url = settings.redis_url.get_secret_value()
        connection = RedisConnection(url, user="rate limits")
        return RedisWindow(connection, PROXY_REQUESTS, PROXY_WINDOW_S, local=local)
    except ImportError as error:
        why = f"needs the package {error.name}: pip install 'nestor[redis]'"
        raise Misconfigured(f"NESTOR_REDIS_URL: {why}") from error


def _secrets(settings: Settings) -> list[str]:
    """Secrets of unknown shape, which redaction can only know by heart."""
    given = (
        settings.embeddings_api_key,
        settings.qdrant_api_key,
        settings.remote_api_key,
        settings.redis_url,
    )
    found = [secret.get_secret_value() for secret in given if secret]
    if password_in(settings.database) is not None:
        found.append(settings.database)
    return found + [word for url in found if (word := password_in(url))]


async def _ralph(
    stack: AsyncExitStack,
    settings: Settings,
    *,
    folder: DataFolder,
    database: Database,
    event_log: EventLog,
    aidb: Aidb,
    coordinator: Coordinator,
    keys: KeyStore,
    coordinator_url: str,
) -> Ralph:
    sandbox = await asyncio.to_thread(
        sandbox_of,
        settings.sandbox,
        coordinator_url=coordinator_url,
        home=settings.home,
        private_hosts=settings.sandbox_private_hosts,
    )
    workspaces = GitWorkspaces(settings.home)
    learning = LearningClient(event_log, "ralph")

    async def on_failure(task_id: str, error: Exception) -> None:
        await give_up(parts, task_id, error)

    async def needs(task_ids: Sequence[str]) -> list[Need]:
        return await queue.needs(task_ids)

    async def to_end() -> list[Need]:
        return await queue.to_end()

    gate = Gate(
        needs,
        by_name(settings.backends),
        memory=memory.look,
        used=lambda: memory.used_below(os.getpid(), GUARDIAN),
        timer=time.monotonic,
        to_end=to_end,
    )
    engine = DbosEngine(
        settings.database,
        executor_id=folder.executor_id(),
        workers=settings.workers,
        on_failure=on_failure,
        gate=gate,
    )
    await engine.prepare()

    def enqueue(connection: object, task_id: str, priority: int, attempt: int) -> None:
        engine.enqueue_in(connection, task_id, priority=priority, attempt=attempt)

    queue = SqlTaskQueue(database, enqueue)

    def ended() -> None:
        dependencies.nudge()

    store = SqlTaskStore(database, enqueue, ended=ended)
    relay = OutboxRelay(store, event_log)
    dependencies = DependencyQueue(
        queue, relay, learning, clock=lambda: datetime.now(UTC)
    )
    backends = agent_backends(settings.agents_folder)
    parts = Parts(
        store=store,
        workspaces=workspaces,
        sandbox=sandbox,
        environments=Environments(settings.home, workspaces, sandbox),
        verifier=Verifier(workspaces, sandbox),
        router=coordinator,
        knowledge=aidb,
        keys=keys,
        backends=backends,
        learning=learning,
        relay=relay,
        agent_timeout_s=settings.agent_timeout_s,
        approval_wait_s=settings.approval_wait_s,
        model_base_url=INSIDE_MODEL_URL,
        judge_model=settings.judge_model,
        clock=lambda: datetime.now(UTC),
    )
    ralph = Ralph(
        store=store,
        engine=engine,
        loop=TaskLoop(parts),
        workspaces=workspaces,
        sandbox=sandbox,
        relay=relay,
        learning=learning,
        sealing=Sealing(
            backends=backends,
            default_backend=settings.default_backend,
            max_iterations=settings.max_iterations,
            refuses_mount=sandbox.refuses_mount,
            workspace_roots=tuple(settings.workspace_roots),
            never_fits=gate.never_fits,
        ),
        budget_changed=coordinator.budget_changed,
        waiting=Waiting(dependencies=dependencies, gate=gate, workers=settings.workers),
    )
    stack.push_async_callback(ralph.stop)
    return ralph
