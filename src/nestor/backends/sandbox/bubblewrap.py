"""Commands in bubblewrap: namespaces of their own and an allow-list of the file system."""

import asyncio
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from nestor.backends.sandbox.forwarder import Forwarder
from nestor.backends.sandbox.guarded import BRIDGE, Launch, kill_guarded, run_guarded
from nestor.backends.sandbox.mounts import checked, refuses, user_homes
from nestor.errors import SandboxError
from nestor.model.task import Network
from nestor.ports.sandbox import SandboxResult, SandboxRun

LISTEN = 8092
"""The Coordinator's port, inside."""
_SOCKET = "/run/nestor/coordinator.sock"
_BRIDGE = "/run/nestor/bridge.py"
_HOME = "/home/agent"
_ETC = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "os-release",
    "pki/tls", "protocols", "services", "ssl/certs", "ssl/openssl.cnf", "terminfo",
    "java-17-openjdk", "java-21-openjdk",
)  # fmt: skip
"""What programs need of /etc. Nothing that may hold a secret."""
_ETC_NETWORK = ("pip.conf", "npmrc", "host.conf", "gai.conf")
"""Package managers' system-wide configuration: only where there is a network."""
_SYSTEM = ("bin", "sbin", "lib", "lib64", "lib32")
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
_TMP_BYTES = 4 * 1024**3
_SHM_BYTES = 256 * 1024**2
_REMEDY = "install bubblewrap and allow user namespaces, or set NESTOR_SANDBOX=none to run agents without isolation"

Arguments = list[str | dict[str, object]]


class BubblewrapSandbox:
    """Runs commands in bubblewrap.

    Network ``full`` is a namespace of its own behind slirp4netns: the host's loopback
    cannot be reached, its other addresses and private networks can.
    """

    name = "bubblewrap"

    def __init__(self, *, coordinator_url: str, home: Path) -> None:
        self._coordinator_url = coordinator_url
        self._home = home
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
        arguments += _system(run.network)
        for mount in mounts:
            arguments += ["--bind" if mount.writable else "--ro-bind"]
            arguments += [str(mount.host), mount.inside]
        async with AsyncExitStack() as stack:
            arguments += ["--dir", "/run/nestor", "--ro-bind", str(BRIDGE), _BRIDGE]
            listen = None
            if run.network is Network.COORDINATOR:
                forwarder = self._forwarder(run)
                path = await stack.enter_async_context(forwarder.on_socket(self._home))
                arguments += ["--ro-bind", str(path), _SOCKET]
                listen = LISTEN
            arguments += ["--remount-ro", "/", "--info-fd", {"info": True}]
            launch = Launch(
                prefix=arguments,
                bridge=_BRIDGE,
                argv=run.argv,
                cwd=run.cwd,
                env=environment() | dict(run.env),
                stdin=run.stdin,
                isolated=True,
                nproc=run.processes,
                listen=listen,
                socket=_SOCKET,
                slirp4netns=_slirp4netns() if run.network is Network.FULL else None,
            )
            return await run_guarded(run, launch)

    def refuses_mount(self, host: Path) -> str | None:
        """See ``ports.sandbox.Sandbox.refuses_mount``."""
        return refuses(host, home=self._home)

    async def kill(self, run_dir: Path) -> None:
        """See ``ports.sandbox.Sandbox.kill``."""
        await kill_guarded(run_dir)

    def _forwarder(self, run: SandboxRun) -> Forwarder:
        if run.task_key is None:
            raise SandboxError(f"{run.name}: network coordinator needs a task key")
        return Forwarder(
            upstream=self._coordinator_url,
            task_key=run.task_key,
            trace_id=run.trace_id,
            iteration=run.iteration,
        )


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


def _system(network: Network) -> Arguments:
    """Return the read-only system parts, and the private places to write."""
    full = network is Network.FULL
    arguments: Arguments = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for path in (
        Path("/etc", name) for name in (*_ETC, *(_ETC_NETWORK if full else ()))
    ):
        if path.exists():
            arguments += ["--ro-bind", str(path.resolve()), str(path)]
    for name, text in (_FILES | {"resolv.conf": _RESOLV} if full else _FILES).items():
        arguments += ["--ro-bind-data", {"data": text}, f"/etc/{name}"]
    prefix = Path(sys.base_prefix).resolve()
    if not prefix.is_relative_to("/usr"):
        if any(person.is_relative_to(prefix) for person in user_homes()):
            raise SandboxError(f"Python's prefix {prefix} holds the user's home")
        arguments += ["--ro-bind", str(prefix), str(prefix)]
    return [*arguments, *_kernel(), *_private()]


def _kernel() -> list[str]:
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
    return [*arguments, "--remount-ro", "/dev"]


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
