"""Attack T7, in each kind of sandbox that isolates: the host is not reached, and what a
command leaves behind harms nobody who comes after it.

Nothing here could do harm if a guard were missing: files and sockets are of this test
alone, and a process that is signalled is one that was started for it.
"""

import asyncio
import ctypes
import json
import os
import platform
import socket
import stat
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nestor.backends.git.workspaces import GitWorkspaces
from nestor.backends.sandbox import BubblewrapSandbox, LandlockSandbox
from nestor.model.task import Network, TaskSpec
from nestor.ports.sandbox import Mount, Sandbox, SandboxRun

CANARY = "canary-81be04"
TASK = "t1"


class World:
    """A data folder with two tasks and a key, as the harness has it, and one sandbox."""

    def __init__(
        self, home: Path, kind: type[BubblewrapSandbox | LandlockSandbox]
    ) -> None:
        self.home = home
        self.workspaces = GitWorkspaces(home)
        self.sandbox: Sandbox = kind(coordinator_url="http://127.0.0.1:9", home=home)

    @property
    def tree(self) -> Path:
        return self.workspaces.tree(TASK)

    async def python(self, program: str, *, stdin: object = None, **more: Any) -> str:
        mount = Mount(host=self.tree, inside="/workspace", writable=True)
        values: dict[str, Any] = {
            "name": TASK,
            "argv": ["python3", "-c", program],
            "cwd": "/workspace",
            "mounts": [mount],
            "stdin": json.dumps(stdin).encode(),
            "timeout_s": 40,
            "run_dir": self.workspaces.folder(TASK) / "run",
            "network": Network.COORDINATOR,
            "task_key": CANARY + "-key",
        }
        result = await self.sandbox.run(SandboxRun(**(values | more)))
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture(params=[BubblewrapSandbox, LandlockSandbox])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    made = World(tmp_path / "home", request.param)
    for task in (TASK, "t2"):
        await made.workspaces.prepare(task, TaskSpec(task_id=task))
    (made.home / "api-key").write_text(CANARY)
    (made.workspaces.tree("t2") / "file").write_text(CANARY)
    return made


READ = """
import json, os, sys
told = json.load(sys.stdin)
for path in told["ours"] + told["system"]:
    for way in (path, "/proc/1/root" + path, "/proc/%d/root%s" % (os.getppid(), path)):
        try:
            if os.path.isdir(way):
                print("LISTED", way, os.listdir(way)[:3])
            else:
                print("READ", way, open(way, "rb").read(200))
        except OSError:
            pass
        if path not in told["ours"]:
            continue
        for do in (lambda: open(way, "ab"), lambda: os.unlink(way),
                   lambda: os.rename(way, "/workspace/taken"),
                   lambda: os.link(way, "/workspace/linked")):
            try:
                do()
                print("CHANGED", way)
            except OSError:
                pass
"""


