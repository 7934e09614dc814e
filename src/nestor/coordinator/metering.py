"""What a call came to: cost, journal, metrics; in SQL and in the event log soon after.

A call costs two lines of the journal here. A task of its own folds what has ended into
SQL, in batches, and tells learning of it afterwards.

An event is neither lost nor repeated, whenever the process dies. The journal lets go of
a batch (and notes so) only when its events are in the log; a batch whose end the dead
process did not note is folded again, which changes nothing, and its events are written
unless the log has them. A row an event in SQL's outbox would double what a call costs
there, for a case that a look at the end of the log decides.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from nestor.coordinator.call_metrics import CallMetrics
from nestor.coordinator.folding import Folding, was_told
from nestor.coordinator.pricing import (
    MAX_COST_USD,
    MAX_TOKENS,
    believable,
    cost_usd,
)
from nestor.errors import Unavailable
from nestor.model.event import MODEL_CALLED, Event
from nestor.model.health import Dependency, HealthStatus
from nestor.model.ids import derived_id
from nestor.model.routing import ModelCall
from nestor.model.task import Usage
from nestor.ports.call_journal import CallJournal, Settled
from nestor.ports.call_ledger import CallLedger
from nestor.telemetry import metrics
from nestor.telemetry.learning_client import LearningClient
from nestor.telemetry.logs import get_logger

__all__ = ["Metering", "cost_usd", "told"]
LATE_S = 5.0
"""Calls that wait longer than this make the ledger degraded, also without an error yet."""
_MAX_BACKOFF_S = 5.0
_LOOK_S = 60.0
"""How often a running process looks for journals of others that died."""
_START_S = 2.0
"""How long a start waits for what others left; more of it is folded behind it."""
_STOP_S = 10.0
_log = get_logger("nestor.coordinator")


def _now() -> datetime:
    return datetime.now(UTC)


class Metering:
    """Takes calls as they begin and end; both are quick and never raise for the meter.

    The journal is its own from now on: ``stop`` closes it.
    """

    def __init__(
        self,
        ledger: CallLedger,
        journal: CallJournal,
        learning: LearningClient,
        *,
        every_s: float = 0.25,
        now: Callable[[], datetime] = _now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """``every_s``: how long ended calls are collected before they are folded."""
        self._ledger = ledger
        self._journal = journal
        self._learning = learning
        self._every_s = every_s
        self._now = now
        self._timer = timer
        self._metrics = CallMetrics()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._work: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._left: list[CallJournal] = []
        """Journals of processes that are gone, not folded whole."""
        self._aside: list[CallJournal] = []
        """Of these, what broke while it was folded: held, so that nobody tries for ever."""
        self._calls_aside = 0
        self._looked_at: float | None = None
        self._behind_since: float | None = None
        self._answered_at: datetime | None = None
        self._error: str | None = None
        self._stopped = False

    def begin(self, call: ModelCall) -> None:
        """Note a call that is about to be made: what is known of it, charges as reserved."""
        self._journal.begin(call)

    def end(self, call: ModelCall) -> None:
        """Note the same call as it ended. Once."""
        if (usage := believable(call.usage)) is not call.usage:
            call = _without(call, usage)
        self._journal.end(call)
        self._metrics.ended(call)
        if self._behind_since is None:
            self._behind_since = self._timer()
        self._wake.set()

    async def start(self) -> None:
        """Take over what processes that died have left, and fold from now on.

        Returns when that is done, or after two seconds: the rest goes on behind.
        """
        metrics.CALLS_WAITING.set_function(lambda: float(self._waiting()))
        metrics.CALLS_WAITING_SECONDS.set_function(self._late_s)
        first = asyncio.Event()
        self._loop = asyncio.create_task(self._keep_folding(first), name="metering")
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await first.wait()

    async def stop(self) -> None:
        """Fold the rest, within ten seconds, and let go of the journal.

        Nothing may begin any more, and budgets must have been given back: folded whole,
        the journal's leases end here. What cannot be folded now is found at the next start.
        """
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        forgotten = False
        try:
            async with asyncio.timeout(_STOP_S):
                await self._fold(look=False)
                if not self._journal.waiting:
                    await self._ledger.forget(self._journal.id)
                    forgotten = True
        except (Unavailable, TimeoutError) as error:
            _log.warning("calls_wait", calls=self._waiting(), error=str(error))
        except Exception:  # noqa: BLE001 - who stops has more to stop than the meter
            _log.exception("calls_wait", calls=self._waiting())
        finally:
            # A fold that waits for a lock is left alone: its driver cannot be interrupted.
            # What it may still commit is found folded, and told, at the next start.
            self._stopped = True
            metrics.CALLS_WAITING.set_function(float)
            metrics.CALLS_WAITING_SECONDS.set_function(float)
            if not self._turn.locked():  # else it reads them; they end with the process
                for journal in (*self._left, *self._aside):
                    journal.close(keep=True)
            # Its leases end when SQL forgets it: until then somebody has to find it.
            self._journal.close(keep=not forgotten)

    async def fold_now(self) -> None:
        """Fold all that has ended up to now, of dead processes, too. Raises ``Unavailable``."""
        await self._fold(look=self._looked_at is None)

    def dependencies(self) -> list[Dependency]:
        """Say how the ledger takes calls, by what was seen last; asks nobody."""
        waiting, late_s = self._waiting(), self._late_s()
        lines = self._journal.unwritten
        aside = self._calls_aside + sum(one.waiting for one in self._aside)
        degraded = self._error is not None or late_s > LATE_S or lines > 0 or aside > 0
        said = []
        if self._error is not None or late_s > LATE_S:
            why = self._error or "the database takes its time"
            said.append(
                f"{waiting} calls wait in the journal since {late_s:.0f} s: {why}"
            )
        if lines:
            said.append(f"{lines} lines of the call journal wait for the disk")
        if aside:
            said.append(
                f"{aside} calls are not counted, for the database does not take them:"
                " the log names their files beside the call journal"
            )
        status = HealthStatus.DEGRADED if degraded else HealthStatus.HEALTHY
        if not degraded and self._answered_at is None:
            return [Dependency(name="call ledger", status=None)]
        message = "; ".join(said) or f"{waiting} calls wait"
        return [
            Dependency(
                name="call ledger",
                status=status,
                message=message,
                last_observed=self._answered_at,
            )
        ]

    def _waiting(self) -> int:
        return self._journal.waiting + sum(one.waiting for one in self._left)

    def _late_s(self) -> float:
        since = self._behind_since
        return 0.0 if since is None else max(0.0, self._timer() - since)

    async def _keep_folding(self, first: asyncio.Event) -> None:
        backoff_s = self._every_s
        while True:
            self._wake.clear()
            try:
                await self._fold(look=self._time_to_look())
                backoff_s = self._every_s
            except Unavailable as error:
                backoff_s = self._failed(str(error), backoff_s)
            except Exception as error:  # noqa: BLE001 - see below
                # The edge of a task that nobody awaits: without it no call would ever be
                # folded again, and nobody would know.
                _log.exception("calls_not_folded")
                backoff_s = self._failed(f"{type(error).__name__}: {error}", backoff_s)
            first.set()
            if self._error is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
            await asyncio.sleep(backoff_s)

    def _failed(self, error: str, backoff_s: float) -> float:
        metrics.CALL_FOLDS_FAILED.inc()
        if self._behind_since is None:
            self._behind_since = self._timer()
        if self._error is None:  # once an outage; the metric counts each
            _log.warning("calls_wait", calls=self._waiting(), error=error)
        self._error = error
        return min(_MAX_BACKOFF_S, backoff_s * 2)

    def _time_to_look(self) -> bool:
        return self._looked_at is None or self._timer() - self._looked_at >= _LOOK_S

    async def _fold(self, *, look: bool) -> None:
        """Fold what has ended up to now. Goes on when its caller is cancelled.

        A transaction that is cut off would be repeated, and that is harmless; but nobody
        could tell for how long the database stays locked.
        """
        task = asyncio.create_task(self._fold_in_turn(look=look))
        self._work.add(task)
        task.add_done_callback(self._done)
        await asyncio.shield(task)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller, who heard of it, may be gone

    async def _fold_in_turn(self, *, look: bool) -> None:
        upto = self._journal.waiting
        async with self._turn:
            if look:
                self._left += await asyncio.to_thread(self._journal.abandoned)
                # Something is asked in any case, so that health knows the answer.
                await self._ledger.folded_to(self._journal.id)
                self._looked_at = self._timer()
            failed = await self._recover_left()
            await self._fold_own(upto)
            if failed is not None:
                raise failed
            if not self._journal.waiting:
                self._behind_since = None
            self._answered_at = self._now()
            if self._error is not None:
                self._error = None
                _log.info("calls_folded_again")

    async def _fold_own(self, upto: int) -> None:
        """Fold ``upto`` calls; those that end meanwhile are the next one's to fold."""
        folding = Folding(self._ledger, self._journal)
        while upto > 0 and not self._stopped:
            settled = folding.settled()
            if settled is None:
                return
            began, aside = self._timer(), folding.aside
            new = await folding.fold(settled)
            if self._stopped:
                return
            if new is None:
                upto -= folding.aside - aside
                self._calls_aside += folding.aside - aside
                continue
            # No await from here: the events and the note of them go together.
            self._learning.append([self._event(call) for call in settled.calls])
            self._journal.folded(settled)
            upto -= len(settled.calls)
            self._behind_since = began if self._journal.waiting else None

    async def _recover_left(self) -> Unavailable | None:
        """Fold what others left; one that cannot be folded keeps nobody else waiting."""
        failed = None
        for journal in self._left[:]:
            try:
                await self._recover(journal)
            except Unavailable as error:
                failed = error
            except Exception:  # noqa: BLE001 - one journal stops no other
                self._left.remove(journal)
                self._aside.append(journal)
                metrics.CALLS_ASIDE.inc(journal.waiting)
                _log.exception(
                    "call_journal_set_aside", journal=journal.id, calls=journal.waiting
                )
            else:
                self._left.remove(journal)
                journal.close()
        return failed

    async def _recover(self, journal: CallJournal) -> None:
        """Fold what a process that died has left."""
        before = await self._ledger.folded_to(journal.id)
        folding = Folding(self._ledger, journal)
        while settled := await asyncio.to_thread(folding.settled):
            if not was_told(settled, before):
                aside = folding.aside
                new = await folding.fold(settled)
                self._calls_aside += folding.aside - aside
                if self._stopped:
                    raise Unavailable("the meter has stopped")
                if new is None:
                    continue
                await self._tell_recovered(settled, new)
            journal.folded(settled)
        await self._ledger.forget(journal.id)

    async def _tell_recovered(self, settled: Settled, new: int) -> None:
        events = [self._event(call) for call in settled.calls]
        if new < len(events):
            # Some were in SQL before; whether their events were written only the log knows.
            ids = frozenset(event.id for event in events)
            seen = await asyncio.to_thread(self._learning.seen, ids)
            events = [
                event
                for event in events
                # Not of what an earlier taker set aside.
                if event.id not in seen
                and await self._ledger.has(event.data["interaction_id"])
            ]
        self._learning.append(events)
        told = {event.data["interaction_id"] for event in events}
        self._metrics.unsettled(
            call
            for call in settled.calls
            if call.unsettled and call.interaction_id in told
        )

    def _event(self, call: ModelCall) -> Event:
        event = self._learning.event(
            MODEL_CALLED,
            told(call),
            task_id=call.task_id,
            event_id=derived_id(MODEL_CALLED, call.interaction_id),
            trace_id=call.trace_id,
        )
        ended = call.at + timedelta(milliseconds=call.latency_ms)
        return msgspec.structs.replace(event, timestamp=ended)


