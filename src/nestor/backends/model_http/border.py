"""The driver's exceptions as ours, and an upstream's words made safe to show."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp

from nestor.backends.openai.resolver import AddressRefused
from nestor.errors import Unavailable, UpstreamError
from nestor.model.routing import Deployment
from nestor.telemetry.redact import redact

_MESSAGE_CHARACTERS = 300


def say(deployment: Deployment, message: str) -> str:
    """Name the deployment and repeat a message: no secrets, one line, short."""
    if deployment.api_key:
        message = message.replace(deployment.api_key, "[redacted]")
    line = " ".join(redact(message).split())
    return f"{deployment.name}: {line[:_MESSAGE_CHARACTERS]}"


def error_text(error: object) -> str:
    """Return the sentence in an error body or error event, in any of the usual shapes."""
    if isinstance(error, Mapping):
        inner = error.get("error", error)
        if isinstance(inner, Mapping):
            inner = inner.get("message") or inner.get("detail") or ""
        return str(inner)
    return str(error)


def as_ours(
    deployment: Deployment, error: BaseException, *, limit_s: float
) -> Unavailable | None:
    """Return ``Unavailable`` for "cannot connect", ``UpstreamError`` for what comes later.

    The difference matters for the meter: nothing was asked in the first case. None for
    an exception that is none of the driver's.
    """
    if isinstance(
        error, (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError)
    ):
        refused = getattr(error, "os_error", None)
        if isinstance(refused, AddressRefused):
            return Unavailable(say(deployment, str(refused.strerror)))
        return Unavailable(say(deployment, "cannot connect to its server"))
    if isinstance(error, TimeoutError):
        return UpstreamError(say(deployment, f"said nothing for {limit_s:g} s"))
    if isinstance(error, (aiohttp.ClientError, OSError)):
        what = f"the connection broke ({type(error).__name__})"
        return UpstreamError(say(deployment, what))
    return None


@contextmanager
def translated(deployment: Deployment, *, limit_s: float) -> Iterator[None]:
    """Raise what ``as_ours`` makes of the driver's exceptions."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
        ours = as_ours(deployment, error, limit_s=limit_s)
        if ours is None:
            raise
        raise ours from error