async def test_keys_other_tasks_and_the_history_are_out_of_reach(
    world: World, tmp_path: Path
) -> None:
    home = tmp_path / "person"
    for name in (".ssh/id_ed25519", ".netrc", ".aws/credentials"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(CANARY)
    folder = world.workspaces.folder(TASK)
    (world.tree / "link").symlink_to(world.home / "api-key")
    # Of the system only looked at: were a guard missing, nothing would be harmed.
    system = ["/etc/shadow", "/etc/sudoers", "/var/run/docker.sock", "/run/dbus",
              str(Path.home() / ".ssh")]  # fmt: skip
    secret = [
        world.home / "api-key", world.home, world.home / "tasks",
        world.workspaces.tree("t2") / "file", world.workspaces.tree("t2"),
        folder, folder / "history.git", folder / "history.git" / "HEAD",
        folder / "history.git" / "config", folder / "run" / "lock",
        folder / "run" / "output", folder / "run" / "guardian.json",
        home / ".ssh", *(p for p in home.rglob("*") if p.is_file()),
        world.tree / "link",
    ]  # fmt: skip
    before = {
        p: p.read_bytes() for p in secret if p.is_file() and p.stat().st_size < 1000
    }

    said = await world.python(
        READ, stdin={"ours": [str(path) for path in secret], "system": system}
    )

    assert said == ""
    changing = {folder / "run" / name for name in ("lock", "output", "guardian.json")}
    assert {p: p.read_bytes() for p in before if p not in changing} == {
        p: text for p, text in before.items() if p not in changing
    }
    assert not (world.tree / "taken").exists()


PROCESSES = """
import ctypes, json, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
told = json.load(sys.stdin)
# 1 is the sandbox's own init where it has one: that one may do no more than we may.
own_init = "bwrap" in open("/proc/1/comm").read()
for pid in (told["pid"], told["worker"], os.getppid(), *(() if own_init else (1,))):
    for name in ("environ", "mem", "maps", "fd", "cwd", "root", "io", "syscall"):
        path = f"/proc/{pid}/{name}"
        try:
            if name == "fd":
                path += "/" + os.listdir(path)[0]
            open(path, "rb").read(1) if name not in ("cwd", "root", "fd") else os.readlink(path)
            print("SAW", pid == told["pid"], path)
        except OSError:
            pass
for request in (16, 0x4206):  # attach, seize
    if libc.ptrace(request, told["pid"], 0, 0) == 0:
        print("TRACED")
# Signals: those with an effect only at the process that was started for it.
for number in (0, signal.SIGTERM, signal.SIGKILL):
    try:
        os.kill(told["pid"], number)
        print("SIGNALLED", number)
    except OSError:
        pass
try:
    os.kill(told["worker"], 0)
    print("SIGNALLED the worker")
except OSError:
    pass
import resource
try:
    resource.prlimit(told["pid"], resource.RLIMIT_NOFILE, (10, 10))
    print("LIMITED")
except OSError:
    pass
"""


async def test_other_processes_cannot_be_looked_into_signalled_or_traced(
    world: World,
) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "60", env={"SECRET": CANARY})
    try:
        told = {"pid": other.pid, "worker": os.getpid()}
        said = await world.python(PROCESSES, stdin=told)
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()

    assert said == ""


SOCKETS = """
import json, socket, sys
told = json.load(sys.stdin)
def attempt(what, do):
    try:
        do()
        print("REACHED", what)
    except OSError:
        pass
def unix(address):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(address)
def udp(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"out", address)
def tcp(address, protocol=0):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as s:
        s.settimeout(2)
        s.connect(address)
def fast(address):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.sendto(b"out", 0x20000000, address)
attempt("path", lambda: unix(told["path"]))
attempt("abstract", lambda: unix("\\0" + told["abstract"]))
for host in told["hosts"]:
    attempt("tcp " + host, lambda: tcp((host, told["tcp"])))
    attempt("multipath tcp " + host, lambda: tcp((host, told["tcp"]), 262))
    attempt("sctp " + host, lambda: tcp((host, told["tcp"]), 132))
    attempt("fast open " + host, lambda: fast((host, told["tcp"])))
    try:
        udp((host, told["udp"]))
    except OSError:
        pass
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW).close())
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
"""


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    """Sockets of the host as D-Bus, Docker, a database and a resolver have them."""
    with ExitStack() as stack:
        made = {
            name: stack.enter_context(socket.socket(family, kind))
            for name, family, kind in (
                ("path", socket.AF_UNIX, socket.SOCK_STREAM),
                ("abstract", socket.AF_UNIX, socket.SOCK_STREAM),
                ("tcp", socket.AF_INET, socket.SOCK_STREAM),
                ("udp", socket.AF_INET, socket.SOCK_DGRAM),
            )
        }
        path = Path(f"/tmp/nestor-test-{uuid.uuid4().hex}")
        stack.callback(path.unlink, missing_ok=True)
        made["path"].bind(str(path))
        made["abstract"].bind(f"\0nestor-test-{uuid.uuid4().hex}")
        for name in ("tcp", "udp"):
            made[name].bind(("0.0.0.0", 0))
        for name in ("path", "abstract", "tcp"):
            made[name].listen()
        for one in made.values():
            one.setblocking(False)
        yield made


