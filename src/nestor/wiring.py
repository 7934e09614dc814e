"""Turn Settings into running parts. The only module that names backends."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import aiohttp
import msgspec

from nestor.aidb.extract import answer_by_extraction
from nestor.aidb.service import Aidb
from nestor.backends.agents import backends as agent_backends
from nestor.backends.dbos.engine import DbosEngine
from nestor.backends.files.data_folder import DataFolder
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.git.workspaces import GitWorkspaces
from nestor.backends.llama_cpp.client import LlamaCppClient
from nestor.backends.llama_cpp.server import LlamaCppServer, refuse_model_file
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.replay.cassette import Cassette, RecordingClient, ReplayClient
from nestor.backends.sandbox.bubblewrap import BubblewrapSandbox
from nestor.backends.sandbox.unisolated import NoSandbox
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.backends.sql.key_store import SqlKeyStore, hash_of
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.backends.sql.session_store import SqlSessionStore
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.coordinator.budget import within_budget
from nestor.coordinator.service import Coordinator
from nestor.errors import Misconfigured
from nestor.model.health import Dependency, HealthStatus
from nestor.model.network import password_in
from nestor.model.routing import Deployment, Side
from nestor.ports.call_ledger import CallLedger
from nestor.ports.event_log import EventLog
from nestor.ports.key_store import KeyStore
from nestor.ports.model_client import ModelClient
from nestor.ports.rate_limiter import RateLimiter
from nestor.ports.session_store import SessionStore
from nestor.ralph.environment import Environments
from nestor.ralph.loop import TaskLoop
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.parts import Parts
from nestor.ralph.recording import give_up
from nestor.ralph.sealing import Sealing
from nestor.ralph.service import Ralph
from nestor.ralph.verification import Verifier
from nestor.resilience.rate_limit import MovingWindow
from nestor.settings import Settings
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.redact import remember

PROXY_REQUESTS, PROXY_WINDOW_S = 60, 60
"""What the dashboard's proxy admits of one client."""
INSIDE_MODEL_URL = "http://127.0.0.1:8092/v1"
"""Where an agent finds its model, inside the sandbox."""


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
    coordinator: Coordinator
    ralph: Ralph
    ledger: CallLedger
    event_log: FileEventLog
    folder: DataFolder

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
    replayed, recorded = settings.replay_cassette, settings.record_cassette
    if replayed is not None and recorded is not None:
        raise Misconfigured("NESTOR_RECORD_CASSETTE: cannot record what is replayed")
    _refuse_cassette("NESTOR_REPLAY_CASSETTE", replayed)
    if recorded is not None and recorded.exists():
        _refuse_cassette("NESTOR_RECORD_CASSETTE", recorded)
    if settings.starts_llama_cpp and replayed is None:
        refuse_model_file(settings.local_model_file)
    _proxy_limiter(settings)


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
        aidb = await _aidb(stack, settings, database, event_log)
        coordinator, ledger = await _coordinator(
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
            coordinator=coordinator,
            ralph=ralph,
            ledger=ledger,
            event_log=event_log,
            folder=folder,
        )


def _proxy_limiter(settings: Settings) -> RateLimiter:
    """Nothing is asked of Redis yet. Raises ``Misconfigured``."""
    local = MovingWindow(PROXY_REQUESTS, PROXY_WINDOW_S)
    if settings.redis_url is None:
        return local
    try:
        from nestor.backends.redis.rate_limiter import RedisWindow  # noqa: PLC0415 - an extra

        url = settings.redis_url.get_secret_value()
        return RedisWindow(url, PROXY_REQUESTS, PROXY_WINDOW_S, local=local)
    except ImportError as error:
        why = f"needs the package {error.name}: pip install 'nestor[redis]'"
        raise Misconfigured(f"NESTOR_REDIS_URL: {why}") from error


def _secrets(settings: Settings) -> list[str]:
    """Secrets of unknown shape, which redaction can only know by heart."""
    given = (settings.remote_api_key, settings.redis_url)
    found = [secret.get_secret_value() for secret in given if secret]
    return found + [word for url in found if (word := password_in(url))]


async def _aidb(
    stack: AsyncExitStack, settings: Settings, database: Database, event_log: EventLog
) -> Aidb:
    index = await QdrantEdgeIndex.open(settings.home / "qdrant")
    stack.push_async_callback(index.close)
    aidb = Aidb(SqlKnowledgeStore(database), index, LearningClient(event_log, "aidb"))
    await aidb.start()
    stack.push_async_callback(aidb.stop)
    return aidb


