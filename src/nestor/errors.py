"""Every error Nestor raises on purpose, grouped by who can fix it.

NestorError
├── InvalidInput      the caller: something in the request is wrong; names the field
│   ├── NotFound      the caller: it names something absent
│   └── TooLarge      the caller: the body or document is over the limit
├── Conflict          the caller, by reading again: the state is not what it thinks
├── Unauthorized      the caller: no key, or a key nobody knows
│   └── Forbidden     the caller: a valid key without the needed scope
├── BudgetExceeded    the caller: the money or tokens granted are spent
├── RateLimited       time: too many requests; says when to come back
├── Unavailable       time: a dependency is down, the same call may work later
│   ├── CircuitOpen   time: calls are held back because the last ones failed
│   ├── IndexDamaged  time: the search index is rebuilt from SQL by itself
│   ├── UpstreamError the operator of what was asked in turn: it answered with an error
│   └── UpstreamTimeout  time: what was asked in turn did not answer soon enough
├── WorkspaceError    the caller: the repository, its setup or its checks cannot run
├── SandboxError      the operator: no isolation is available, or it broke
└── Misconfigured     the operator: a setting must change, or a port or folder is taken

Backends translate driver exceptions into these at their own border and keep the
original as ``__cause__``. ``nestor.web`` and ``nestor.cli`` each hold one table from
these classes to a status or an exit code. Any other exception is a bug.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field. ``field`` is a dotted path (``checks.0.run``)."""

    field: str
    message: str


class NestorError(Exception):
    """Base class: ``except NestorError`` catches all of the above."""


class InvalidInput(NestorError):  # noqa: N818 - names say what happened
    """The request cannot be served as written."""

    def __init__(self, message: str, *errors: FieldError) -> None:
        super().__init__(message)
        self.errors = errors

    @classmethod
    def at(cls, field: str, message: str) -> "InvalidInput":
        """One wrong field: the usual case."""
        return cls(f"{field}: {message}", FieldError(field, message))


class NotFound(InvalidInput):
    """The named thing does not exist."""


class TooLarge(InvalidInput):
    """The body or document is over the limit."""


class Conflict(NestorError):  # noqa: N818
    """The request was fine but the state has moved on."""


class Unauthorized(NestorError):  # noqa: N818
    """No key was given, or nobody knows it."""


class Forbidden(Unauthorized):
    """The key is good, but its scopes do not reach this."""


class BudgetExceeded(NestorError):  # noqa: N818
    """What was granted (USD, tokens, seconds) is spent."""


class RateLimited(NestorError):  # noqa: N818
    """Too many requests; ``retry_after_s`` says when to come back."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(NestorError):  # noqa: N818
    """A dependency did not answer; the same call may work later."""


class CircuitOpen(Unavailable):
    """Calls are held back because the last ones failed."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class IndexDamaged(Unavailable):
    """The search index cannot be read any more; only emptying and refilling helps."""


class OtherVectors(Unavailable):
    """Vectors of two models would have been compared; refilling the index helps."""


class Unreadable(InvalidInput):
    """A document that cannot be read; says why."""


class UpstreamError(Unavailable):
    """What was asked in turn answered with an error. ``status``: its HTTP status, if any.

    ``retry_after_s``: when it said to come back; None when it did not say. ``stale``: a
    connection that had served before ended before a byte of the answer; most likely
    nobody read the question, but that is not known.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        stale: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.stale = stale


class UpstreamTimeout(Unavailable):
    """What was asked in turn did not answer within the time it has."""


class WorkspaceError(NestorError):
    """The repository, its ``setup`` or its checks cannot run at all."""


class SandboxError(NestorError):
    """No isolation is available, or it broke."""


class Misconfigured(NestorError):  # noqa: N818
    """A setting must change, or a port or folder is taken."""
