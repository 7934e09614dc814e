"""Holds calls to a failing dependency back, and lets one probe find out when it is well.

closed     calls pass; ``failures`` in a row, all within ``window_s``, open the breaker
open       calls are refused with ``CircuitOpen`` until the recovery time is over
half-open  exactly one call (the probe) passes; its success closes, its failure reopens

Where asked to, it also opens when too large a share of the calls within the window
failed, or was slow. The window is counted in tenths: a tenth that is partly over
counts no more. A slow probe then reopens it.

A success ends the row. An outcome counts only in the state its call was admitted in: a
slow call that was admitted before the breaker opened neither closes nor reopens it. A
call that was cancelled, or failed for a reason that is not the dependency's, says
nothing; if it was the probe, the next call is.

Safe under threads and tasks; nothing blocks, no lock is held while a call runs.
"""

import asyncio
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from nestor.errors import CircuitOpen, Unavailable
from nestor.resilience.call_window import CallWindow
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

T = TypeVar("T")
_log = get_logger("nestor.circuit_breaker")
PROBE_RETRY_S = 1.0
"""What a refused caller is told to wait while a probe is under way, seconds."""


class BreakerState(StrEnum):
    """See the module."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


_GAUGE = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class BreakerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker as health shows it."""

    name: str
    state: BreakerState
    consecutive_failures: int
    """Within the window; while not closed, those that opened it."""
    retry_after_s: float | None
    """Until the next call may pass; None when calls pass now."""
    since_s: float
    """In this state."""
    last_error: str | None
    """Class of the last counted failure; None when there was none."""
    calls: int | None = None
    failed: int | None = None
    slow: int | None = None
    """Within the window; None where shares are not looked at."""


def is_unavailable(error: BaseException) -> bool:
    """Tell whether ``error`` counts by default: ``Unavailable`` and what is below it."""
    return isinstance(error, Unavailable)


