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
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.coordinator.budget import within_budget
from nestor.coordinator.service import Coordinator
from nestor.errors import Unavailable
from nestor.model.knowledge import ContextRequest, ContextResult
from nestor.model.routing import Deployment, ModelCall, Side
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

    async def record(self, call: ModelCall) -> None:
        if self.down:
            raise Unavailable("the database does not answer")
        await super().record(call)


class Knowledge(Aidb):
    """The real one, which a test can take down."""

    down = False

    async def get_context(self, request: ContextRequest) -> ContextResult:
        if self.down:
            raise Unavailable("the database does not answer")
        return await super().get_context(request)


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
            SqlKnowledgeStore(database), index, LearningClient(log, "aidb")
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
            )
            for side, model, rules in zip(Side, models, (local, remote), strict=True)
            if rules is not None
        ]
        ledger = Ledger(database)
        tasks = SqlTaskStore(database)
        coordinator = Coordinator(
            deployments=deployments,
            clients={d.name: OpenAIClient(d, session) for d in deployments},
            ledger=ledger,
            knowledge=aidb,
            extract=answer_by_extraction,
            learning=LearningClient(log, "coordinator"),
            routing_default=default,
            may_spend=within_budget(tasks, ledger),
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
