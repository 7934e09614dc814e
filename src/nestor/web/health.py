"""What a layer knows of itself, and since when: ``/health/*``.

Nothing here is healthy unless somebody looked: a dependency that was never observed is
unknown, and a layer that leans on it is not ready.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from resource import getpagesize

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from nestor import __version__
from nestor.model.health import Dependency, HealthReport, HealthStatus
from nestor.telemetry.logs import get_logger

Dependencies = Callable[[], Awaitable[list[Dependency]]]
Breakers = Callable[[], Mapping[str, str]]

DEADLINE_S = 1.5
"""How long the layer may take to tell of its dependencies before that is the news.

Shorter than those who ask are ready to wait (``web.proxy`` 2 s), or they would not hear it.
"""

_log = get_logger("nestor.web")
_OPEN = {"scope": None, "replies": {200: HealthReport, 503: HealthReport}}
_RANK = {HealthStatus.HEALTHY: 0, HealthStatus.DEGRADED: 1, HealthStatus.UNHEALTHY: 2}


def _now() -> datetime:
    return datetime.now(UTC)


class Health:
    """The state behind one layer's four health routes."""

    def __init__(
        self,
        layer: str,
        dependencies: Dependencies,
        *,
        breakers: Breakers | None = None,
        clock: Callable[[], datetime] = _now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layer = layer
        self._dependencies = dependencies
        self._breakers = breakers
        self._clock = clock
        self._timer = timer
        self._created = timer()
        self.started = False
        """Set by whoever starts the layer, once it serves."""
        self.draining = False
        """Set when the layer stops: it takes nothing new."""

    def live(self) -> HealthReport:
        """The process answers. Looks at nothing else."""
        return self._report(
            "live", HealthStatus.HEALTHY, "the process answers", {}, 0.0
        )

    def startup(self) -> HealthReport:
        """Tell whether the layer has been started."""
        if self.started:
            return self._report("startup", HealthStatus.HEALTHY, "started", {}, 0.0)
        return self._report(
            "startup", HealthStatus.UNHEALTHY, "still starting", {}, 0.0
        )

    async def ready(self) -> HealthReport:
        """Tell whether the layer can do its job; open to all, so it names no reasons."""
        began = self._timer()
        if self.draining or not self.started:
            message = "draining" if self.draining else "still starting"
            return self._report("ready", HealthStatus.UNHEALTHY, message, {}, 0.0)
        seen = await self._observe()
        status, message = judge(seen)
        details: dict[str, object] = {
            "dependencies": {d.name: d.status for d in seen},
        }
        return self._report("ready", status, message, details, self._timer() - began)

    async def detailed(self) -> HealthReport:
        """Name everything; for those with a key."""
        began = self._timer()
        seen = await self._observe()
        status, message = judge(seen)
        if self.draining or not self.started:
            status = HealthStatus.UNHEALTHY
            message = "draining" if self.draining else "still starting"
        details: dict[str, object] = {
            "layer": self.layer,
            "version": __version__,
            "uptime_s": round(self._timer() - self._created, 3),
            "memory_bytes": resident_bytes(),
            "dependencies": seen,
            # None: nobody told; an empty table would claim that there are none.
            "breakers": None if self._breakers is None else dict(self._breakers()),
        }
        return self._report("detailed", status, message, details, self._timer() - began)

    async def _observe(self) -> list[Dependency]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._dependencies()
        except TimeoutError:
            reason = f"no answer within {DEADLINE_S:g} s"
        except Exception:  # noqa: BLE001 - see below
            # The edge of the process: a health reply must come whatever a layer does.
            _log.exception("health_failed", layer=self.layer)
            reason = "looking at the dependencies failed; see the log"
        return [
            Dependency(
                name="dependencies",
                status=HealthStatus.UNHEALTHY,
                message=reason,
                last_observed=self._clock(),
                required=True,
            )
        ]

    def _report(
        self,
        check_type: str,
        status: HealthStatus,
        message: str,
        details: dict[str, object],
        took_s: float,
    ) -> HealthReport:
        return HealthReport(
            status=status,
            check_type=check_type,
            message=message,
            details=details,
            timestamp=self._clock(),
            duration_ms=round(took_s * 1000, 3),
        )


def judge(seen: Sequence[Dependency]) -> tuple[HealthStatus, str]:
    """Return the worst of what was seen.

    What a layer can do without only degrades it; never observed counts as absent.
    """
    worst, reasons = HealthStatus.HEALTHY, []
    for one in seen:
        known = one.status if one.last_observed is not None else None
        status = known or HealthStatus.UNHEALTHY
        if status is HealthStatus.UNHEALTHY and not one.required:
            status = HealthStatus.DEGRADED
        if status is not HealthStatus.HEALTHY:
            reasons.append(f"{one.name}: {known or 'never observed'}")
        worst = max(worst, status, key=_RANK.__getitem__)
    return worst, "; ".join(reasons) or "all that was looked at is well"


def resident_bytes() -> int | None:
    """Return this process's resident memory; None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * getpagesize()


def handlers(health: Health) -> list[HTTPRouteHandler]:
    """Return the four routes."""

    @get("/health/live", opt={"scope": None}, sync_to_thread=False)
    def live() -> HealthReport:
        """Tell that the process answers."""
        return health.live()

    @get("/health/startup", opt=_OPEN, sync_to_thread=False)
    def startup() -> Response[HealthReport]:
        """Tell whether the layer has started: 503 until then."""
        return _reply(health.startup())

    @get("/health/ready", opt=_OPEN)
    async def ready() -> Response[HealthReport]:
        """Tell whether the layer can do its job: 503 when it cannot."""
        return _reply(await health.ready())

    @get("/health/detailed", opt={"scope": ("metrics", "read", "service")})
    async def detailed() -> HealthReport:
        """Name each dependency, when it was last looked at, breakers, uptime, memory."""
        return await health.detailed()

    return [live, startup, ready, detailed]


def _reply(report: HealthReport) -> Response[HealthReport]:
    unhealthy = report.status is HealthStatus.UNHEALTHY
    return Response(report, status_code=503 if unhealthy else 200)
