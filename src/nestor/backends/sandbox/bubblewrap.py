"""Commands in bubblewrap: namespaces of their own and an allow-list of the file system."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path

import msgspec

from nestor.backends.sandbox.guarded import BRIDGE, Launch, kill_guarded, run_guarded
from nestor.backends.sandbox.machine import certificates
from nestor.backends.sandbox.mounts import checked, refuses, user_homes
from nestor.backends.sandbox.networks import Reach
from nestor.backends.sandbox.refusals import Refusals
from nestor.backends.sandbox.ways_out import (
    MODEL_PORT,
    PROXY_PORT,
    is_networked,
    on_sockets,
    proxy_environment,
    reaches_models,
)
from nestor.errors import SandboxError
from nestor.model.task import Network
from nestor.ports.sandbox import SandboxResult, SandboxRun

_SOCKETS = ("/run/nestor/coordinator.sock", "/run/nestor/egress.sock")
_BRIDGE = "/run/nestor/bridge.py"
_HOME = "/home/agent"
ETC = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "os-release",
    "pki/ca-trust", "pki/tls", "protocols", "services", "ssl/ca-bundle.pem",
    "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf", "terminfo",
    "debian_version", "redhat-release", "lsb-release", "java-17-openjdk", "java-21-openjdk",
)  # fmt: skip
"""What programs need of /etc. Nothing that may hold a secret."""
ETC_NETWORK = ("pip.conf", "npmrc", "host.conf", "gai.conf")
"""Package managers' system-wide configuration: only where there is a network."""
SYSTEM = ("bin", "sbin", "lib", "lib64", "lib32")
"""Folders of / beside /usr that hold programs."""
_PROC_HIDDEN = ("acpi", "scsi")
_PROC_EMPTY = ("kcore", "keys", "timer_list", "kallsyms", "mtrr", "config.gz")
_USERS = """\
root:x:0:0:root:/root:/usr/sbin/nologin
agent:x:1000:1000:agent:/home/agent:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP = "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"
_HOSTS = "127.0.0.1 localhost nestor\n::1 localhost\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
_FILES = {
    "passwd": _USERS,
    "group": _GROUP,
    "hosts": _HOSTS,
    "nsswitch.conf": _NSSWITCH,
}
_RESOLV = "nameserver 10.0.2.3\n"
"""slirp4netns's own resolver, which asks the host's."""
_TMPFS = ("/tmp", _HOME, "/dev/shm")  # noqa: S108 - the sandbox's own
_TMP_BYTES = 4 * 1024**3
_SHM_BYTES = 256 * 1024**2
_REMEDY = "install bubblewrap and allow user namespaces, or set NESTOR_SANDBOX=landlock (weaker), or none to run agents without isolation"

Arguments = list[str | dict[str, object]]


class BubblewrapSandbox:
    """Runs commands in bubblewrap.

    Network ``full`` is a namespace of its own behind slirp4netns: the host's own
    addresses and private networks cannot be reached.
    """

    name = "bubblewrap"

    def __init__(
        self,
        *,
        coordinator_url: str,
        home: Path,
        private_hosts: Sequence[str] = (),
        cgroups: bool = True,
    ) -> None:
        """``private_hosts``: private addresses or networks that networks may lead to.

        ``cgroups``: have the kernel hold memory limits where it can.
        """
        self._coordinator_url = coordinator_url
        self._home = home
        self._private_hosts = private_hosts
        self._cgroups = cgroups
        self._works = False

    def probe(self) -> str | None:
        """Say why no command can be isolated here, with the remedy; None when it works."""
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            return f"bubblewrap is not installed; {_REMEDY}"
        argv = [bwrap, *_namespaces(Network.NONE), "--ro-bind", "/", "/", "--proc",
                "/proc", "--dev", "/dev", "--", "/bin/true"]  # fmt: skip
        try:
            done = subprocess.run(
                argv, capture_output=True, timeout=10, check=False, env={}
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bubblewrap does not start: {error}; {_REMEDY}"
        if done.returncode == 0:
            return None
        return f"{done.stderr.decode(errors='replace').strip()}; {_REMEDY}"

    async def run(self, run: SandboxRun) -> SandboxResult:
        """See ``ports.sandbox.Sandbox.run``."""
        mounts = checked(run, home=self._home)
        if not self._works:
            if why := await asyncio.to_thread(self.probe):
                raise SandboxError(why)
            self._works = True
        arguments: Arguments = [shutil.which("bwrap") or "bwrap"]
        arguments += _namespaces(run.network)
        arguments += _system(run)
        for mount in mounts:
            arguments += ["--bind" if mount.writable else "--ro-bind"]
            arguments += [str(mount.host), mount.inside]
        env = environment() | certificates()
        refusals = Refusals()
        reach = None
        if run.network is not Network.NONE:
            reach = Reach(self._private_hosts)
        async with AsyncExitStack() as stack:
            arguments += ["--dir", "/run/nestor", "--ro-bind", str(BRIDGE), _BRIDGE]
            ports: list[tuple[int, str]] = []
            if reach is not None and reaches_models(run):
                ways = on_sockets(
                    run,
                    upstream=self._coordinator_url,
                    home=self._home,
                    reach=reach,
                    refusals=refusals,
                )
                for path, inside in zip(
                    await stack.enter_async_context(ways), _SOCKETS, strict=True
                ):
                    arguments += ["--ro-bind", str(path), inside]
                ports = list(zip((MODEL_PORT, PROXY_PORT), _SOCKETS, strict=True))
            if run.network is Network.COORDINATOR:
                env |= proxy_environment(f"http://127.0.0.1:{PROXY_PORT}")
            arguments += ["--remount-ro", "/", "--info-fd", {"info": True}]
            launch = Launch(
                prefix=arguments,
                bridge=_BRIDGE,
                argv=run.argv,
                cwd=run.cwd,
                env=env | dict(run.env),
                stdin=run.stdin,
                sandboxed=True,
                namespaced=True,
                nproc=run.processes,
                ports=ports,
                tmpfs=_TMPFS,
                writable=[str(mount.host) for mount in mounts if mount.writable],
                cgroups=self._cgroups,
                slirp4netns=_slirp4netns() if run.network is Network.FULL else None,
                unreachable=reach.unreachable if reach else (),
                reachable=reach.reachable if reach else (),
            )
            result = await run_guarded(run, launch)
        return msgspec.structs.replace(result, refused=refusals.texts)

    def refuses_mount(self, host: Path) -> str | None:
        """See ``ports.sandbox.Sandbox.refuses_mount``."""
        return refuses(host, home=self._home)

    async def kill(self, run_dir: Path) -> None:
        """See ``ports.sandbox.Sandbox.kill``."""
        await kill_guarded(run_dir)


def environment() -> dict[str, str]:
    """Return what every command finds in its environment, before what the run adds."""
    path = ["/setup/bin", "/setup/venv/bin", f"{sys.base_prefix}/bin",
            "/usr/local/bin", "/usr/bin", "/bin"]  # fmt: skip
    return {
        "PATH": ":".join(path),
        "HOME": _HOME,
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
        "XDG_CACHE_HOME": f"{_HOME}/.cache",
        "XDG_CONFIG_HOME": f"{_HOME}/.config",
        "XDG_DATA_HOME": f"{_HOME}/.local/share",
        "XDG_STATE_HOME": f"{_HOME}/.local/state",
    }


def _namespaces(network: Network) -> list[str]:
    arguments = [
        "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--unshare-net", "--uid", "1000", "--gid", "1000",
        "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
        "--hostname", "nestor",
    ]  # fmt: skip
    if network is not Network.FULL:
        # Not there: slirp4netns has to join the user namespace that owns the network.
        arguments.append("--disable-userns")
    return arguments


def _system(run: SandboxRun) -> Arguments:
    """Return the read-only system parts, and the private places to write."""
    arguments: Arguments = [*_host_system(is_networked(run))]
    full = run.network is Network.FULL
    for name, text in (_FILES | {"resolv.conf": _RESOLV} if full else _FILES).items():
        arguments += ["--ro-bind-data", {"data": text}, f"/etc/{name}"]
    prefix = python_prefix()
    if not prefix.is_relative_to("/usr"):
        arguments += ["--ro-bind", str(prefix), str(prefix)]
    return [*arguments, *_kernel(), *_private()]


@cache
def _host_system(networked: bool) -> tuple[str, ...]:
    """Return the host's parts that are there; looked at once, it would be half of a run's cost."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for name in (*ETC, *(ETC_NETWORK if networked else ())):
        path = Path("/etc", name)
        if path.exists():
            arguments += ["--ro-bind", str(path.resolve()), str(path)]
    return tuple(arguments)


