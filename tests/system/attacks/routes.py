"""Every route of the five layers, as their routers have them."""

import asyncio
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from litestar.routes import HTTPRoute
from tests.system import workbench

from nestor.web import proxy
from nestor.web.auth import scopes_of
from nestor.web.client_address import ClientAddresses
from nestor.web.stack import _apps


@dataclass(frozen=True)
class Route:
    """One method of one path, and the scopes that open it; None: all may come."""

    layer: str
    method: str
    path: str
    scopes: tuple[str, ...] | None

    def filled(self, value: str = "x") -> str:
        """Give the path with ``value`` in the place of each parameter."""
        parts = [value if p.startswith("{") else p for p in self.path.split("/")]
        return "/".join(parts)


@cache
def every_route() -> tuple[Route, ...]:
    """Build the applications as ``nestor up`` does, and read their routers."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_read(Path(folder)))


def routes(layer: str) -> list[Route]:
    """Those of one layer."""
    return [route for route in every_route() if route.layer == layer]


async def _read(folder: Path) -> tuple[Route, ...]:
    async with (
        workbench.stack(folder / "home") as nestor,
        proxy.Aidb(("127.0.0.1", 9), nestor.service_key) as upstream,
    ):
        clients = ClientAddresses([])
        proxied = proxy.handlers(upstream, nestor.proxy_limiter, clients)
        return tuple(
            Route(layer, method, route.path_format, scopes_of(handler.opt))
            for layer, app in _apps(nestor, proxied, clients).items()
            for route in app.litestar.routes
            if isinstance(route, HTTPRoute)
            for method, (handler, _) in route.route_handler_map.items()
        )