class CircuitBreaker:
    """One breaker a dependency. Times are seconds of ``clock``, which never goes back.

    Use ``await breaker.call(fn)`` or ``async with breaker:``; where a call ends in
    another task than it began in (a stream), ``with breaker.admit():``.
    ``counts``: which exceptions are the dependency's failure. A nested breaker's
    ``CircuitOpen`` never counts: nothing was asked. ``error_ratio`` and ``slow_ratio``
    (0 to 1) open it too, once the window holds ``min_calls``; None: they do not.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 5,
        window_s: float = 60.0,
        recovery_s: float = 60.0,
        max_hold_s: float = 3600.0,
        error_ratio: float | None = None,
        slow_ratio: float | None = None,
        min_calls: int = 10,
        counts: Callable[[BaseException], bool] = is_unavailable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._limit = failures
        self._window_s = window_s
        self._recovery_s = recovery_s
        self._max_hold_s = max_hold_s
        self._error_ratio = error_ratio
        self._slow_ratio = slow_ratio
        self._min_calls = min_calls
        shares = error_ratio is not None or slow_ratio is not None
        self._window = CallWindow(window_s) if shares else None
        self._counts = counts
        self._clock = clock
        self._shown = True
        # Reentrant: a permit may be collected, and so released, at any allocation.
        self._lock = threading.RLock()
        self._state = BreakerState.CLOSED
        self._epoch = 0
        self._since = clock()
        self._row: deque[float] = deque()
        self._open_until = 0.0
        self._probe_out = False
        self._last_error: str | None = None
        self._entered: weakref.WeakKeyDictionary[asyncio.Task[object], list[Permit]] = (
            weakref.WeakKeyDictionary()
        )
        metrics.BREAKER_STATE.labels(name).set(_GAUGE[self._state])

    @property
    def state(self) -> BreakerState:
        """An open breaker stays so until a call is admitted as the probe."""
        return self._state

    @property
    def refuses(self) -> bool:
        """Tell whether ``admit`` would raise now."""
        if self._state is BreakerState.CLOSED:
            return False
        return self._probe_out or self._clock() < self._open_until

    def retire(self) -> None:
        """Take it out of the metrics: what it guarded is gone, or has another breaker."""
        with self._lock:
            if self._shown:
                self._shown = False
                metrics.BREAKER_STATE.remove(self.name)

    def admit(self) -> "Permit":
        """Let one call pass; settle the permit or use it as a context manager.

        Raises ``CircuitOpen``. A permit that is dropped unsettled says nothing.
        """
        with self._lock:
            now = self._clock()
            if self._state is BreakerState.CLOSED:
                return Permit(self, self._epoch, probe=False)
            if now < self._open_until:
                wait = self._open_until - now
            elif self._probe_out:
                wait = PROBE_RETRY_S
            else:
                if self._state is BreakerState.OPEN:
                    self._enter(BreakerState.HALF_OPEN, now)
                    self._next_epoch()
                self._probe_out = True
                return Permit(self, self._epoch, probe=True)
        raise CircuitOpen(
            f"{self.name}: calls are held back after failures", retry_after_s=wait
        )

    async def call(self, fn: Callable[[], Awaitable[T]]) -> T:
        """Await ``fn()`` under the breaker."""
        with self.admit():
            return await fn()

    async def __aenter__(self) -> Self:
        """Admit the current task's next call."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("async with needs a task; use admit()")
        permit = self.admit()
        with self._lock:
            self._entered.setdefault(task, []).append(permit)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle it; in another task than the one that entered this does nothing."""
        task = asyncio.current_task()
        with self._lock:
            permits = self._entered.get(task, []) if task else []
            permit = permits.pop() if permits else None
        if permit:
            permit.__exit__(kind, error, trace)

    def hold(self, seconds: float) -> None:
        """Refuse calls for at least ``seconds`` from now: the upstream's Retry-After.

        Opens a closed breaker for that long, lengthens an open one, and reopens a
        half-open one for its recovery time or longer; never shortens. Bounded by
        ``max_hold_s``; what is not a positive number is ignored.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            return
        with self._lock:
            now = self._clock()
            until = now + min(seconds, self._max_hold_s)
            if self._state is BreakerState.CLOSED:
                # The same epoch: calls that are out still add to the row of failures.
                self._enter(BreakerState.OPEN, now, cause="retry_after")
                self._open_until = until
            elif self._state is BreakerState.HALF_OPEN:
                self._open(now, cause="retry_after")
            self._open_until = max(self._open_until, until)

    def snapshot(self) -> BreakerSnapshot:
        """Describe the breaker for health."""
        with self._lock:
            now = self._clock()
            wait: float | None = max(0.0, self._open_until - now) or None
            if self._probe_out and wait is None:
                wait = PROBE_RETRY_S
            if self._state is BreakerState.CLOSED:
                self._forget_before(now)
                wait = None
            seen = self._window.totals(now) if self._window else (None, None, None)
            return BreakerSnapshot(
                name=self.name,
                state=self._state,
                consecutive_failures=len(self._row),
                retry_after_s=wait,
                since_s=now - self._since,
                last_error=self._last_error,
                calls=seen[0],
                failed=seen[1],
                slow=seen[2],
            )

    def _settle(
        self, permit: "Permit", error: BaseException | None, *, slow: bool = False
    ) -> None:
        with self._lock:
            if permit.epoch != self._epoch:
                return
            now = self._clock()
            if permit.probe:
                self._probe_out = False
            if error is None:
                self._row.clear()
                if not permit.probe:
                    self._weigh(now, slow=slow)
                elif slow and self._slow_ratio is not None:
                    self._open(now, cause="slow")
                else:
                    self._enter(BreakerState.CLOSED, now)
                    self._next_epoch()
                return
            if isinstance(error, CircuitOpen) or not self._counts(error):
                return
            self._last_error = type(error).__name__
            self._forget_before(now)
            self._row.append(now)
            if permit.probe or len(self._row) >= self._limit:
                self._open(now, cause=self._last_error)
            else:
                self._weigh(now, failed=True)

    def _release(self, permit: "Permit") -> None:
        with self._lock:
            if permit.probe and permit.epoch == self._epoch:
                self._probe_out = False

    def _forget_before(self, now: float) -> None:
        while self._row and self._row[0] <= now - self._window_s:
            self._row.popleft()

    def _weigh(self, now: float, *, failed: bool = False, slow: bool = False) -> None:
        """Count a call that was not the probe, and open when the share is too large."""
        if self._window is None:
            return
        self._window.count(now, failed=failed, slow=slow)
        calls, failures, slow_calls = self._window.totals(now)
        if calls < self._min_calls:
            return
        if self._error_ratio is not None and failures >= self._error_ratio * calls:
            self._open(now, cause="error_ratio")
        elif self._slow_ratio is not None and slow_calls >= self._slow_ratio * calls:
            self._open(now, cause="slow")

    def _open(self, now: float, cause: str) -> None:
        if self._state is not BreakerState.OPEN:
            self._enter(BreakerState.OPEN, now, cause)
        self._next_epoch()
        self._open_until = max(self._open_until, now + self._recovery_s)

    def _next_epoch(self) -> None:
        self._epoch += 1
        self._probe_out = False
        if self._window is not None:
            self._window.clear()

    def _enter(self, state: BreakerState, now: float, cause: str | None = None) -> None:
        self._state = state
        self._since = now
        if self._shown:
            metrics.BREAKER_STATE.labels(self.name).set(_GAUGE[state])
        log = _log.info if state is BreakerState.CLOSED else _log.warning
        log(f"circuit_breaker_{state}", name=self.name, cause=cause)


class Permit:
    """Leave for one call. The first settling counts; later ones do nothing."""

    __slots__ = ("_breaker", "_done", "epoch", "probe")

    def __init__(self, breaker: CircuitBreaker, epoch: int, *, probe: bool) -> None:
        self._breaker = breaker
        self._done = False
        self.epoch = epoch
        self.probe = probe

    def succeed(self, *, slow: bool = False) -> None:
        """The dependency answered; ``slow``: after longer than it should take."""
        if not self._done:
            self._done = True
            self._breaker._settle(self, None, slow=slow)  # noqa: SLF001 - two halves of one thing

    def fail(self, error: BaseException) -> None:
        """The call ended with ``error``; whether that counts is the breaker's rule."""
        if not self._done:
            self._done = True
            self._breaker._settle(self, error)  # noqa: SLF001

    def release(self) -> None:
        """The call ended without an answer to judge (cancelled)."""
        if not self._done:
            self._done = True
            self._breaker._release(self)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.succeed()
        elif isinstance(error, Exception):
            self.fail(error)
        else:  # CancelledError, GeneratorExit, KeyboardInterrupt
            self.release()

    def __del__(self) -> None:
        # A stream that nobody closed must not keep the probe's place for ever.
        self.release()
