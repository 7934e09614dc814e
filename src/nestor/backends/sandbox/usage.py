"""What a command uses of the machine, for the guardian: memory, and room on disk.

Standard library only: the guardian imports it without our package. Everything is cheap
while nothing is wrong; what a command may have written is walked in slices, so that the
guardian never stops guarding.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

TYPE_CHECKING = False  # typing costs 6 ms at start
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Protocol

    class Entries(Iterator[os.DirEntry[str]], Protocol):
        """What ``os.scandir`` returns."""

        def close(self) -> None:
            """Let go of the folder."""


PAGE = os.sysconf("SC_PAGE_SIZE")
COST = 20
"""A look may take one part in this many of the time."""
LOOK_S, WALK_S, FIRST_WALK_S = 0.2, 10.0, 2.0
SLICE_S, URGENT_SLICE_S = 0.01, 0.05
SMALL_CHANGE = 64 * 1024**2
FLOOR_BYTES, FLOOR_PART = 1024**3, 50
"""A run ends when it is this tight: 1 GiB or a fiftieth of the file system, the less."""
ENTRY = 512
"""What a file costs besides its blocks."""
_CGROUP = {
    "cgroup": ("memory.limit_in_bytes", "memory.oom_control"),
    "cgroup2": ("memory.max", "memory.events"),
}
"""Where to write the limit, and where ``oom_kill N`` is told."""


class Cgroup:
    """A memory cgroup below our own, with a limit; the kernel holds a command to it."""

    def __init__(self, path: str, told: str) -> None:
        self.path = path
        self._told = f"{path}/{told}"

    @classmethod
    def made(cls, limit: int, name: str) -> Cgroup | None:
        """Make one; None where we may not."""
        for kind, folder in _own_cgroups():
            to_write, told = _CGROUP[kind]
            path = f"{folder}/nestor-{name}"
            with contextlib.suppress(OSError):
                os.mkdir(path)  # noqa: PTH102 - pathlib costs 8 ms
                try:
                    _write(f"{path}/{to_write}", str(limit))
                    os.stat(f"{path}/{told}")  # noqa: PTH116
                except OSError:
                    os.rmdir(path)  # noqa: PTH106
                    continue
                for more, value in (
                    # Swap would be memory by another name. Not there without swap.
                    ("memory.memsw.limit_in_bytes", str(limit)),
                    ("memory.swap.max", "0"),
                    ("memory.oom.group", "1"),
                ):
                    with contextlib.suppress(OSError):
                        _write(f"{path}/{more}", value)
                return cls(path, told)
        return None

    def join(self) -> None:
        """Put the calling process into it."""
        _write(f"{self.path}/cgroup.procs", "0")

    def killed(self) -> bool:
        """Tell whether the kernel ended a process in it for want of memory."""
        for line in _read(self._told).splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill" and int(number):
                return True
        return False

    def remove(self) -> None:
        """Remove it, once nobody is in it; done before is fine."""
        for _ in range(50):
            try:
                os.rmdir(self.path)  # noqa: PTH106
            except FileNotFoundError:
                return
            except OSError:
                # The kernel takes a moment to notice that the last process is gone.
                time.sleep(0.01)
            else:
                return


def _own_cgroups() -> Iterable[tuple[str, str]]:
    """Yield (kind, folder) of the hierarchies that may limit our memory."""
    mounts: list[tuple[str, list[str], list[str]]] = []
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in _CGROUP:
            mounts.append((kind, before.split(" ")[3:5], options.split(",")))
    for line in _read("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        for kind, (root, mount), named in mounts:
            if "memory" in names.split(",") and kind == "cgroup":
                right = "memory" in named
            else:
                right = not names and kind == "cgroup2"
            if right:
                below = path.removeprefix(root) if root != "/" else path
                yield kind, f"{mount}/{below.strip('/')}".rstrip("/")


class Memory:
    """The memory of a run: what its processes hold, and what lies in its tmpfs."""

    def __init__(self, limit: int, cgroup: Cgroup | None) -> None:
        self.limit = limit
        self.cgroup = cgroup
        self.tmpfs: tuple[str, ...] = ()
        self._next = 0.0
        self._shared = _shared_memory()
        self.said = f"it used more than {limit >> 20} MiB"

    def exceeded(self, pids: Callable[[], Iterable[int]]) -> bool:
        """Tell whether it is over the limit; looks as often as that is cheap."""
        if self.cgroup is not None:
            return self.cgroup.killed()
        begun = time.monotonic()
        if begun < self._next:
            return False
        over = self._over(list(pids()))
        now = time.monotonic()
        self._next = now + max(LOOK_S, (now - begun) * COST)
        return over

    def _over(self, pids: list[int]) -> bool:
        files = sum(map(_used_bytes, self.tmpfs))
        hidden = 0
        if _shared_memory() - self._shared > self.limit // 2:
            hidden = _unnamed(pids, lambda name, _: name.startswith("/memfd:"))
        # Pages that several share are in this sum several times: it says when to look.
        if sum(map(_resident, pids)) + files + hidden <= self.limit:
            return False
        own, shared = 0, 0
        for pid in pids:
            parts = _proportional(pid)
            own, shared = own + parts[0], shared + parts[1]
        return own + max(shared, files + hidden) > self.limit


def _resident(pid: int) -> int:
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> tuple[int, int]:
    """Return what is a process's own, and its part of shared memory; mapped files are neither."""
    found: dict[str, int] = {}
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()[1:]:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
        return found["Pss_Anon"], found["Pss_Shmem"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        resident, shared = map(int, _read(f"/proc/{pid}/statm").split()[1:3])
    except (OSError, ValueError):
        return 0, 0
    return (resident - shared) * PAGE, 0


def _shared_memory() -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * 1024
    return 0


def _unnamed(pids: Iterable[int], wanted: Callable[[str, int], bool]) -> int:
    """Sum the files that have no name in any folder and that these processes hold open."""
    seen: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
                path = f"/proc/{pid}/fd/{number}"
                with contextlib.suppress(OSError):
                    found = os.stat(path)  # noqa: PTH116
                    if not stat.S_ISREG(found.st_mode) or found.st_nlink:
                        continue
                    if wanted(os.readlink(path), found.st_dev):  # noqa: PTH115
                        seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def _used_bytes(path: str) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize


class _FileSystem:
    """One that a command may write to, against how it was at the start."""

    def __init__(self, path: str) -> None:
        self.path = path
        start = os.statvfs(path)
        self._free, self._files = start.f_bavail * start.f_frsize, start.f_ffree
        whole = start.f_blocks * start.f_frsize
        self._floor = min(FLOOR_BYTES, whole // FLOOR_PART)
        self._least_files = start.f_files // FLOOR_PART

    def look(self) -> tuple[int, str]:
        """Return by how much less is free, and why that cannot go on (or nothing)."""
        now = os.statvfs(self.path)
        free = now.f_bavail * now.f_frsize
        taken, files = self._free - free, max(0, self._files - now.f_ffree)
        # Whoever fills it: below the floor other programs break.
        if free < self._floor and taken > SMALL_CHANGE:
            return taken, f"the disk has only {free >> 20} MiB left"
        if now.f_ffree < self._least_files and files > 1000:  # noqa: PLR2004
            return taken, "the file system has hardly any files left"
        return max(0, taken) + files * ENTRY, ""


class Disk:
    """What the writable folders of a run hold together.

    Free room is asked for at each look, which costs microseconds; the folders are walked
    when so much went that the limit may be near, and now and then. With ``growth`` the
    limit is on what came on top of what was there.
    """

    def __init__(self, paths: list[str], limit: int, *, growth: bool) -> None:
        self.limit = limit
        self._growth = growth
        self._paths = [p for p in paths if not any(_below(p, o) for o in paths)]
        self._systems: dict[int, _FileSystem] = {}
        for path in self._paths:
            self._systems.setdefault(os.stat(path).st_dev, _FileSystem(path))  # noqa: PTH116
        self._walk: Generator[Held] | None = None
        self._held = Held()
        self._next = time.monotonic() + FIRST_WALK_S
        self._left = limit
        self._walked_at = 0
        self._begun = 0.0

    def exceeded(self, pids: Callable[[], Iterable[int]]) -> str:
        """Say why the run must end for what it wrote; nothing when it need not."""
        grown = 0
        for system in self._systems.values():
            more, why = system.look()
            if why:
                return why
            grown += more
        now = time.monotonic()
        if self._walk is None:
            step = max(self._left // 2, self.limit // 100)
            if now < self._next and grown - self._walked_at <= step:
                return ""
            self._walk, self._begun, self._walked_at = held(self._paths), now, grown
        slice_s = URGENT_SLICE_S if grown > self._left else SLICE_S
        for so_far in self._walk:
            self._held = so_far
            if not self._growth and so_far.total > self.limit:
                return self._said()
            if time.monotonic() - now > slice_s:
                return ""
        self._walk = None
        took = time.monotonic() - self._begun
        self._next = time.monotonic() + max(WALK_S, took * COST)
        return self._judge(self._held, grown, pids)

    def _judge(self, found: Held, grown: int, pids: Callable[[], Iterable[int]]) -> str:
        total = found.total
        if self._growth:
            # What was there before the first look counts for nothing.
            self.limit += max(0, total - grown)
            self._growth = False
        if grown > self.limit or found.closed:
            # By device: names are those of the sandbox.
            gone = _unnamed(pids(), lambda _, device: device in self._systems)
            # Where a walk may not look, all that went of the file system is the run's.
            total = max(total + gone, grown if found.closed else 0)
        self._left = max(0, self.limit - total)
        return self._said() if total > self.limit else ""

    def _said(self) -> str:
        return f"its folders hold more than {self.limit >> 20} MiB"


class Held:
    """A walk so far: bytes found, and whether there is more that could not be seen."""

    def __init__(self) -> None:
        self.total = 0
        self.closed = False
        self._linked: set[tuple[int, int]] = set()

    def count(self, entry: os.DirEntry[str]) -> bool:
        """Add what a file takes, once however many names it has; tells whether it is a folder."""
        try:
            about = entry.stat(follow_symlinks=False)
        except OSError:
            return False
        folder = stat.S_ISDIR(about.st_mode)
        if not folder and about.st_nlink > 1:
            key = about.st_dev, about.st_ino
            if key in self._linked:
                return False
            self._linked.add(key)
        self.total += about.st_blocks * 512 + ENTRY
        return folder


def held(paths: list[str]) -> Generator[Held]:
    """Walk folders and say every few files what they hold; follows no link.

    By descriptors: a path may grow too long for the kernel, and a name need be no text.
    """
    found = Held()
    yield found
    for top in paths:
        stack: list[tuple[int, Entries]] = []
        try:
            _enter(stack, top, None, found)
            number = 0
            while stack:
                here, entries = stack[-1]
                try:
                    entry = next(entries, None)
                except OSError:
                    entry, found.closed = None, True
                if entry is None:
                    stack.pop()
                    entries.close()
                    os.close(here)
                elif found.count(entry):
                    _enter(stack, entry.name, here, found)
                number += 1
                if number % 256 == 0:
                    yield found
        finally:
            for here, entries in stack:
                entries.close()
                os.close(here)
    yield found


def _enter(
    stack: list[tuple[int, Entries]],
    name: str,
    folder: int | None,
    found: Held,
) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except NotADirectoryError:
        found.total += os.stat(name).st_blocks * 512  # noqa: PTH116 - a file mounted by itself
        return
    except OSError:
        found.closed = True
        return
    try:
        stack.append((fd, os.scandir(fd)))
    except OSError:
        os.close(fd)
        found.closed = True


def _below(path: str, other: str) -> bool:
    return path.startswith(f"{other.rstrip('/')}/")


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - see above
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)
