"""The dashboard's proxy in front of an upstream that answers as a test says."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.faces.shell import Served, SmallNestor, serving

from nestor.model.health import Dependency
from nestor.ports.rate_limiter import RateLimiter
from nestor.resilience.rate_limit import MovingWindow
from nestor.web import dashboard, proxy
from nestor.web.app import create_app
from nestor.web.client_address import ClientAddresses

OPEN = ("/aidb/health/live", "/aidb/health/ready", "/aidb/health/startup")
KEYED = ("/aidb/health/detailed", "/aidb/metrics")
LIVE = "/aidb/health/live"


async def _nothing() -> list[Dependency]:
    return []


@asynccontextmanager
async def dashboard_over(
    nestor: SmallNestor,
    port: int,
    *,
    limiter: RateLimiter | None = None,
    trusted: Sequence[str] = (),
    timeout_s: float = proxy.TIMEOUT_S,
) -> AsyncIterator[Served]:
    """The dashboard, whose AIDB listens on ``port``; without a limiter nearly unlimited."""
    address = ("127.0.0.1", port)
    limiter = limiter or MovingWindow(10_000, 60)
    async with proxy.Aidb(address, nestor.service_key, timeout_s=timeout_s) as aidb:
        routes = proxy.handlers(aidb, limiter, ClientAddresses(trusted))
        app = create_app(
            "dashboard",
            nestor,
            [*dashboard.handlers(), *routes],
            dependencies=_nothing,
            refuse_target=proxy.refuse_target,
        )
        async with serving(nestor, app) as shell:
            yield shell
