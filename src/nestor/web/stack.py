"""``nestor up``: all layers in one process, each on its own port."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from litestar.handlers import HTTPRouteHandler

from nestor.model.network import in_url
from nestor.settings import Settings
from nestor.telemetry.logs import get_logger
from nestor.web import aidb, coordinator, dashboard, learning, proxy, ralph, session
from nestor.web.app import LayerApp, create_app
from nestor.web.client_address import ClientAddresses
from nestor.web.serve import bind, event_loop, serve
from nestor.wiring import Nestor, refuse_if_running, running

log = get_logger(__name__)
LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")


def run(
    settings: Settings,
    *,
    ready: Callable[[dict[str, str]], None],
    stopping: Callable[[Sequence[str]], None] = lambda _: None,
    page_link: Callable[[str, datetime], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. SIGHUP reloads deployments.

    The first of those signals: no more tasks are taken, ``/health/ready`` is 503, and
    running tasks have ``DRAIN_S`` to come to the end of their step, in which all is still
    served, a submit too: what it stores waits for the next start. The second: at once.
    ``ready`` is told ``{layer: URL}`` once every layer answers, ``stopping`` at the first
    signal the ids of running tasks. ``page_link``, when given, is then told a link that signs
    one browser in to the page, and until when: for a terminal only. Raises
    ``Misconfigured`` (a port or the folder is taken) before anything has been made.
    """
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_run(settings, ready, stopping, page_link))


async def _run(
    settings: Settings,
    ready: Callable[[dict[str, str]], None],
    stopping: Callable[[Sequence[str]], None],
    page_link: Callable[[str, datetime], None] | None,
) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, end)
    asked = asyncio.Event()
    had_terminal = _has_terminal()

    def hang_up() -> None:
        # The same signal says that the terminal was closed: then nobody can end us there.
        if had_terminal and not _has_terminal():
            end()
        else:
            asked.set()

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    wanted = {layer: (settings.host, _port(settings, layer)) for layer in LAYERS}
    clients = ClientAddresses(settings.trusted_proxies)
    # A second start on the same folder would find its ports taken: say the cause first.
    refuse_if_running(settings)
    # Then the ports: what cannot be had is said before a file is made.
    sockets = bind(wanted)
    try:
        ports = {layer: sock.getsockname()[1] for layer, sock in sockets.items()}
        host = settings.local_host
        urls = {layer: f"http://{in_url(host)}:{port}" for layer, port in ports.items()}
        async with (
            running(settings, coordinator_url=urls["coordinator"]) as nestor,
            proxy.Aidb(_address(sockets["aidb"]), nestor.service_key) as upstream,
            _reloading(nestor, asked),
        ):
            proxied = proxy.handlers(upstream, nestor.proxy_limiter, clients)

            async def begin() -> None:
                await nestor.ralph.start()
                nestor.folder.write_run_file(ports, datetime.now(UTC), host=host)
                log.debug("ready", **{f"{layer}_port": p for layer, p in ports.items()})
                ready(urls)
                if page_link is not None:
                    link = await nestor.sessions.make_link()
                    url = session.link_url(settings, ports["dashboard"], link.token)
                    page_link(url, link.expires_at)

            apps = _apps(nestor, proxied, clients)
            try:
                async with _draining(nestor, apps, stop, hurry, stopping) as drained:
                    await serve(apps, sockets, ready=begin, stop=drained, hurry=hurry)
            finally:
                nestor.folder.remove_run_file()
    finally:
        for sock in sockets.values():
            sock.close()


@asynccontextmanager
async def _draining(
    nestor: Nestor,
    apps: Mapping[str, LayerApp],
    stop: asyncio.Event,
    hurry: asyncio.Event,
    stopping: Callable[[Sequence[str]], None],
) -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set once the layers may close.

    Until then agents that finish their step still reach their model.
    """
    drained = asyncio.Event()

    async def drain() -> None:
        await stop.wait()
        for app in apps.values():
            app.unready()
        stopping(await nestor.ralph.drain(0))
        steps = asyncio.create_task(nestor.ralph.drain(nestor.settings.drain_s))
        second = asyncio.create_task(hurry.wait())
        try:
            await asyncio.wait({steps, second}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (steps, second):
                task.cancel()
            await asyncio.gather(steps, second, return_exceptions=True)

    async def drain_and_tell() -> None:
        try:
            await drain()
        finally:
            drained.set()  # whatever broke: the process ends

    task = asyncio.create_task(drain_and_tell(), name="drain")
    try:
        yield drained
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _reloading(nestor: Nestor, asked: asyncio.Event) -> AsyncIterator[None]:
    """Reload each time it is asked for, one after the other."""

    async def forever() -> None:
        while True:
            await asked.wait()
            asked.clear()
            try:
                await nestor.reload()
            except Exception:
                # The edge of a task that nobody awaits: the next one may be better.
                log.exception("reload_broke")

    task = asyncio.create_task(forever(), name="reload")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _has_terminal() -> bool:
    """Tell whether there is a terminal that a person may close."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _apps(
    nestor: Nestor, proxied: Sequence[HTTPRouteHandler], clients: ClientAddresses
) -> Mapping[str, LayerApp]:
    return {
        "dashboard": create_app(
            "dashboard",
            nestor,
            [*dashboard.handlers(clients=clients), *proxied],
            dependencies=nestor.dependencies,
            refuse_target=proxy.refuse_target,
        ),
        "ralph": create_app(
            "ralph", nestor, ralph.handlers(), dependencies=nestor.ralph.dependencies
        ),
        "aidb": create_app(
            "aidb", nestor, aidb.handlers(), dependencies=nestor.aidb.dependencies
        ),
        "coordinator": create_app(
            "coordinator",
            nestor,
            coordinator.handlers(),
            dependencies=nestor.coordinator.dependencies,
        ),
        "learning": create_app(
            "learning",
            nestor,
            learning.handlers(),
            dependencies=nestor.telemetry_health,
        ),
    }


def _port(settings: Settings, layer: str) -> int:
    port: int = getattr(settings, f"{layer}_port")
    return port


def _address(sock: socket.socket) -> tuple[str, int]:
    host, port, *_ = sock.getsockname()
    return str(host), int(port)
