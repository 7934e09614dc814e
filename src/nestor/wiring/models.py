"""The Coordinator's parts: model clients, the meter, what processes share."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal

import aiohttp
import msgspec

from nestor.aidb.extract import answer_by_extraction
from nestor.aidb.service import Aidb
from nestor.backends.anthropic.client import AnthropicClient
from nestor.backends.files.call_journal import FileCallJournal
from nestor.backends.llama_cpp.client import LlamaCppClient
from nestor.backends.llama_cpp.server import CONTEXT_TOKENS, LlamaCppServer
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.backends.replay.cassette import (
    Cassette,
    Recording,
    RecordingClient,
    ReplayClient,
)
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.backends.sql.interaction_store import SqlInteractionStore
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.coordinator.budgets import Budgets
from nestor.coordinator.metering import Metering
from nestor.coordinator.pool import Pool
from nestor.coordinator.service import Coordinator
from nestor.errors import Misconfigured
from nestor.model.deployment_table import refuse_unrelated
from nestor.model.health import Dependency
from nestor.model.routing import Deployment, Dialect, Kind, Side
from nestor.model.task import Budget
from nestor.ports.answer_cache import AnswerCache
from nestor.ports.call_ledger import CallLedger
from nestor.ports.event_log import EventLog
from nestor.ports.model_client import ModelClient
from nestor.ports.quota import Quota
from nestor.resilience.answer_cache import MemoryAnswers
from nestor.resilience.quota import MovingQuota
from nestor.settings import FILE, Settings
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.redact import remember


async def coordinator_of(
    stack: AsyncExitStack,
    settings: Settings,
    database: Database,
    event_log: EventLog,
    aidb: Aidb,
) -> tuple[Coordinator, CallLedger, "Models"]:
    """Open the Coordinator over the deployments of the settings."""
    session = await stack.enter_async_context(model_session())
    models = await _models(stack, settings, session)
    ledger = SqlCallLedger(database)
    tasks = SqlTaskStore(database)
    learning = LearningClient(event_log, "coordinator")
    journal = FileCallJournal(settings.home / "calls")
    quota, answers = _shared(settings)

    async def budget_of(task_id: str) -> Budget:
        return (await tasks.get(task_id)).budget

    coordinator = Coordinator(
        pool=models.pool,
        metering=Metering(ledger, journal, learning),
        budgets=Budgets(SqlBudgetStore(database), journal.id),
        quota=quota,
        answers=answers,
        ledger=ledger,
        interactions=SqlInteractionStore(database),
        budget_of=budget_of,
        knowledge=aidb,
        extract=answer_by_extraction,
        learning=learning,
        routing_default=Side(settings.routing_default),
        keep_prompts=settings.keep_prompts,
        also_depends_on=models.observed,
    )
    await coordinator.start()
    stack.push_async_callback(coordinator.stop)
    return coordinator, ledger, models


class Models:
    """The pool, and what makes a client for each deployment in it."""

    def __init__(
        self, settings: Settings, client_of: Callable[[Deployment], ModelClient]
    ) -> None:
        self.pool = Pool()
        self.observed: list[Callable[[], Dependency]] = []
        self._settings = settings
        self._client_of = client_of

    def load(self, tables: Sequence[Deployment]) -> None:
        """Take these deployments beside those of the settings. Raises ``Misconfigured``."""
        wanted = deployments(self._settings, tables)
        held = {
            upstream.deployment: upstream.client for upstream in self.pool.upstreams
        }
        self.pool.load([(one, held.get(one) or self._client_of(one)) for one in wanted])
        remember(*(one.api_key for one in wanted if one.api_key))


async def _models(
    stack: AsyncExitStack, settings: Settings, session: aiohttp.ClientSession
) -> Models:
    """Make a client for each deployment: a cassette, llama.cpp, or an endpoint."""
    replayed, recorded = settings.replay_cassette, settings.record_cassette
    cassette = Cassette.load(replayed) if replayed else None
    recording = Recording()

    def client_of(deployment: Deployment) -> ModelClient:
        client: ModelClient
        if cassette is not None:
            client = ReplayClient(cassette, deployment)
        elif settings.starts_llama_cpp and deployment.name == Side.LOCAL:
            server = LlamaCppServer(
                settings.local_model_file, run_dir=settings.home / "run" / "llama.cpp"
            )
            # Loading may take minutes; meanwhile the layer says so and the rest serves.
            server.begin()
            stack.push_async_callback(server.stop)
            models.observed.append(server.dependency)
            client = LlamaCppClient(server, deployment, session)
        elif deployment.dialect is Dialect.ANTHROPIC:
            client = AnthropicClient(deployment, session)
        else:
            client = OpenAIClient(deployment, session)
        if recorded is None:
            return client
        return RecordingClient(client, recorded, recording=recording)

    models = Models(settings, client_of)
    if recorded is not None:
        models.observed.append(recording.dependency)
    models.load(settings.deployments)
    return models


def deployments(settings: Settings, tables: Sequence[Deployment]) -> list[Deployment]:
    """Return the endpoints that LOCAL_…, REMOTE_… and EMBEDDINGS_MODEL make, and ``tables``.

    Raises ``Misconfigured`` where names or fallbacks of those do not fit the others.
    """
    try:
        refuse_unrelated(tables, settings.made_deployments)
    except ValueError as error:
        raise Misconfigured(f"{FILE}: {error}") from None
    found = []
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
                context_window=CONTEXT_TOKENS if settings.starts_llama_cpp else None,
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
                dialect=Dialect(settings.remote_dialect),
                api_key=key.get_secret_value() if key else None,
                price_input=settings.remote_price_input,
                price_output=settings.remote_price_output,
                price_cached=settings.remote_price_cached,
                timeout_s=settings.model_timeout_s,
            )
        )
    if settings.embeddings_model and not settings.embeds_in_process:
        key = settings.embeddings_api_key
        # Who is given a key counts what is asked: what that costs is not known here.
        price = None if key else Decimal(0)
        found.append(
            Deployment(
                name="embeddings",
                side=Side.LOCAL,
                kind=Kind.EMBEDDINGS,
                model=settings.embeddings_model,
                base_url=settings.embeddings_base_url or "",
                api_key=key.get_secret_value() if key else None,
                price_input=price,
                price_output=price,
                timeout_s=settings.model_timeout_s,
            )
        )
    replayed = settings.replay_cassette is not None
    return [
        msgspec.structs.replace(one, replayed=replayed) for one in (*found, *tables)
    ]


def _shared(settings: Settings) -> tuple[Quota, AnswerCache]:
    """What several processes share when there is a Redis; asks nothing of it yet."""
    quota, answers = MovingQuota(), MemoryAnswers()
    if settings.redis_url is None:
        return quota, answers
    from nestor.backends.redis.answer_cache import RedisAnswers  # noqa: PLC0415 - an extra
    from nestor.backends.redis.connection import RedisConnection  # noqa: PLC0415
    from nestor.backends.redis.quota import RedisQuota  # noqa: PLC0415

    url = settings.redis_url.get_secret_value()
    return (
        RedisQuota(RedisConnection(url, user="quotas"), local=quota),
        RedisAnswers(RedisConnection(url, user="answers"), local=answers),
    )
