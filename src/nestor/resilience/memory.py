"""How much memory there is for this process: of the machine, and of every cgroup above it.

A container's limit stands in its cgroup, and a group above it may have a lower one, so
the least of all counts. What cannot be read is None: unknown, never 0.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

_UNLIMITED = 1 << 60
"""cgroup v1 says "no limit" with a number near 2^63."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. ``total``: what all that runs here may use at most; ``available``: is free of it."""

    total: int | None = None
    available: int | None = None


def look(root: Path = Path("/")) -> Memory:
    """Look at the memory that this process may use now."""
    found = [_machine(root), *_groups(root)]
    return Memory(
        total=_least(one.total for one in found),
        available=_least(one.available for one in found),
    )


def used_below(pid: int, name: str) -> int | None:
    """Sum the memory of the children of ``pid`` that have ``name`` on their command line.

    With all that is below them; memory shared with others is left out. None: unknown.
    """
    try:
        children = _children()
    except OSError:
        return None
    used, todo = 0, [one for one in children.get(pid, ()) if _is_called(one, name)]
    while todo:
        one = todo.pop()
        used += _private_bytes(one)
        todo += children.get(one, ())
    return used


def _least(values: Iterator[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _machine(root: Path) -> Memory:
    said = _table(root / "proc/meminfo", ":")
    return Memory(
        total=_kib(said.get("MemTotal")), available=_kib(said.get("MemAvailable"))
    )


def _groups(root: Path) -> Iterator[Memory]:
    """Look at each group that this process is in, from its own up to the root."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        mounts = root / "sys/fs/cgroup"
        if controllers == "":
            # On a mixed system v2 is mounted beside the controllers of v1.
            tops = (mounts, mounts / "unified")
            look_at = _group_v2
        elif "memory" in controllers.split(","):
            tops = (mounts / controllers, mounts / "memory")
            look_at = _group_v1
        else:
            continue
        for top in tops:
            for folder in _ancestors(top, inside):
                yield look_at(folder)


def _ancestors(top: Path, inside: str) -> Iterator[Path]:
    """Name the group and those above it.

    In a container the path may be that of the host, of which only the end is mounted.
    A path that leaves the namespace begins with "..".
    """
    parts = [part for part in inside.split("/") if part not in {"", ".."}]
    while parts and not top.joinpath(*parts).is_dir():
        parts = parts[1:]
    for length in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:length])


def _group_v2(folder: Path) -> Memory:
    limit = _least(
        iter([_number(folder / "memory.max"), _number(folder / "memory.high")])
    )
    return _group(limit, folder / "memory.current", folder, "inactive_file")


def _group_v1(folder: Path) -> Memory:
    limit = _number(folder / "memory.limit_in_bytes")
    return _group(
        limit, folder / "memory.usage_in_bytes", folder, "total_inactive_file"
    )


def _group(limit: int | None, usage: Path, folder: Path, cache: str) -> Memory:
    if limit is None or limit >= _UNLIMITED:
        return Memory()
    used = _number(usage)
    if used is None:
        return Memory(total=limit)
    # Files that nobody reads any more are given back before anybody is refused memory.
    spare = _table(folder / "memory.stat", " ").get(cache, "")
    given_back = int(spare) if spare.isdigit() else 0
    return Memory(total=limit, available=max(limit - max(used - given_back, 0), 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Read one number; None for ``max``, and where there is none."""
    said = _text(path).strip()
    return int(said) if said.isdigit() else None


def _table(path: Path, between: str) -> dict[str, str]:
    rows = (line.partition(between) for line in _text(path).splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}


def _kib(said: str | None) -> int | None:
    number = (said or "").removesuffix("kB").strip()
    return int(number) * 1024 if number.isdigit() else None


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - many names, only some of interest
        if name.isdigit():
            said = _text(Path("/proc", name, "stat")).rpartition(")")[2].split()
            if len(said) > 1:  # else it has ended meanwhile
                found.setdefault(int(said[1]), []).append(int(name))
    return found


def _is_called(pid: int, name: str) -> bool:
    return name in _text(Path("/proc", str(pid), "cmdline"))


def _private_bytes(pid: int) -> int:
    said = _text(Path("/proc", str(pid), "statm")).split()
    if len(said) < 3:  # noqa: PLR2004 - size, resident, shared
        return 0
    return (int(said[1]) - int(said[2])) * os.sysconf("SC_PAGE_SIZE")
