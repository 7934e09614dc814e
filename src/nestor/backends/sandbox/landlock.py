"""Commands under Landlock and seccomp, for hosts where bubblewrap does not work."""

import json
import platform
import secrets
import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from nestor.backends.sandbox import confine
from nestor.backends.sandbox.bubblewrap import (
    ETC,
    ETC_NETWORK,
    SYSTEM,
    environment,
    python_prefix,
)
from nestor.backends.sandbox.egress import Egress
from nestor.backends.sandbox.guarded import (
    BRIDGE,
    HERE,
    PYTHON,
    Launch,
    kill_guarded,
    make_private,
    run_guarded,
)
from nestor.backends.sandbox.machine import certificates
from nestor.backends.sandbox.mounts import checked, refuses
from nestor.backends.sandbox.networks import Reach
from nestor.backends.sandbox.refusals import Refusals
from nestor.backends.sandbox.unisolated import Swap
from nestor.backends.sandbox.ways_out import (
    forwarder_of,
    is_networked,
    proxy_environment,
    reaches_models,
)
from nestor.errors import SandboxError
from nestor.model.task import Network
from nestor.ports.sandbox import Mount, SandboxResult, SandboxRun

NEEDED_ABI = 4
"""The first that knows TCP; Linux 6.7."""
_ETC = ("group", "hosts", "nsswitch.conf", "passwd")
_DEVICES = ("full", "null", "random", "urandom", "zero")
_PLACES = {"/home/agent": "home", "/tmp": "tmp"}  # noqa: S108 - folders of the run
_REMEDY = "use bubblewrap, or set NESTOR_SANDBOX=none to run agents without isolation"


class LandlockSandbox:
    """Runs commands under rules of the kernel that no command can take off again.

    Files are written below the writable mounts only and read from an allow-list, at their
    host paths: as without isolation, paths inside are rewritten in ``argv``, ``cwd``,
    ``env`` and ``stdin``. Of sockets there is TCP to the forwarder and to the HTTPS proxy.
    Root has no capabilities. Weaker than bubblewrap: the list of the host's processes and
    their command lines can be read; modes and times of files of the same user can be
    changed, wherever they lie; the two ports may be connected to on any host; before
    Linux 6.12 processes of the same user can be signalled. No server can be started, and
    ``/dev/shm`` cannot be written.
    Network ``full`` is the proxy for every public host, so no UDP and no other protocol.
    """

    name = "landlock"

    def __init__(
        self,
        *,
        coordinator_url: str,
        home: Path,
        private_hosts: Sequence[str] = (),
        cgroups: bool = True,
    ) -> None:
        """See ``BubblewrapSandbox``."""
        self._coordinator_url = coordinator_url
        self._home = home
        self._private_hosts = private_hosts
        self._cgroups = cgroups

    def probe(self) -> str | None:
        """Say why no command can be isolated here, with the remedy; None when it works."""
        if platform.machine() not in confine.MACHINES:
            return f"Landlock is not used on {platform.machine()}; {_REMEDY}"
        found = confine.abi()
        if found < NEEDED_ABI:
            has = f"version {found}" if found else "none"
            return f"the kernel's Landlock is {has}, {NEEDED_ABI} is needed (Linux 6.7); {_REMEDY}"
        argv = [*self._confined([], [], []), "/bin/true"]
        try:
            done = subprocess.run(
                argv, capture_output=True, timeout=10, check=False, env={}
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"Landlock does not work: {error}; {_REMEDY}"
        if done.returncode == 0:
            return None
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"Landlock does not work: {''.join(said)}; {_REMEDY}"

    async def run(self, run: SandboxRun) -> SandboxResult:
        """See ``ports.sandbox.Sandbox.run``."""
        mounts = checked(run, home=self._home)
        if confine.abi() < NEEDED_ABI or platform.machine() not in confine.MACHINES:
            raise SandboxError(self.probe() or _REMEDY)
        places = {inside: run.run_dir / name for inside, name in _PLACES.items()}
        for place in places.values():
            make_private(place)
        swap = Swap(mounts, {inside: at.resolve() for inside, at in places.items()})
        refusals, ports = Refusals(), []
        # Git takes what it may not read for an error, npm and pip do not.
        env = environment() | certificates() | {"GIT_CONFIG_NOSYSTEM": "1"}
        async with AsyncExitStack() as stack:
            if reaches_models(run):
                below = f"/{secrets.token_urlsafe(24)}"
                forwarder = forwarder_of(
                    run, upstream=self._coordinator_url, refusals=refusals, below=below
                )
                port = await stack.enter_async_context(forwarder.on_port())
                swap.address = f"http://127.0.0.1:{port}{below}"
                ports.append(port)
            if run.network is not Network.NONE:
                password = secrets.token_urlsafe(24)
                egress = Egress(
                    hosts=None if run.network is Network.FULL else run.hosts,
                    reach=Reach(self._private_hosts),
                    refusals=refusals,
                    password=password,
                )
                port = await stack.enter_async_context(egress.on_port())
                env |= proxy_environment(f"http://nestor:{password}@127.0.0.1:{port}")
                ports.append(port)
            env = {
                name: swap.text(value) for name, value in (env | dict(run.env)).items()
            }
            write = [m.host for m in mounts if m.writable]
            write += [place.resolve() for place in places.values()]
            argv = [swap.argument(part) for part in run.argv]
            launch = Launch(
                bridge=str(BRIDGE),
                argv=[*self._confined(_readable(run, mounts), write, ports), *argv],
                cwd=swap.text(run.cwd),
                env={confine.VEILED + name: value for name, value in env.items()},
                stdin=swap.data(run.stdin),
                sandboxed=True,
                writable=[str(path) for path in write],
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

    @staticmethod
    def _confined(
        read: Sequence[Path], write: Sequence[Path], ports: Sequence[int]
    ) -> list[str]:
        """Return the argv that a command is put behind."""
        rules = {
            "read": [str(path) for path in (*read, *_system())],
            "write": [str(path) for path in (*write, *_devices())],
            "ports": list(ports),
        }
        program = str(HERE / "confine.py")
        return [PYTHON, "-I", "-S", program, json.dumps(rules)]


def _system() -> list[Path]:
    found = [Path("/usr"), Path("/proc"), *(Path("/", name) for name in SYSTEM)]
    found += [Path("/etc", name) for name in (*ETC, *_ETC)]
    return [*found, python_prefix()]


def _devices() -> list[Path]:
    return [Path("/dev", name) for name in _DEVICES]


def _readable(run: SandboxRun, mounts: Sequence[Mount]) -> list[Path]:
    found = [mount.host for mount in mounts]
    if is_networked(run):
        found += [Path("/etc", name) for name in (*ETC_NETWORK, "resolv.conf")]
    return found
