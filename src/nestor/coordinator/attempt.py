"""A request on its way through upstreams, and each attempt to have one answer it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from nestor.coordinator.budgets import Reservation
from nestor.coordinator.failures import Failures
from nestor.coordinator.upstream import Upstream
from nestor.errors import InvalidInput
from nestor.model.routing import Dialect, ModelCall
from nestor.ports.budget_store import Account
from nestor.ports.model_client import ModelClient
from nestor.resilience.circuit_breaker import Permit

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Question(Protocol[T_co]):
    """What is asked, in the words of whom it is asked."""

    def prepare(self, dialect: Dialect) -> dict[str, Any]:
        """Return the body of a request. ``InvalidInput``: it cannot be said so."""
        ...

    async def ask(self, client: ModelClient, body: dict[str, Any]) -> T_co:
        """Ask. The value is there once nothing can fail without the caller seeing it."""
        ...


@dataclass(slots=True, kw_only=True)
class CallContext:
    """On whose behalf a model is asked."""

    purpose: str
    reason: str
    trace_id: str
    dialect: Dialect = Dialect.OPENAI
    """The caller's."""
    task_id: str | None = None
    iteration: int | None = None
    key_id: str | None = None
    accounts: Sequence[Account] = ()
    """Who pays: those with limits."""
    request_bytes: int = 0
    max_tokens: int | None = None
    answers: int = 1
    """As many as are asked for, each of ``max_tokens``."""
    context_ids: tuple[str, ...] = ()
    may_be_billed: bool = False
    """An attempt failed of which nobody knows whether it costs anything."""


@dataclass(slots=True)
class Attempt:
    """One call of one upstream, and what is held for it."""

    call: ModelCall
    """As it began."""
    upstream: Upstream
    permit: Permit
    began: float
    reservation: Reservation
    tokens: int
    """Taken of the deployment's ``tpm``."""


@dataclass(slots=True, kw_only=True)
class Answered(Generic[T]):
    """The first upstream that answered, and what is needed to settle the call later."""

    value: T
    upstream: Upstream
    permit: Permit
    interaction_id: str
    at: datetime
    began: float
    """Seconds of the timer."""
    waited_s: float
    """For upstreams: those that failed before and pauses included."""
    fallback_from: str | None
    context: CallContext
    slow: bool
    attempt: "Attempt"
    call: ModelCall | None = None
    """Once it is settled."""


@dataclass(slots=True)
class Run(Generic[T]):
    """One request, on its way through the upstreams."""

    question: Question[T]
    context: CallContext
    identity: str
    began: float
    failures: Failures = field(default_factory=Failures)
    bodies: dict[Dialect, dict[str, Any] | InvalidInput] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)
    """When each was asked first."""
    retries: int = 0
    again: dict[str, int] = field(default_factory=dict)
    """How often each was asked again."""
    waited_s: float = 0.0
    ended: ModelCall | None = None
    """The last attempt failed; whether another follows is not known yet."""

    def prepared(self, dialect: Dialect) -> dict[str, Any] | InvalidInput:
        """Return the request as that dialect says it, or why it cannot."""
        body = self.bodies.get(dialect)
        if body is None:
            try:
                body = self.question.prepare(dialect)
            except InvalidInput as error:
                body = error
            self.bodies[dialect] = body
        return body

    def worth_asking_again(self, order: Sequence[Upstream]) -> list[Upstream]:
        """Return those whose failure may pass, the least asked again first."""
        found = [one for one in order if self.failures.may_pass(one)]
        return sorted(found, key=lambda one: self.again.get(one.deployment.name, 0))

    def left_s(self, upstream: Upstream, now: float) -> float:
        """Return how long this upstream may still take, all its attempts together."""
        deployment = upstream.deployment
        since = self.asked_at.get(deployment.name, self.began)
        return since + deployment.timeout_s - now
