"""Interactions: questions with their answers wherever they were given, and what is said of them.

A call of ``/v1`` is one by itself: its row in the meter has route, reason and context ids.
What is not said of an interaction stays unknown; nothing is made of silence.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from nestor.coordinator.prompt import augmented
from nestor.errors import FieldError, InvalidInput, NotFound, Unavailable
from nestor.model.event import (
    FEEDBACK_RECEIVED,
    INTERACTION_TRACKED,
    QUERY_AUGMENTED,
    Event,
)
from nestor.model.ids import TASK_ID, derived_id, new_id
from nestor.model.interaction import (
    MAX_TEXT_BYTES,
    Augmented,
    AugmentRequest,
    Feedback,
    Interaction,
    InteractionKind,
    NewFeedback,
    NewInteraction,
    Tracked,
)
from nestor.model.knowledge import ContextRequest
from nestor.model.routing import ModelCall, RouteRequest, RouteResult
from nestor.ports.call_ledger import CallLedger
from nestor.ports.interaction_store import InteractionStore
from nestor.ports.knowledge_base import KnowledgeBase
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.logs import get_logger
from nestor.telemetry.redact import redact
from nestor.telemetry.trace import current_trace_id

_PATIENCE_S = 2.0
"""How long an answer that is there already waits for its row."""
_STOP_S = 10.0
_SHOWN = 100
_log = get_logger("nestor.coordinator")


class Folding(Protocol):
    """What is needed of ``metering.Metering``."""

    async def fold_now(self) -> None:
        """Bring calls that have ended into the ledger."""
        ...


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of an interaction: at least one of the first two is there."""

    interaction: Interaction | None
    call: ModelCall | None
    feedback: list[Feedback]
    """All that was said, oldest first; see ``model.interaction.standing``."""