def python_prefix() -> Path:
    """Return where Python lies. Raises ``SandboxError`` when a home lies in it."""
    prefix = Path(sys.base_prefix).resolve()
    if any(person.is_relative_to(prefix) for person in user_homes()):
        raise SandboxError(f"Python's prefix {prefix} holds the user's home")
    return prefix


@cache
def _kernel() -> tuple[str, ...]:
    """Return /proc and /dev, without what would be the host's to change or tell."""
    # As root, /proc/sys obeys the user id alone and would be the host's to write.
    arguments = ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    for name in _PROC_HIDDEN:
        if Path("/proc", name).is_dir():
            arguments += ["--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}"]
    arguments += ["--dev", "/dev"]
    for name in _PROC_EMPTY:
        if Path("/proc", name).exists():
            arguments += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    arguments += ["--size", str(_SHM_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    return (*arguments, "--remount-ro", "/dev")


def _private() -> list[str]:
    arguments = ["--symlink", "/tmp", "/var/tmp"]  # noqa: S108
    for place in ("/tmp", _HOME):  # noqa: S108
        arguments += ["--size", str(_TMP_BYTES), "--tmpfs", place]
    for name in (".cache", ".config", ".local/share", ".local/state"):
        arguments += ["--dir", f"{_HOME}/{name}"]
    return arguments


def _slirp4netns() -> str:
    if found := shutil.which("slirp4netns"):
        return found
    raise SandboxError(
        "network full needs slirp4netns: install it, or use network coordinator"
    )
