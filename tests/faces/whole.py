"""Ralph, AIDB and the Coordinator over real parts, each on a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr
from tests.faces.shell import Reply, tell
from tests.system.workbench import NOBODY

from nestor.settings import Settings
from nestor.web import aidb, coordinator, ralph
from nestor.web.app import LayerApp, create_app
from nestor.web.serve import bind, serve
from nestor.wiring import Nestor, running

ADMIN_KEY = "test-admin-secret-0123456789"


@dataclass
class Whole:
    """What runs, and one client of it."""

    nestor: Nestor
    apps: dict[str, LayerApp]
    ports: dict[str, int]

    async def call(
        self,
        layer: str,
        method: str,
        path: str,
        *,
        key: str = ADMIN_KEY,
        **how: Any,
    ) -> Reply:
        url = f"http://127.0.0.1:{self.ports[layer]}{path}"
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, **how) as reply,
        ):
            return Reply(reply.status, reply.headers.copy(), await reply.read())

    async def key(self, *scopes: str) -> str:
        """Make a key with these scopes."""
        body = {"name": "-".join(scopes), "scopes": list(scopes)}
        made = await self.call("coordinator", "POST", "/keys", json=body)
        assert made.status == 201, made.body
        secret: str = made.json["key"]
        return secret


@asynccontextmanager
async def whole(home: Path, *, works: bool = False, **how: Any) -> AsyncIterator[Whole]:
    """``works``: tasks are taken as well."""
    settings = Settings(home=home, api_key=SecretStr(ADMIN_KEY), **how)
    async with running(settings, coordinator_url=NOBODY) as nestor:
        if works:
            await nestor.ralph.start()
        apps = {
            "ralph": create_app(
                "ralph", nestor, ralph.handlers(), dependencies=nestor.dependencies
            ),
            "aidb": create_app(
                "aidb", nestor, aidb.handlers(), dependencies=nestor.dependencies
            ),
            "coordinator": create_app(
                "coordinator",
                nestor,
                coordinator.handlers(),
                dependencies=nestor.dependencies,
            ),
        }
        sockets = bind(dict.fromkeys(apps, ("127.0.0.1", 0)))
        ports = {layer: one.getsockname()[1] for layer, one in sockets.items()}
        stop, told = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(serve(apps, sockets, ready=tell(told), stop=stop))
        await told.wait()
        try:
            yield Whole(nestor, apps, ports)
        finally:
            stop.set()
            await serving
