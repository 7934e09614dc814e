"""Commands without isolation, for hosts that have none; chosen only explicitly."""

import re
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path, PurePosixPath

from nestor.backends.sandbox.bubblewrap import LISTEN, environment
from nestor.backends.sandbox.forwarder import Forwarder
from nestor.backends.sandbox.guarded import (
    BRIDGE,
    Launch,
    kill_guarded,
    make_private,
    run_guarded,
)
from nestor.backends.sandbox.mounts import checked, refuses
from nestor.errors import SandboxError
from nestor.model.task import Network
from nestor.ports.sandbox import Mount, SandboxResult, SandboxRun


class NoSandbox:
    """The same guardian, limits and lease; the command may do what the worker may.

    There are no mounts: paths inside are rewritten to host paths in ``argv``, ``cwd``,
    ``env`` and ``stdin``, and ``http://127.0.0.1:8092`` to a forwarder's address, which
    adds the task's key as in a sandbox. HOME is a folder in the run folder. ``network``
    hides nothing. A fork bomb is met by killing the command, not by a limit.
    """

    name = "none"

    def __init__(self, *, coordinator_url: str, home: Path) -> None:
        self._coordinator_url = coordinator_url
        self._home = home

    def probe(self) -> str | None:
        """Nothing is needed, so this always works."""
        return None

    async def run(self, run: SandboxRun) -> SandboxResult:
        """See ``ports.sandbox.Sandbox.run``."""
        place = run.run_dir / "home"
        make_private(place)
        swap = _Swap(checked(run, home=self._home), home=place.resolve())
        async with AsyncExitStack() as stack:
            if run.network is Network.COORDINATOR:
                if run.task_key is None:
                    raise SandboxError(
                        f"{run.name}: network coordinator needs a task key"
                    )
                below = f"/{secrets.token_urlsafe(24)}"
                forwarder = Forwarder(
                    upstream=self._coordinator_url,
                    task_key=run.task_key,
                    trace_id=run.trace_id,
                    iteration=run.iteration,
                    below=below,
                )
                port = await stack.enter_async_context(forwarder.on_port())
                swap.address = f"http://127.0.0.1:{port}{below}"
            env = environment() | dict(run.env)
            launch = Launch(
                bridge=str(BRIDGE),
                argv=[swap.text(part) for part in run.argv],
                cwd=swap.text(run.cwd),
                env={name: swap.text(value) for name, value in env.items()},
                stdin=swap.data(run.stdin),
                isolated=False,
            )
            return await run_guarded(run, launch)

    def refuses_mount(self, host: Path) -> str | None:
        """See ``ports.sandbox.Sandbox.refuses_mount``."""
        return refuses(host, home=self._home)

    async def kill(self, run_dir: Path) -> None:
        """See ``ports.sandbox.Sandbox.kill``."""
        await kill_guarded(run_dir)


class _Swap:
    """Rewrites paths inside to host paths; the longest mount wins."""

    def __init__(self, mounts: Sequence[Mount], *, home: Path) -> None:
        self._hosts = {str(PurePosixPath(m.inside)): str(m.host) for m in mounts}
        self._hosts["/home/agent"] = str(home)
        longest = sorted(self._hosts, key=len, reverse=True)
        names = "|".join(re.escape(name) for name in longest)
        # A whole path component, and not the tail of a longer path.
        self._pattern = re.compile(rf"(?<![\w/.-])(?:{names})(?![\w.-])")
        self.address: str | None = None

    def text(self, value: str) -> str:
        """Return ``value`` as the host needs it."""
        value = self._pattern.sub(lambda found: self._hosts[found[0]], value)
        if self.address is not None:
            value = value.replace(f"http://127.0.0.1:{LISTEN}", self.address)
        return value

    def data(self, value: bytes) -> bytes:
        """The same for bytes that need not be text."""
        return self.text(value.decode(errors="surrogateescape")).encode(
            errors="surrogateescape"
        )
