"""What a run may reach beyond its sandbox, and what became of the attempts."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from nestor.backends.sandbox.egress import Egress
from nestor.backends.sandbox.forwarder import Forwarder
from nestor.backends.sandbox.networks import Reach
from nestor.backends.sandbox.questions import Questions
from nestor.backends.sandbox.refusals import Refusals
from nestor.errors import SandboxError
from nestor.model.task import Network
from nestor.ports.sandbox import SandboxRun

MODEL_PORT, PROXY_PORT = 8092, 8093
"""Inside: the Coordinator's port, and the HTTPS proxy's."""


def forwarder_of(
    run: SandboxRun, *, upstream: str, refusals: Refusals, below: str = ""
) -> Forwarder:
    """Make the forwarder of a run. Raises ``SandboxError`` without a key."""
    if run.task_key is None:
        raise SandboxError(f"{run.name}: network coordinator needs a task key")
    return Forwarder(
        upstream=upstream,
        task_key=run.task_key,
        trace_id=run.trace_id,
        iteration=run.iteration,
        below=below,
        refusals=refusals,
        questions=Questions(run.ask) if run.ask else None,
    )


@asynccontextmanager
async def on_sockets(
    run: SandboxRun, *, upstream: str, home: Path, reach: Reach, refusals: Refusals
) -> AsyncIterator[tuple[Path, Path]]:
    """Serve network ``coordinator`` on two Unix sockets: the forwarder's, the proxy's."""
    async with AsyncExitStack() as stack:
        forwarder = forwarder_of(run, upstream=upstream, refusals=refusals)
        models = await stack.enter_async_context(forwarder.on_socket(home))
        egress = Egress(hosts=run.hosts, reach=reach, refusals=refusals)
        place = models.with_name("egress.sock")
        yield models, await stack.enter_async_context(egress.on_socket(place))


def proxy_environment(address: str) -> dict[str, str]:
    """Return the variables by which programs find the proxy, and nothing else through it."""
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
    local = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    # Without it node's own fetch does not look at the others.
    return dict.fromkeys(names, address) | local | {"NODE_USE_ENV_PROXY": "1"}


def reaches_models(run: SandboxRun) -> bool:
    """Tell whether the Coordinator is reached from inside; the whole network has it too."""
    with_key = run.network is Network.FULL and run.task_key is not None
    return with_key or run.network is Network.COORDINATOR


def is_networked(run: SandboxRun) -> bool:
    """Tell whether a run reaches more than models, so that package managers need their settings."""
    return run.network is Network.FULL or bool(run.hosts)
