"""A Dispatcher and its Pool over real parts: clients, scripted models, journal, SQLite."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.anthropic.client import AnthropicClient
from nestor.backends.files.call_journal import FileCallJournal
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.openai.client import OpenAIClient
from nestor.backends.openai.resolver import model_session
from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.call_ledger import SqlCallLedger
from nestor.backends.sql.database import Database
from nestor.coordinator.asking import Say
from nestor.coordinator.budgets import Budgets
from nestor.coordinator.dialects.openai import OpenAI
from nestor.coordinator.dispatch import Answered, CallContext, Dispatcher
from nestor.coordinator.metering import Metering
from nestor.coordinator.pool import Pool
from nestor.coordinator.upstream import Upstream
from nestor.model.routing import Deployment, Dialect, ModelCall, Side
from nestor.ports.model_client import ModelClient, ModelReply
from nestor.resilience.quota import MovingQuota
from nestor.resilience.retry import Backoff
from nestor.telemetry.learning_client import LearningClient


class Clock:
    """Seconds that a test moves, and pauses do."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@dataclass
class Rig:
    dispatcher: Dispatcher
    pool: Pool
    models: dict[str, ScriptedModel]
    journal: FileCallJournal
    folder: Path
    clock: Clock
    quota: MovingQuota
    budgets: Budgets
    store: SqlBudgetStore
    client_of: Callable[[Deployment], ModelClient]
    context: CallContext = field(
        default_factory=lambda: CallContext(
            purpose="gateway", reason="a test", trace_id="0" * 32, request_bytes=300
        )
    )

    @property
    def order(self) -> Sequence[Upstream]:
        """As configured: nothing is drawn."""
        return self.pool.upstreams

    async def ask(self, text: str = "hello", **more: Any) -> Answered[ModelReply]:
        """Ask for a whole answer, and do not settle."""
        request = {"messages": [{"role": "user", "content": text}], **more}
        return await self.dispatcher.first(
            self.order, Say(OpenAI(), request), self.context
        )

    async def answer(self, text: str = "hello", **more: Any) -> ModelCall:
        """Ask and settle."""
        answered = await self.ask(text, **more)
        reply = answered.value
        return self.dispatcher.settle(answered, reply.usage, replayed=reply.replayed)

    def ended(self) -> list[ModelCall]:
        """Every call that ended, oldest first."""
        settled = self.journal.settled()
        return list(settled.calls) if settled else []

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Lines of the journal as they stand in the file: ``b`` begun, ``e`` ended."""
        found = []
        names = list(ModelCall.__struct_fields__)
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                what, *rest = json.loads(line)
                if what == kind:
                    found.append(dict(zip(names, rest[1], strict=True)))
        return found

    def everybody_left(self) -> bool:
        """Tell whether no call is counted as under way."""
        return all(upstream.in_flight == 0 for upstream in self.order)


@asynccontextmanager
async def rig(
    folder: Path,
    *scripts: list[Rule],
    each: Sequence[dict[str, Any]] = (),
    backoff: Backoff | None = None,
) -> AsyncIterator[Rig]:
    """Deployments ``a``, ``b``, … in order, one a script; ``each`` changes their fields."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(Database.open(f"sqlite:///{folder / 'nestor.db'}"))
        log = FileEventLog(folder / "telemetry")
        stack.callback(log.close)
        session = await enter(model_session())
        journal = FileCallJournal(folder / "journal")
        stack.callback(journal.close)
        models = {
            chr(ord("a") + at): await enter(ScriptedModel(rules))
            for at, rules in enumerate(scripts)
        }

        def client_of(deployment: Deployment) -> ModelClient:
            if deployment.dialect is Dialect.ANTHROPIC:
                return AnthropicClient(deployment, session)
            return OpenAIClient(deployment, session)

        pool = Pool(timer=clock, draw=lambda: 0.0)
        pool.load(
            [
                (one, client_of(one))
                for one in (
                    deployment(name, **{"base_url": model.base_url, **more})
                    for (name, model), more in zip(
                        models.items(), [*each, *[{}] * len(models)], strict=False
                    )
                )
            ]
        )
        stack.push_async_callback(pool.close)
        quota = MovingQuota(clock=clock)
        store = SqlBudgetStore(database)
        budgets = Budgets(store, journal.id)
        stack.push_async_callback(budgets.close)
        metering = Metering(
            SqlCallLedger(database), journal, LearningClient(log, "coordinator")
        )
        dispatcher = Dispatcher(
            metering,
            budgets=budgets,
            quota=quota,
            backoff=backoff or Backoff(draw=lambda: 0.5, sleep=clock.sleep),
            timer=clock,
        )
        stack.push_async_callback(dispatcher.close)
        yield Rig(
            dispatcher,
            pool,
            models,
            journal,
            folder / "journal",
            clock,
            quota,
            budgets,
            store,
            client_of,
        )


def deployment(name: str, **more: Any) -> Deployment:
    """2 USD in, 10 USD out a million tokens, unless told otherwise."""
    plain = Deployment(
        name=name,
        side=Side.LOCAL,
        model=f"{name}-model",
        base_url="http://127.0.0.1:9/v1",
        price_input=Decimal(2),
        price_output=Decimal(10),
        timeout_s=30,
    )
    return msgspec.structs.replace(plain, **more)