@pytest.mark.parametrize("network", list(Network))
async def test_sockets_and_services_of_the_host_are_out_of_reach(
    world: World, listening: dict[str, socket.socket], network: Network
) -> None:
    from nestor.backends.sandbox.machine import own_addresses  # noqa: PLC0415

    told = {
        "path": listening["path"].getsockname(),
        "abstract": listening["abstract"].getsockname()[1:].decode(),
        "tcp": listening["tcp"].getsockname()[1],
        "udp": listening["udp"].getsockname()[1],
        "hosts": ["127.0.0.1", "0.0.0.0", "10.0.2.2",
                  *(a for a in own_addresses() if ":" not in a)],
    }  # fmt: skip
    said = await world.python(SOCKETS, stdin=told, network=network)

    assert said == ""
    for name in ("path", "abstract", "tcp"):
        with pytest.raises(BlockingIOError):
            listening[name].accept()
    with pytest.raises(BlockingIOError):
        listening["udp"].recv(10)


PRIVILEGES = """
import ctypes, fcntl, os, termios
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, do):
    try:
        if do() not in (None, 0):
            return
        print("BROKE", what)
    except OSError:
        pass
for fd in (0, 1, 2):
    attempt("typed into a terminal", lambda: fcntl.ioctl(fd, termios.TIOCSTI, b"x"))
attempt("opened a terminal", lambda: os.close(os.open("/dev/tty", os.O_RDWR)))
for kind, name in ((0o060000, "disk"), (0o020000, "memory")):
    attempt("made a device", lambda: os.mknod("/workspace/" + name, kind | 0o666, os.makedev(8, 0)))
attempt("mounted", lambda: libc.mount(b"none", b"/workspace", b"tmpfs", 0, None))
attempt("bound", lambda: libc.mount(b"/workspace", b"/usr", None, 4096, None))
attempt("changed root", lambda: os.chroot("/workspace"))
attempt("became another", lambda: os.setuid(12345))
attempt("gave away", lambda: os.chown("/workspace", 12345, 12345))
for place in ("/etc", "/usr/lib"):
    # A file without a name: were the guard missing, nothing would stay.
    attempt("wrote to " + place, lambda: os.close(os.open(place, os.O_TMPFILE | os.O_WRONLY)))
attempt("wrote to the kernel", lambda: open("/proc/sys/kernel/printk_delay", "w").close())
numbers = {"x86_64": 250, "aarch64": 219}
# keyctl: describe the session's keyring; whose it is stands in the answer.
about = ctypes.create_string_buffer(200)
if libc.syscall(numbers[os.uname().machine], 6, -3, about, 200) > 0:
    print("KEYS", about.value.decode())
status = open("/proc/self/status").read()
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    if int(status.split(name + ":")[1].split()[0], 16):
        print("BROKE", name)
if "NoNewPrivs:\\t1" not in status:
    print("BROKE no_new_privs")
"""


async def test_no_privilege_is_left_and_none_is_gained(world: World) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
    add = {"x86_64": 248, "aarch64": 217}[platform.machine()]
    name = f"nestor-test-{uuid.uuid4().hex}".encode()
    # A key of whoever started the harness, in the session's keyring.
    assert libc.syscall(number, 1, name) > 0
    assert libc.syscall(add, b"user", name, CANARY.encode(), len(CANARY), -3) > 0

    said = await world.python(PRIVILEGES)

    keys = [row for row in said.splitlines() if row.startswith("KEYS")]
    assert all(name.decode() not in row for row in keys), keys
    assert [row for row in said.splitlines() if row not in keys] == []


