"""What every Sandbox promises of limits: who exceeds one is ended, whole, and told which."""

import time

import pytest
from tests.contracts.sandbox_place import (
    Make,
    Place,
)

from nestor.backends.sandbox import usage
from nestor.ports.sandbox import Sandbox

MIB = 1 << 20
HOGS = {
    "private": "x = bytearray(600 << 20)",
    "shared": "x = mmap.mmap(-1, 600 << 20); [x.write(bytes(1 << 20)) for _ in range(600)]",
    "nameless": "fd = os.memfd_create('x'); [os.write(fd, bytes(1 << 20)) for _ in range(600)]",
    "many": "[os.fork() for _ in range(3)]; x = bytearray(60 << 20)",
}
"""Each holds 480 MiB or more, in another way."""


@pytest.mark.parametrize(
    ("held", "cgroups"),
    [("private", True), *((held, False) for held in HOGS)],
)
async def test_a_memory_hog_is_ended(
    make: Make, place: Place, held: str, cgroups: bool
) -> None:
    program = HOGS[held] + "; print('got it', flush=True); time.sleep(20)"
    started = time.monotonic()
    result = await make("http://127.0.0.1:9", cgroups=cgroups).run(
        place.run(
            "python3",
            "-c",
            f"import mmap, os, time; {program}",
            memory_bytes=200 * MIB,
        )
    )

    assert result.limit == "memory", result
    assert result.exit_code is None
    assert "more than 200 MiB (memory limit)" in result.output
    assert time.monotonic() - started < 10


async def test_address_space_that_is_only_reserved_costs_nothing(
    sandbox: Sandbox, place: Place
) -> None:
    program = "import mmap; mmap.mmap(-1, 1 << 36, flags=0x4022, prot=0); print('has it')"  # fmt: skip
    result = await sandbox.run(
        place.run("python3", "-c", program, memory_bytes=200 * MIB)
    )

    assert (result.output, result.limit) == ("has it\n", None)


DISK_FILLERS = {
    "one big file": "exec head -c 400M /dev/zero > big",
    "many small files": "for n in $(seq 400); do mkdir $n; (cd $n; seq 2000 | split -l 1); done",
    "deleted but open": "exec 3> gone; rm gone; head -c 400M /dev/zero >&3; sleep 9",
    "behind closed folders": "mkdir in; exec 3> in/big; chmod 0 in; head -c 400M /dev/zero >&3; sleep 9",
    "beyond the longest path": f"for n in $(seq 30); do mkdir {'d' * 200}; cd -P {'d' * 200}; done;"
    " head -c 400M /dev/zero > big; sleep 9",
}


@pytest.mark.parametrize("how", DISK_FILLERS)
async def test_a_disk_filler_is_ended(sandbox: Sandbox, place: Place, how: str) -> None:
    limit = 20 * MIB if how == "many small files" else 100 * MIB
    started = time.monotonic()
    result = await sandbox.run(place.sh(DISK_FILLERS[how], disk_bytes=limit))

    assert result.limit == "disk", result
    assert f"hold more than {limit // MIB} MiB (disk limit)" in result.output
    assert time.monotonic() - started < 15


async def test_what_was_there_before_counts_only_against_a_limit_that_is_given(
    sandbox: Sandbox, place: Place
) -> None:
    (place.tree / "old").write_bytes(b"x" * 3 * MIB)
    line = "sleep 3; echo end"

    given = await sandbox.run(place.sh(line, disk_bytes=2 * MIB))
    usual = await sandbox.run(place.sh(line))

    assert given.limit == "disk"
    assert (usual.limit, usual.output) == (None, "end\n")


@pytest.mark.parametrize("detached", [False, True])
async def test_a_fork_bomb_is_ended(
    sandbox: Sandbox, place: Place, detached: bool
) -> None:
    program = """
import os, time
for n in range(400):
    if os.fork() == 0:
        DETACH
        time.sleep(60)
time.sleep(60)
""".replace("DETACH", "os.setsid()" if detached else "pass")
    started = time.monotonic()
    result = await sandbox.run(place.run("python3", "-c", program, processes=50))

    # In a namespace of its own the kernel may refuse the fork before we look.
    assert result.limit == "processes" or result.exit_code == 1
    assert time.monotonic() - started < 15


def test_a_walk_is_taken_up_where_its_slice_of_time_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "FIRST_WALK_S", 0)
    monkeypatch.setattr(usage, "SLICE_S", 0)
    for number in range(600):
        (place.tree / str(number)).write_bytes(b"x" * 8192)
    disk = usage.Disk([str(place.tree)], 5 * MIB, growth=True)

    said = [disk.exceeded(tuple) for _ in range(10)]

    assert set(said) == {""}
    assert 9 * MIB < disk.limit < 12 * MIB, "what was there counts for nothing"