class Interactions:
    """Keeps interactions and feedback; ``close`` waits for what is still being written."""

    def __init__(
        self,
        store: InteractionStore,
        *,
        ledger: CallLedger,
        metering: Folding,
        knowledge: KnowledgeBase,
        learning: LearningClient,
        now: Callable[[], datetime],
        keep_prompts: bool = True,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """``keep_prompts``: False keeps neither questions nor answers."""
        self._store = store
        self._ledger = ledger
        self._metering = metering
        self._knowledge = knowledge
        self._learning = learning
        self._now = now
        self._keep_prompts = keep_prompts
        self._patience_s = patience_s
        self._work: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for rows that are being written, ten seconds at most."""
        if self._work:
            await asyncio.wait(self._work, timeout=_STOP_S)

    async def feedback(
        self, said: NewFeedback, *, key_id: str, source: str, of_all: bool
    ) -> Feedback:
        """Keep what a key (``source`` is its name) says about an interaction.

        Of each key the newest counts. ``of_all``: it may judge answers that other keys
        got; without it, those are as unknown to it as what never was.

        Raises ``InvalidInput`` that names the field, ``NotFound`` for an interaction that
        nobody knows, ``Unavailable`` when it could not be kept.
        """
        if said.outcome is None and said.user_feedback is None:
            message = "give this, or the other one, or both"
            raise InvalidInput(
                f"outcome, user_feedback: {message}",
                FieldError("outcome", message),
                FieldError("user_feedback", message),
            )
        label = _label("source", said.source)
        owners = await self._owners(said.interaction_id)
        if not owners or not (of_all or key_id in owners):
            shown = said.interaction_id[:_SHOWN]
            raise NotFound.at("interaction_id", f"nobody knows {shown!r}")
        row = Feedback(
            id=new_id(),
            interaction_id=said.interaction_id,
            at=self._now(),
            outcome=said.outcome,
            user_feedback=said.user_feedback,
            source=source,
            key_id=key_id,
            label=label,
        )
        told = {
            "interaction_id": row.interaction_id,
            "outcome": row.outcome,
            "user_feedback": row.user_feedback,
            "source": row.source,
            "key_id": row.key_id,
            "label": row.label,
        }
        event = self._event(FEEDBACK_RECEIVED, row.id, told)
        await self._store.say(row, telemetry=[event])
        return row

    async def augment(
        self, request: AugmentRequest, *, key_id: str | None = None
    ) -> Augmented:
        """Put what the knowledge base knows before a query; asks no model.

        ``degraded`` says what did not answer. Raises ``InvalidInput``.
        """
        _refuse_empty(request.query)
        agent_type = _label("agent_type", request.agent_type)
        degraded: list[str] = []
        try:
            found = await self._knowledge.get_context(
                ContextRequest(query=request.query)
            )
        except Unavailable as error:
            items, degraded = [], [f"knowledge base: {error}"]
        else:
            items, degraded = found.items, list(found.degraded)
        row = self._row(
            InteractionKind.AUGMENTED,
            new_id(),
            request.query,
            agent_type=agent_type,
            context_ids=tuple(item.id for item in items),
            key_id=key_id,
        )
        if (late := await self._kept(row, QUERY_AUGMENTED)) is not None:
            degraded.append(late)
        return Augmented(
            augmented_prompt=augmented(request.query, items),
            context_ids=[item.id for item in items],
            original_query=request.query,
            context_count=len(items),
            sources=[item.source for item in items],
            interaction_id=row.id,
            degraded=degraded,
        )

    async def track(
        self, request: NewInteraction, *, key_id: str | None = None
    ) -> Tracked:
        """Keep an answer that was given elsewhere.

        Raises ``InvalidInput`` that names the field, ``Unavailable``.
        """
        _refuse_empty(request.query)
        if request.task_id is not None and not TASK_ID.fullmatch(request.task_id):
            raise InvalidInput.at("task_id", "1 to 64 of A-Z a-z 0-9 . _ -")
        ids = [
            redact(_printable(f"context_ids.{n}", one))
            for n, one in enumerate(request.context_ids)
        ]
        row = self._row(
            InteractionKind.TRACKED,
            new_id(),
            request.query,
            response=request.response,
            route=_label("route", request.route),
            model=_label("model", request.model),
            agent_type=_label("agent_type", request.agent_type),
            context_ids=tuple(ids),
            task_id=request.task_id,
            key_id=key_id,
        )
        event = self._event(
            INTERACTION_TRACKED, row.id, _told(row), task_id=row.task_id
        )
        await self._store.keep(row, telemetry=[event])
        return Tracked(interaction_id=row.id)

    async def routed(
        self, request: RouteRequest, result: RouteResult, *, key_id: str | None
    ) -> str | None:
        """Keep a routed query under its call's id; ``query_routed`` has told of it.

        The answer is there, and paid for: what goes wrong here is returned, for
        ``degraded``.
        """
        row = self._row(
            InteractionKind.ROUTED,
            result.interaction_id,
            request.query,
            response=result.response,
            route=result.route,
            model=result.model,
            reason=result.reason,
            confidence=result.confidence,
            context_ids=tuple(result.context_ids),
            task_id=request.task_id,
            iteration=request.iteration,
            key_id=key_id,
            replayed=result.replayed,
        )
        return await self._kept(row, None)

    async def look_up(self, interaction_id: str) -> Looked:
        """Return what is known of an interaction. Raises ``NotFound``."""
        call = row = None
        if interaction_id.isprintable():
            await self._metering.fold_now()
            row = await self._store.get(interaction_id)
            call = await self._ledger.call(interaction_id)
        if row is None and call is None:
            shown = interaction_id[:_SHOWN]
            raise NotFound.at("interaction_id", f"nobody knows {shown!r}")
        said = await self._store.said(interaction_id)
        return Looked(interaction=row, call=call, feedback=said)

    async def _owners(self, interaction_id: str) -> set[str | None]:
        """Return whose keys an interaction was had with; none: nobody knows it."""
        if not interaction_id.isprintable():  # what no database would look for
            return set()
        if (row := await self._store.get(interaction_id)) is not None:
            return {row.key_id}
        call = await self._ledger.call(interaction_id)
        if call is None:
            # It may have ended a moment ago.
            await self._metering.fold_now()
            call = await self._ledger.call(interaction_id)
        return set() if call is None else {call.key_id}

    def _row(
        self,
        kind: InteractionKind,
        interaction_id: str,
        query: str,
        *,
        response: str | None = None,
        **more: Any,
    ) -> Interaction:
        texts: dict[str, str | None] = dict.fromkeys(("query", "response"))
        cut: list[str] = []
        for name, text in (("query", query), ("response", response)):
            if text is None or not self._keep_prompts:
                continue
            texts[name], whole = _bounded(text)
            if not whole:
                cut.append(name)
        return Interaction(
            id=interaction_id,
            at=self._now(),
            kind=kind,
            query=texts["query"],
            response=texts["response"],
            cut=tuple(cut),
            trace_id=current_trace_id(),
            **more,
        )

    def _event(
        self,
        event_type: str,
        row_id: str,
        told: dict[str, Any],
        *,
        task_id: str | None = None,
    ) -> Event:
        """Make the event of a row: under one id, however often it is sent."""
        return self._learning.event(
            event_type,
            told,
            task_id=task_id,
            event_id=derived_id(event_type, row_id),
        )

    async def _kept(self, row: Interaction, event_type: str | None) -> str | None:
        """Keep a row; say what went wrong where it could not be kept, or not yet."""
        events: Sequence[Event] = ()
        if event_type is not None:
            events = [self._event(event_type, row.id, _told(row))]
        task = asyncio.create_task(
            self._store.keep(row, telemetry=events), name="interaction"
        )
        self._work.add(task)
        task.add_done_callback(self._done)
        try:
            async with asyncio.timeout(self._patience_s):
                # Cut off, a transaction would hold the database for nobody knows how long.
                await asyncio.shield(task)
        except TimeoutError:
            return "interaction: not kept yet: the database takes its time"
        except Unavailable as error:
            return f"interaction: not kept, so it takes no feedback: {error}"
        return None

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("interaction_not_kept", error=str(error))


def _told(row: Interaction) -> dict[str, Any]:
    """Return what an event says of an interaction that no call tells of."""
    return {
        "interaction_id": row.id,
        "query": row.query,
        # Named as in task events: what drops prompts from telemetry knows it by that.
        "output": row.response,
        "route": row.route,
        "model": row.model,
        "agent_type": row.agent_type,
        "context_ids": list(row.context_ids),
        "key_id": row.key_id,
    }


def _bounded(text: str) -> tuple[str, bool]:
    """Return a text to be kept, and whether it is whole.

    Redacted first: half a secret, cut off, would not be known as one.
    """
    raw = redact(text).encode()
    if len(raw) <= MAX_TEXT_BYTES:
        return raw.decode(), True
    return raw[:MAX_TEXT_BYTES].decode(errors="ignore"), False


def _refuse_empty(query: str) -> None:
    if not query.strip():
        raise InvalidInput.at("query", "is empty")


def _label(field: str, text: str | None) -> str | None:
    """Return a caller's own word. Raises ``InvalidInput``."""
    return None if text is None else redact(_printable(field, text))


def _printable(field: str, text: str) -> str:
    if not text.isprintable():
        raise InvalidInput.at(field, "holds characters that cannot be printed")
    return text