def told(call: ModelCall) -> dict[str, Any]:
    """Return what an event says of a call."""
    return {
        "interaction_id": call.interaction_id,
        "model": call.model,
        "deployment": call.deployment,
        "side": call.side,
        "dialect": call.dialect,
        "usage": msgspec.structs.asdict(call.usage),
        "cost_usd": None if call.cost_usd is None else f"{call.cost_usd:f}",
        "latency_ms": None if call.unsettled else call.latency_ms,
        "ok": call.ok,
        "unsettled": call.unsettled,
        "error": call.error,
        "reason": call.route_reason,
        "fallback_from": call.fallback_from,
        "attempt_of": call.attempt_of,
        "purpose": call.purpose,
        "iteration": call.iteration,
        "replayed": call.replayed,
        "cached": call.cached,
        "key_id": call.key_id,
        "context_ids": list(call.context_ids),
    }


def _without(call: ModelCall, usage: Usage) -> ModelCall:
    """Put believable counts in the place of others; what was made of those goes as well."""
    _log.warning("counts_not_believed", deployment=call.deployment)
    charges = tuple(
        msgspec.structs.replace(
            one,
            usd=max(Decimal(0), min(one.usd, MAX_COST_USD)),
            tokens=max(0, min(one.tokens, MAX_TOKENS)),
        )
        for one in call.charges
    )
    cost = Decimal(0) if call.replayed or call.cached else None
    return msgspec.structs.replace(call, usage=usage, cost_usd=cost, charges=charges)
