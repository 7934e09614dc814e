"""Memory as this process may use it: the machine's, and every cgroup's above it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestor.resilience.memory import Memory, look, used_below

GIB = 1024**3
MEMINFO = (
    f"MemTotal: {24 * 1024**2} kB\nMemFree: 5 kB\nMemAvailable: {20 * 1024**2} kB\n"
)


def tree(root: Path, cgroup: str, **files: object) -> Path:
    """A machine as data: ``files`` are named by their path below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_without_cgroups_it_is_the_machine_that_counts(tmp_path: Path) -> None:
    seen = look(tree(tmp_path, "0::/\n"))
    assert seen == Memory(total=24 * GIB, available=20 * GIB)


def test_a_container_of_version_two_is_believed(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "0::/\n",
        **{
            "memory.max": 300 * 1024**2,
            "memory.current": 200 * 1024**2,
            "memory.stat": f"anon 5\ninactive_file {50 * 1024**2}\nactive_file 7",
        },
    )
    assert look(root) == Memory(total=300 * 1024**2, available=150 * 1024**2)


def test_the_tightest_group_above_counts_not_only_the_own(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "0::/a.slice/b.slice/c.service\n",
        **{
            "a.slice/memory.max": 4 * GIB,
            "a.slice/memory.current": 1 * GIB,
            "a.slice/b.slice/memory.max": 2 * GIB,
            "a.slice/b.slice/memory.current": GIB // 2,
            "a.slice/b.slice/c.service/memory.max": "max",
            "a.slice/b.slice/c.service/memory.current": 5,
        },
    )
    assert look(root) == Memory(total=2 * GIB, available=2 * GIB - GIB // 2)


def test_total_and_available_may_come_from_two_groups(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "0::/a/b\n",
        **{
            "a/memory.max": 4 * GIB,
            "a/memory.current": 4 * GIB - 5,
            "a/b/memory.max": 2 * GIB,
            "a/b/memory.current": 0,
        },
    )
    assert look(root) == Memory(total=2 * GIB, available=5)


def test_version_one_has_its_own_names_and_says_no_limit_as_a_number(
    tmp_path: Path,
) -> None:
    root = tree(
        tmp_path,
        "11:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n",
        **{
            "memory/docker/memory.limit_in_bytes": 0x7FFFFFFFFFFFF000,
            "memory/docker/memory.usage_in_bytes": 5,
            "memory/docker/x/memory.limit_in_bytes": GIB,
            "memory/docker/x/memory.usage_in_bytes": GIB // 4,
        },
    )
    assert look(root) == Memory(total=GIB, available=GIB - GIB // 4)


@pytest.mark.parametrize("named", ["/docker/x", "/docker/x/inner", "/../../other"])
def test_inside_a_container_the_path_may_be_the_hosts(
    tmp_path: Path, named: str
) -> None:
    root = tree(
        tmp_path,
        f"4:memory:{named}\n",
        **{
            "memory/memory.limit_in_bytes": GIB,
            "memory/memory.usage_in_bytes": 0,
            "memory/inner/memory.limit_in_bytes": 2 * GIB,
        },
    )
    assert look(root) == Memory(total=GIB, available=GIB)


def test_over_its_limit_nothing_is_free_and_never_less(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/\n", **{"memory.max": GIB, "memory.current": GIB + 4096})
    assert look(root) == Memory(total=GIB, available=0)


def test_what_cannot_be_read_is_unknown_and_not_zero(tmp_path: Path) -> None:
    assert look(tmp_path) == Memory(total=None, available=None)


def test_this_machine_tells_no_more_than_proc_meminfo() -> None:
    seen = look()
    rows = dict(
        line.split(":") for line in Path("/proc/meminfo").read_text().splitlines()
    )
    total = int(rows["MemTotal"].split()[0]) * 1024
    assert seen.total is not None
    assert seen.available is not None
    assert 0 < seen.available <= seen.total <= total


def test_what_children_of_a_name_use_is_summed_with_all_below_them() -> None:
    size = 64 * 1024**2
    eater = f"import time; x = bytearray({size}); time.sleep(60)"
    outer = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]);"
        " p.wait()"
    )
    name = f"outer-{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(
        [sys.executable, "-c", outer, eater, name], start_new_session=True
    )
    try:
        deadline = time.monotonic() + 30
        while (seen := used_below(os.getpid(), name) or 0) < size:
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        assert used_below(os.getpid(), "nobody-is-called-so") == 0
    finally:
        os.killpg(process.pid, 9)
        process.wait()
