"""The driver's exceptions as ours, and an upstream's words made safe to show."""

from collections.abc import Iterator
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


@contextmanager
def translated(deployment: Deployment, *, limit_s: float) -> Iterator[None]:
    """Raise ``Unavailable`` for "cannot connect", ``UpstreamError`` for what comes later.

    The difference matters for the meter: nothing was asked in the first case.
    """
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        refused = getattr(error, "os_error", None)
        if isinstance(refused, AddressRefused):
            raise Unavailable(say(deployment, str(refused.strerror))) from error
        raise Unavailable(say(deployment, "cannot connect to its server")) from error
    except TimeoutError as error:
        message = say(deployment, f"said nothing for {limit_s:g} s")
        raise UpstreamError(message) from error
    except (aiohttp.ClientError, OSError) as error:
        message = say(deployment, f"the connection broke ({type(error).__name__})")
        raise UpstreamError(message) from error
