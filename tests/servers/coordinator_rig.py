"""A Coordinator over real parts: SQLite, the event log, the knowledge base, scripted models."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.aidb.extract import answer_by_extraction
from nestor.aidb.service import Aidb
from nestor.backends.documents.children import DocumentChildren
from nestor.backends.files.call_journal import FileCallJournal
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.backends.sql.interaction_store import SqlInteractionStore
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.coordinator.budgets import Budgets
from nestor.coordinator.gateway import Whole
from nestor.coordinator.limits import Caller
from nestor.coordinator.metering import Metering
from nestor.coordinator.pool import Pool
from nestor.coordinator.service import Coordinator
from nestor.errors import Unavailable
from nestor.model.knowledge import ContextRequest, ContextResult
from nestor.model.routing import CacheScope, Deployment, Dialect, ModelCall, Side
from nestor.model.task import Budget
from nestor.ports.call_journal import Settled
from nestor.resilience.answer_cache import MemoryAnswers
from nestor.resilience.quota import MovingQuota
from nestor.telemetry.learning_client import LearningClient


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ledger(SqlCallLedger):
    """The real one, which a test can take down."""

    down = False

    async def fold(self, settled: Settled) -> int:
        if self.down:
            raise Unavailable("the database does not answer")
        return await super().fold(settled)


class Knowledge(Aidb):
    """The real one, which a test can take down."""

    down = False

    async def get_context(self, request: ContextRequest) -> ContextResult:
        if self.down:
            raise Unavailable("the database does not answer")
        return await super().get_context(request)


class Answer:
    """What the gateway said: ``body`` of a whole answer, or events to iterate."""

    def __init__(self, done: Any) -> None:
        self.done = done
        self.streamed = not isinstance(done, Whole)
        self.headers = {name.decode(): value.decode() for name, value in done.headers}
        self.body: dict[str, Any] = {} if self.streamed else json.loads(done.body)

    def __aiter__(self) -> AsyncIterator[bytes]:
        pieces: AsyncIterator[bytes] = self.done.__aiter__()
        return pieces

    async def aclose(self) -> None:
        await self.done.aclose()


@dataclass
class Rig:
    coordinator: Coordinator
    ledger: Ledger
    aidb: Knowledge
    database: Database
    log: FileEventLog
    local: ScriptedModel
    remote: ScriptedModel
    clock: Clock
    tasks: SqlTaskStore

    async def chat(
        self,
        request: dict[str, Any],
        *,
        task_id: str | None = None,
        iteration: int | None = None,
        dialect: Dialect = Dialect.OPENAI,
        caller: Caller | None = None,
    ) -> Answer:
        """Ask through the gateway."""
        who = caller or Caller(key_id="k1", task_id=task_id, iteration=iteration)
        size = len(json.dumps(request))
        return Answer(
            await self.coordinator.gateway.ask(
                dialect, request, caller=who, request_bytes=size
            )
        )

    async def calls(self, task_id: str = "t1") -> list[ModelCall]:
        """All calls of a task that have ended."""
        await self.coordinator.metering.fold_now()
        return await self.ledger.calls(task_id)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one type, as they stand in the file."""
        lines = self.log.path.read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [event for event in found if event["event_type"] == kind]


@asynccontextmanager
async def rig(
    folder: Path,
    *,
    local: list[Rule] | None = None,
    remote: list[Rule] | None = None,
    default: Side = Side.LOCAL,
    priced: bool = True,
    timeout_s: float = 5,
    cache: CacheScope = CacheScope.OFF,
) -> AsyncIterator[Rig]:
    """Serve; a side whose rules are None is not configured."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(Database.open(f"sqlite:///{folder / 'nestor.db'}"))
        log = FileEventLog(folder / "telemetry")
        stack.callback(log.close)
        index = await enter(await QdrantEdgeIndex.open(folder / "qdrant"))
        aidb = Knowledge(
            SqlKnowledgeStore(database),
            index,
            LearningClient(log, "aidb"),
            reader=await enter(DocumentChildren(most=1)),
            canary_s=0,
        )
        await aidb.start()
        stack.push_async_callback(aidb.stop)
        session = await enter(aiohttp.ClientSession())
        models = [await enter(ScriptedModel(rules or [])) for rules in (local, remote)]
        deployments = [
            Deployment(
                name=side.value,
                side=side,
                model=f"{side}-model",
                base_url=model.base_url,
                price_input=Decimal(2) if priced else None,
                price_output=Decimal(10) if priced else None,
                timeout_s=timeout_s,
                cache=cache,
            )
            for side, model, rules in zip(Side, models, (local, remote), strict=True)
            if rules is not None
        ]
        ledger = Ledger(database)
        tasks = SqlTaskStore(database)
        learning = LearningClient(log, "coordinator")
        journal = FileCallJournal(folder / "calls")
        pool = Pool(timer=clock)
        pool.load([(d, OpenAIClient(d, session)) for d in deployments])

        async def budget_of(task_id: str) -> Budget:
            return (await tasks.get(task_id)).budget

        coordinator = Coordinator(
            pool=pool,
            metering=Metering(ledger, journal, learning),
            budgets=Budgets(SqlBudgetStore(database), journal.id),
            quota=MovingQuota(),
            answers=MemoryAnswers(),
            ledger=ledger,
            interactions=SqlInteractionStore(database),
            budget_of=budget_of,
            knowledge=aidb,
            extract=answer_by_extraction,
            learning=learning,
            routing_default=default,
            timer=clock,
        )
        await coordinator.start()
        stack.push_async_callback(coordinator.stop)
        yield Rig(
            coordinator,
            ledger,
            aidb,
            database,
            log,
            models[0],
            models[1],
            clock,
            tasks,
        )
