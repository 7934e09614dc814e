"""Why nobody answered: each upstream's own reason, and the one error made of them."""

from collections.abc import Sequence

from nestor.coordinator.upstream import Upstream
from nestor.errors import (
    BudgetExceeded,
    CircuitOpen,
    InvalidInput,
    NestorError,
    RateLimited,
    Unavailable,
    UpstreamError,
)
from nestor.model.routing import Deployment
from nestor.resilience.retry import may_retry
from nestor.telemetry.logs import get_logger

_log = get_logger("nestor.coordinator")
_REFUSALS = {400, 413, 422}
_TOO_MANY = 429
_WAIT_UNKNOWN_S = 1.0


class Failures:
    """Of one request, in the order in which upstreams failed first."""

    __slots__ = ("_again", "_cannot_say", "_errors")

    def __init__(self) -> None:
        self._errors: dict[str, NestorError] = {}
        self._again: dict[str, bool] = {}
        self._cannot_say: dict[str, InvalidInput] = {}

    def asked(self, upstream: Upstream, error: Unavailable) -> None:
        """It was asked, or could not be reached."""
        name = upstream.deployment.name
        self._errors[name] = error
        self._again[name] = may_retry(error)

    def refused(self, upstream: Upstream, error: NestorError) -> None:
        """It was not asked. What it said when it was asked before is worth more."""
        name = upstream.deployment.name
        before = self._errors.setdefault(name, error)
        self._again[name] = before is error and isinstance(error, RateLimited)

    def cannot_say(self, upstream: Upstream, error: InvalidInput) -> None:
        """The request cannot be expressed in its dialect."""
        self._cannot_say[upstream.deployment.name] = error

    def first_but(self, name: str) -> str | None:
        """Return who failed first, unless that is ``name``."""
        first = next(iter(self._errors), None)
        return None if first == name else first

    def of(self, upstream: Upstream) -> NestorError | None:
        """Return why it did not answer; None where it was not tried."""
        return self._errors.get(upstream.deployment.name)

    def may_pass(self, upstream: Upstream) -> bool:
        """Tell whether it is worth asking again."""
        return self._again.get(upstream.deployment.name, False)

    def given_up(self) -> NestorError:  # noqa: PLR0911 - one for each kind
        """Make the one error that tells of all of them."""
        errors = list(self._errors.values())
        if not errors:
            for unsaid in self._cannot_say.values():
                return unsaid
            return Unavailable("no model is configured that could be asked")
        told = [str(error) for error in errors]
        told += [f"{name}: {error}" for name, error in self._cannot_say.items()]
        said = "; ".join(dict.fromkeys(told))
        if waits := _waits(errors, CircuitOpen):
            return CircuitOpen(said, retry_after_s=min(waits))
        if waits := _waits(errors, RateLimited):
            return RateLimited(said, retry_after_s=min(waits))
        if all(isinstance(error, BudgetExceeded) for error in errors):
            return BudgetExceeded(said)
        if all(isinstance(e, UpstreamError) and e.status in _REFUSALS for e in errors):
            return InvalidInput(f"the model's server refused the request: {said}")
        if len(told) == 1:
            return errors[0]
        return Unavailable(f"no model answered: {said}")


def unreadable(deployment: Deployment) -> UpstreamError:
    """Return the error of an answer at which our own code failed, and log the bug.

    For the handler of any ``Exception`` around what reads an answer: the call was made, so
    it is settled and the caller is told in words, whatever a server thought of to send.
    """
    _log.exception("answer_not_read", deployment=deployment.name)
    return UpstreamError(f"{deployment.name}: its answer cannot be read")


def wait_of(error: NestorError | None) -> float | None:
    """Return the seconds that an error asks to wait; None where it does not say."""
    if isinstance(error, RateLimited | UpstreamError):
        return error.retry_after_s
    return None


def _waits(
    errors: Sequence[NestorError], kind: type[CircuitOpen | RateLimited]
) -> list[float]:
    """Return each one's wait where all are of a kind, else nothing."""
    waits: list[float] = []
    for error in errors:
        if isinstance(error, kind):
            waits.append(error.retry_after_s)
        elif (
            kind is RateLimited
            and isinstance(error, UpstreamError)
            and error.status == _TOO_MANY
        ):
            waits.append(error.retry_after_s or _WAIT_UNKNOWN_S)
        else:
            return []
    return waits