async def _coordinator(
    stack: AsyncExitStack,
    settings: Settings,
    database: Database,
    event_log: EventLog,
    aidb: Aidb,
) -> tuple[Coordinator, CallLedger]:
    session = await stack.enter_async_context(model_session())
    models = await _models(stack, settings, session)
    ledger = SqlCallLedger(database)
    coordinator = Coordinator(
        deployments=[deployment for deployment, _ in models.clients],
        clients={deployment.name: client for deployment, client in models.clients},
        ledger=ledger,
        knowledge=aidb,
        extract=answer_by_extraction,
        learning=LearningClient(event_log, "coordinator"),
        routing_default=Side(settings.routing_default),
        also_depends_on=models.observed,
        may_spend=within_budget(SqlTaskStore(database), ledger),
    )
    await coordinator.start()
    stack.push_async_callback(coordinator.stop)
    return coordinator, ledger


@dataclass(frozen=True, kw_only=True)
class _Models:
    clients: list[tuple[Deployment, ModelClient]]
    observed: list[Callable[[], Dependency]]


async def _models(
    stack: AsyncExitStack, settings: Settings, session: aiohttp.ClientSession
) -> _Models:
    """Make a client for each configured side: a cassette, llama.cpp, or an endpoint."""
    cassette = None
    if settings.replay_cassette:
        cassette = Cassette.load(settings.replay_cassette)
    clients: list[tuple[Deployment, ModelClient]] = []
    observed: list[Callable[[], Dependency]] = []
    for deployment in deployments(settings):
        client: ModelClient
        if cassette is not None:
            client = ReplayClient(cassette, deployment)
        elif settings.starts_llama_cpp and deployment.side is Side.LOCAL:
            server = LlamaCppServer(
                settings.local_model_file, run_dir=settings.home / "run" / "llama.cpp"
            )
            # Loading may take minutes; meanwhile the layer says so and the rest serves.
            server.begin()
            stack.push_async_callback(server.stop)
            observed.append(server.dependency)
            client = LlamaCppClient(server, deployment, session)
        else:
            client = OpenAIClient(deployment, session)
        if settings.record_cassette:
            client = RecordingClient(client, settings.record_cassette)
        clients.append((deployment, client))
    return _Models(clients=clients, observed=observed)


def deployments(settings: Settings) -> list[Deployment]:
    """Read the configured model endpoints, at most one a side."""
    found = []
    replayed = settings.replay_cassette is not None
    if settings.local_model:
        found.append(
            Deployment(
                name="local",
                side=Side.LOCAL,
                model=settings.local_model_file.stem
                if settings.starts_llama_cpp
                else settings.local_model,
                base_url=settings.local_base_url or "",
                # Who runs a model on a machine of his own gets no bill for its tokens.
                price_input=Decimal(0),
                price_output=Decimal(0),
                timeout_s=settings.model_timeout_s,
                replayed=replayed,
            )
        )
    if settings.remote_model:
        key = settings.remote_api_key
        found.append(
            Deployment(
                name="remote",
                side=Side.REMOTE,
                model=settings.remote_model,
                base_url=settings.remote_base_url or "",
                api_key=key.get_secret_value() if key else None,
                price_input=settings.remote_price_input,
                price_output=settings.remote_price_output,
                timeout_s=settings.model_timeout_s,
                replayed=replayed,
            )
        )
    return found


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
    isolation = BubblewrapSandbox if settings.sandbox == "bubblewrap" else NoSandbox
    sandbox = isolation(coordinator_url=coordinator_url, home=settings.home)
    workspaces = GitWorkspaces(settings.home)
    learning = LearningClient(event_log, "ralph")

    async def on_failure(task_id: str, error: Exception) -> None:
        await give_up(parts, task_id, error)

    engine = DbosEngine(
        settings.database,
        executor_id=folder.executor_id(),
        workers=settings.workers,
        on_failure=on_failure,
    )
    await engine.prepare()

    def enqueue(connection: object, task_id: str, priority: int) -> None:
        engine.enqueue_in(connection, task_id, priority=priority)

    store = SqlTaskStore(database, enqueue)
    relay = OutboxRelay(store, event_log)
    backends = agent_backends()
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
        model_base_url=INSIDE_MODEL_URL,
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
        ),
    )
    stack.push_async_callback(ralph.stop)
    return ralph
