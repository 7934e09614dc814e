"""What the proxy tells of an AIDB that cannot look at what it needs."""

import asyncio

from tests.faces.proxied import dashboard_over
from tests.faces.shell import Reply, Served, SmallNestor, serving

from nestor.model.health import Dependency
from nestor.web.app import create_app


async def never() -> list[Dependency]:
    await asyncio.Event().wait()
    return []


async def test_that_a_dependency_hangs_is_passed_on(nestor: SmallNestor) -> None:
    aidb = create_app("aidb", nestor, [], dependencies=never)
    async with serving(nestor, aidb) as sick, dashboard_over(nestor, sick.port) as page:
        for path, status in (("ready", 503), ("detailed", 200)):
            answers = await both(sick, page, path)
            assert [reply.status for reply in answers] == [status, status], path
            assert answers[1].json["status"] == "unhealthy"


async def both(sick: Served, page: Served, path: str) -> tuple[Reply, Reply]:
    return await asyncio.gather(
        sick.call("GET", f"/health/{path}"), page.call("GET", f"/aidb/health/{path}")
    )
