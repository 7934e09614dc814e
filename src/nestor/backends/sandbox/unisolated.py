"""Commands without isolation, for hosts that have none; chosen only explicitly."""

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path, PurePosixPath

import msgspec

from nestor.backends.sandbox.bubblewrap import environment
from nestor.backends.sandbox.guarded import (
    BRIDGE,
    Launch,
    kill_guarded,
    make_private,
    run_guarded,
)
from nestor.backends.sandbox.machine import certificates
from nestor.backends.sandbox.mounts import checked, refuses
from nestor.backends.sandbox.refusals import Refusals
from nestor.backends.sandbox.ways_out import MODEL_PORT, forwarder_of, reaches_models
from nestor.errors import SandboxError
from nestor.ports.sandbox import Mount, SandboxResult, SandboxRun

_HOME = "/home/agent"
_MODELS = f"http://127.0.0.1:{MODEL_PORT}"


class NoSandbox:
    """The same guardian, limits and lease; the command may do what the worker may.

    There are no mounts: paths inside are rewritten to host paths in ``argv``, ``cwd``,
    ``env`` and ``stdin``, and, but in ``argv``, ``http://127.0.0.1:8092`` to a forwarder's
    address, which adds the task's key as in a sandbox. HOME is a folder in the run folder. ``network``
    hides nothing. A fork bomb is met by killing the command, not by a limit.
    """

    name = "none"

    def __init__(
        self, *, coordinator_url: str, home: Path, cgroups: bool = True
    ) -> None:
        self._coordinator_url = coordinator_url
        self._home = home
        self._cgroups = cgroups

    def probe(self) -> str | None:
        """Nothing is needed, so this always works."""
        return None

    async def run(self, run: SandboxRun) -> SandboxResult:
        """See ``ports.sandbox.Sandbox.run``."""
        place = run.run_dir / "home"
        make_private(place)
        mounts = checked(run, home=self._home)
        swap = Swap(mounts, {_HOME: place.resolve()})
        refusals = Refusals()
        async with AsyncExitStack() as stack:
            if reaches_models(run):
                below = f"/{secrets.token_urlsafe(24)}"
                forwarder = forwarder_of(
                    run, upstream=self._coordinator_url, refusals=refusals, below=below
                )
                port = await stack.enter_async_context(forwarder.on_port())
                swap.address = f"http://127.0.0.1:{port}{below}"
            env = environment() | certificates() | dict(run.env)
            launch = Launch(
                bridge=str(BRIDGE),
                argv=[swap.argument(part) for part in run.argv],
                cwd=swap.text(run.cwd),
                env={name: swap.text(value) for name, value in env.items()},
                stdin=swap.data(run.stdin),
                sandboxed=False,
                writable=[str(mount.host) for mount in mounts if mount.writable],
                cgroups=self._cgroups,
            )
            result = await run_guarded(run, launch)
        return msgspec.structs.replace(result, refused=refusals.texts)

    def refuses_mount(self, host: Path) -> str | None:
        """See ``ports.sandbox.Sandbox.refuses_mount``."""
        return refuses(host, home=self._home)

    async def kill(self, run_dir: Path) -> None:
        """See ``ports.sandbox.Sandbox.kill``."""
        await kill_guarded(run_dir)


class Swap:
    """Rewrites paths inside to host paths; the longest mount wins."""

    def __init__(self, mounts: Sequence[Mount], places: Mapping[str, Path]) -> None:
        """``places``: more paths inside, with the host's folder for each."""
        self._hosts = {str(PurePosixPath(m.inside)): str(m.host) for m in mounts}
        self._hosts |= {inside: str(host) for inside, host in places.items()}
        longest = sorted(self._hosts, key=len, reverse=True)
        names = "|".join(re.escape(name) for name in longest)
        # A whole path component, and not the tail of a longer path.
        self._pattern = re.compile(rf"(?<![\w/.-])(?:{names})(?![\w.-])")
        self.address: str | None = None
        """Of the models: who knows it spends the task's budget."""

    def argument(self, value: str) -> str:
        """Return a part of a command line, which every user of the machine can read.

        Raises ``SandboxError`` for one that would hold ``address``.
        """
        if self.address is not None and _MODELS in value:
            raise SandboxError(
                f"the command line names {_MODELS}, and without isolation every user of"
                " this machine could read there what opens the models to this task:"
                " name it in a file or take it from the environment"
                " (NESTOR_MODEL_BASE_URL)"
            )
        return self.text(value)

    def text(self, value: str) -> str:
        """Return ``value`` as the host needs it."""
        value = self._pattern.sub(lambda found: self._hosts[found[0]], value)
        if self.address is not None:
            value = value.replace(_MODELS, self.address)
        return value

    def data(self, value: bytes) -> bytes:
        """The same for bytes that need not be text."""
        return self.text(value.decode(errors="surrogateescape")).encode(
            errors="surrogateescape"
        )
