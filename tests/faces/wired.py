"""A small service on a server whose deadlines and bounds a test chooses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faces.shell import Served, SmallNestor, small_app, tell

from nestor.web.serve import bind, serve
from nestor.web.wire import MAX_CONNECTIONS, Deadlines

SOON = Deadlines(
    head_s=0.5, body_idle_s=0.5, write_idle_s=0.8, keep_alive_s=1.5, sweep_s=0.05
)
LATE = Deadlines(
    head_s=60, body_idle_s=60, write_idle_s=60, keep_alive_s=60, sweep_s=0.05
)


@asynccontextmanager
async def wired(
    nestor: SmallNestor,
    deadlines: Deadlines = SOON,
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncIterator[Served]:
    app = small_app(nestor)
    stop, told = asyncio.Event(), asyncio.Event()
    sockets = bind({app.layer: ("127.0.0.1", 0)})
    port = sockets[app.layer].getsockname()[1]
    task = asyncio.create_task(
        serve(
            {app.layer: app}, sockets, ready=tell(told), stop=stop, drain_s=2,
            deadlines=deadlines, max_connections=max_connections,
        )
    )  # fmt: skip
    await told.wait()
    try:
        yield Served(nestor, app, port, stop, task)
    finally:
        nestor.hold.set()
        stop.set()
        await task


def kept(shell: Served, line: str, *more: str, key: str | None = "") -> bytes:
    """A head that leaves the connection open."""
    given = {} if key == "" else {"key": key}
    return shell.head(line, *more, **given).replace(b"Connection: close\r\n", b"")


async def began(shell: Served, what: str = "slow began") -> None:
    async with asyncio.timeout(10):
        while what not in shell.nestor.done:
            await asyncio.sleep(0.01)