async def test_a_library_that_a_variable_names_runs_only_inside(
    world: World, tmp_path: Path
) -> None:
    """A check's variables may name what the agent built: it must not reach the launcher."""
    outside = tmp_path / "outside"
    source = tmp_path / "evil.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void)"
        f'{{ FILE *f = fopen("{outside}", "w"); if (f) fclose(f);'
        ' f = fopen("/proc/self/fd/1", "a"); if (f) { fputs("loaded\\n", f); fclose(f); } }'
    )
    library = world.tree / "evil.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True
    )
    for name in ("json", "sitecustomize", "usercustomize", "platform"):
        (world.tree / f"{name}.py").write_text(f"open({str(outside)!r}, 'w')")

    said = await world.python(
        "print('ran')",
        env={"LD_PRELOAD": "/workspace/evil.so", "PYTHONPATH": "/workspace"},
        argv=["/bin/sh", "-c", "echo ran"],
    )

    assert "loaded" in said
    assert "ran" in said
    assert not outside.exists()


LEAVE = """
import os, socket, stat
os.chdir("/workspace")
os.symlink("/", "root"); os.symlink("VICTIM", "victim"); os.symlink("loop", "loop")
os.mkdir("swapped"); os.symlink("VICTIM", "swapped/in")
os.mkfifo("pipe"); os.mkfifo(".gitattributes"); os.mkfifo(".gitignore")
open("suid", "w").write("#!/bin/sh\\n"); os.chmod("suid", 0o6755)
for name in (b"new\\nline", b"bad-\\xff", b"-rf", b"--help", b"\\x1b[31m", b" "):
    open(name, "w").close()
for at in ("a" * 200, "b"):
    os.chdir("/workspace")
    for _ in range(200):
        os.mkdir(at); os.chdir(at)
    open("deep", "w").close(); os.chmod(".", 0)
os.chdir("/workspace")
os.mkdir("closed"); open("closed/file", "w").close(); os.chmod("closed", 0)
for way in ("VICTIM/file", "HOME/api-key"):
    try:
        os.link(way, "hard"); print("LINKED")
    except OSError:
        pass
import subprocess
subprocess.run(["git", "config", "core.fsmonitor", "touch VICTIM/fsmonitor"])
subprocess.run(["git", "config", "core.hooksPath", "/workspace/hooks"])
for place in (".git/hooks", "hooks"):
    os.makedirs(place, exist_ok=True)
    for hook in ("pre-commit", "post-checkout", "post-index-change", "reference-transaction"):
        open(f"{place}/{hook}", "w").write("#!/bin/sh\\ntouch VICTIM/hook\\n")
        os.chmod(f"{place}/{hook}", 0o755)
"""


async def test_what_a_command_leaves_is_snapshotted_and_removed_without_harm(
    world: World, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o751)
    (victim / "file").write_text("whole")
    parent = (await world.workspaces.prepare(TASK, TaskSpec(task_id=TASK))).base
    program = LEAVE.replace("VICTIM", str(victim)).replace("HOME", str(world.home))

    assert await world.python(program) == ""
    async with asyncio.timeout(30):
        made = await world.workspaces.snapshot(TASK, message="m", parent=parent)
        out = tmp_path / "out"
        await world.workspaces.checkout(TASK, made.commit, out)
        await world.workspaces.reset(TASK, parent)
        await world.workspaces.remove(
            out, world.tree, world.workspaces.folder(TASK) / "run"
        )

    assert not out.exists()
    assert not world.tree.exists()
    assert {one.name for one in victim.iterdir()} == {"file"}
    assert (victim / "file").read_text() == "whole"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o751
    assert (world.home / "api-key").read_text() == CANARY


async def test_a_setuid_file_gives_no_user_its_rights(world: World) -> None:
    program = """
import os, shutil, subprocess
shutil.copy("/usr/bin/id", "id"); os.chmod("id", 0o6755)
print(subprocess.run(["./id", "-u"], capture_output=True, text=True).stdout.strip() == str(os.getuid()))
"""
    assert await world.python(program) == "True\n"
    made = world.tree / "id"
    assert made.stat().st_uid == os.getuid(), "it belongs to nobody else"


def test_the_kernel_speaks_landlock_so_that_these_tests_say_something() -> None:
    assert ctypes.CDLL(None).syscall(444, None, 0, 1) >= 4
