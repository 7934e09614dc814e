"""The deployments that may be asked, and in which order."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from nestor.coordinator.upstream import Upstream
from nestor.model.health import Dependency, HealthStatus
from nestor.model.routing import Deployment, Kind, Side
from nestor.ports.model_client import ModelClient
from nestor.resilience.circuit_breaker import CircuitBreaker
from nestor.telemetry.logs import get_logger

CONFIGURATION = "nestor.toml"
ERROR_RATIO, SLOW_RATIO, MIN_CALLS = 0.5, 0.8, 10
"""A deployment's breaker opens when half of its calls within a minute failed, or four in
five were slow, of at least ten."""
_log = get_logger("nestor.coordinator")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Pool:
    """Holds one ``Upstream`` a deployment. For one event loop.

    ``draw`` gives numbers from 0 up to 1; ``timer`` seconds of a clock that never goes
    back; ``now`` the wall clock.
    """

    def __init__(
        self,
        *,
        draw: Callable[[], float] = random.random,
        now: Callable[[], datetime] = _utc_now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._draw = draw
        self._now = now
        self._timer = timer
        self._upstreams: dict[str, Upstream] = {}
        self._asked_by: dict[str, list[Upstream]] = {}
        self._on_side: dict[Side, list[Upstream]] = {side: [] for side in Side}
        """By every name that a caller may say."""
        self._sides: frozenset[Side] = frozenset()
        self._closing: set[asyncio.Task[None]] = set()
        self._leaving: set[Upstream] = set()
        self._refused: Dependency | None = None

    def load(self, pairs: Sequence[tuple[Deployment, ModelClient]]) -> None:
        """Take these deployments, and no others, from now on.

        One that is unchanged keeps its upstream, with what its breaker knows. Of the
        others the client is closed once its last call has ended. The clients belong to
        the pool.
        """
        old, new = self._upstreams, dict[str, Upstream]()
        for deployment, _ in pairs:
            held = old.get(deployment.name)
            if held is not None and held.deployment == deployment:
                new[deployment.name] = held
        for upstream in old.values():
            if new.get(upstream.deployment.name) is not upstream:
                self._leaving.add(upstream)
                upstream.retire()
        order = dict[str, Upstream]()
        for deployment, client in pairs:
            name = deployment.name
            held = new.get(name)
            order[name] = held or self._upstream(deployment, client)
            if held is not None and held.client is not client:
                self._close(client)
        self._upstreams = order
        self._asked_by = {}
        self._on_side = {
            side: [one for one in order.values() if one.deployment.side is side]
            for side in Side
        }
        for upstream in order.values():
            if upstream.deployment.model not in order:
                same = self._asked_by.setdefault(upstream.deployment.model, [])
                same.append(upstream)
        # Who says a deployment's name means that one alone.
        self._asked_by |= {name: [upstream] for name, upstream in order.items()}
        chat = [d for d, _ in pairs if d.kind is Kind.CHAT]
        self._sides = frozenset(d.side for d in chat)
        self._refused = None

    def refuse(self, why: str) -> None:
        """Note that a new configuration was not taken over; ``load`` forgets it."""
        self._refused = Dependency(
            name=CONFIGURATION,
            status=HealthStatus.DEGRADED,
            message=f"{CONFIGURATION} was not taken over: {why}",
            last_observed=self._now(),
        )

    async def close(self) -> None:
        """Close every client, also of those that were replaced."""
        for upstream in (*self._upstreams.values(), *self._leaving):
            self._close(upstream.client)
        self._leaving.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    @property
    def upstreams(self) -> Sequence[Upstream]:
        """All, in the order of the configuration."""
        return tuple(self._upstreams.values())

    @property
    def sides(self) -> frozenset[Side]:
        """Where there is a deployment to chat with."""
        return self._sides

    def named(
        self, model: str, *, kind: Kind = Kind.CHAT, tags: Sequence[str] = ()
    ) -> list[Upstream]:
        """Return who is asked for ``model``, the first first; [] where nobody has the name.

        The name of a deployment means that one, the name of a model each that has it.
        """
        asked = self._asked_by.get(model)
        if asked is None:
            return []
        if len(asked) == 1 and not asked[0].deployment.fallbacks and not tags:
            return asked[:] if asked[0].deployment.kind is kind else []
        return self._in_order(asked, kind, tags, None)

    def of_side(
        self,
        side: Side,
        *,
        kind: Kind = Kind.CHAT,
        tags: Sequence[str] = (),
        across: bool = False,
    ) -> list[Upstream]:
        """Return who is asked where ``side`` is wanted, the first first.

        Fallbacks lead to the other side only ``across``: who says ``local`` may mean that
        the text must not leave the machine.
        """
        asked = self._on_side[side]
        if len(asked) == 1 and not asked[0].deployment.fallbacks and not tags:
            return asked[:] if asked[0].deployment.kind is kind else []
        return self._in_order(asked, kind, tags, None if across else side)

    async def dependencies(self) -> list[Dependency]:
        """What the last calls came to, and whether the configuration is the file's; asks nobody."""
        refused = [self._refused] if self._refused else []
        return [*(u.dependency() for u in self._upstreams.values()), *refused]

    def breakers(self) -> dict[str, str]:
        """State by name, for health."""
        return {u.breaker.name: u.breaker.state.value for u in self._upstreams.values()}

    def stats(self) -> list[dict[str, Any]]:
        """Each deployment as ``/stats`` shows it."""
        return [upstream.stats() for upstream in self._upstreams.values()]

    def _in_order(
        self,
        asked: Iterable[Upstream],
        kind: Kind,
        tags: Sequence[str],
        side: Side | None,
    ) -> list[Upstream]:
        """Draw by weight, the refused last, and put each one's fallbacks behind it."""
        wanted = set(tags)

        def fits(upstream: Upstream) -> bool:
            it = upstream.deployment
            return (
                it.kind is kind
                and (side is None or it.side is side)
                and wanted.issubset(it.tags)
            )

        found: list[Upstream] = []
        drawn = self._drawn([one for one in asked if fits(one)])
        if refused := [one for one in drawn if one.breaker.refuses]:
            # Among equals. A fallback does not take the place of whom it is for: that one
            # is passed over in its turn, so that the caller is told.
            drawn = [*(one for one in drawn if one not in refused), *refused]
        todo = drawn[::-1]
        seen: set[Upstream] = set()
        while todo:
            upstream = todo.pop()
            if upstream in seen:
                continue
            seen.add(upstream)
            if fits(upstream):
                found.append(upstream)
            following = map(self._upstreams.get, upstream.deployment.fallbacks)
            todo += [one for one in following if one is not None][::-1]
        return found

    def _drawn(self, asked: list[Upstream]) -> list[Upstream]:
        """Order at random, each as likely first as its weight; those of weight 0 last."""
        if len(asked) < 2:  # noqa: PLR2004 - nothing to draw
            return asked
        left = [one for one in asked if one.deployment.weight]
        last = [one for one in asked if not one.deployment.weight]
        drawn: list[Upstream] = []
        while left:
            at = self._draw() * sum(one.deployment.weight for one in left)
            for chosen in left:
                at -= chosen.deployment.weight
                if at < 0:
                    break
            drawn.append(chosen)
            left.remove(chosen)
        return drawn + last

    def _upstream(self, deployment: Deployment, client: ModelClient) -> Upstream:
        breaker = CircuitBreaker(
            f"model:{deployment.name}",
            error_ratio=ERROR_RATIO,
            slow_ratio=SLOW_RATIO if deployment.slow_s is not None else None,
            min_calls=MIN_CALLS,
            clock=self._timer,
        )
        return Upstream(
            deployment, client, breaker, now=self._now, on_idle=self._on_idle
        )

    def _on_idle(self, upstream: Upstream) -> None:
        if upstream in self._leaving:
            self._leaving.discard(upstream)
            self._close(upstream.client)

    def _close(self, client: ModelClient) -> None:
        task = asyncio.create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.warning("model_client_not_closed", error=repr(error))
