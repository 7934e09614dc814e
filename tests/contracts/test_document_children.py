"""The children that read documents: what they cost, and whom, when they go wrong."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.servers import hostile_documents as hostile

from nestor.backends.documents import DocumentChildren
from nestor.errors import Unavailable, Unreadable

LONG_S = 60.0
"""What a bounded refusal may take on a busy machine."""


@pytest.fixture
async def children() -> AsyncIterator[DocumentChildren]:
    async with DocumentChildren(most=1, seconds=LONG_S) as opened:
        yield opened


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


ENDLESS = ("<div><!--</div>-->" * 150_000).encode()
"""Nests deeply in a way that a glance does not see: the parser would take minutes."""


async def test_one_that_takes_too_long_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(ENDLESS)
    async with DocumentChildren(most=1, seconds=2) as reader:
        endless = asyncio.create_task(reader.read(path, name="a.html"))
        await asyncio.sleep(0.1)
        others = [
            asyncio.create_task(reader.read(f"walrus {n}", name="a.md"))
            for n in range(5)
        ]
        with pytest.raises(Unreadable, match=r"longer than 2 s"):
            await endless
        assert [one.content for one in await asyncio.gather(*others)] == [
            f"walrus {n}" for n in range(5)
        ]
        assert len(reader.pids) == 1


async def test_a_child_that_is_stuck_costs_one_document() -> None:
    async with DocumentChildren(most=1, seconds=2) as reader:
        await reader.read("walrus", name="a.md")
        (pid,) = reader.pids
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(LONG_S):
            with pytest.raises(Unreadable, match=r"longer than 2 s"):
                await reader.read("clams", name="a.md")
        assert (await reader.read("otter", name="a.md")).content == "otter"
        assert not _exists(pid)


async def test_the_loop_goes_on_while_a_large_document_is_read(
    children: DocumentChildren, tmp_path: Path
) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(
        b"# T\n\nSome text about walrus and clams on ice, many words.\n\n" * 140_000
    )
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            # Of the processor: a busy machine holds us up as well.
            used = time.process_time()
            await asyncio.sleep(0.01)
            longest = max(longest, time.process_time() - used)

    beating = asyncio.create_task(beat())
    reading = await children.read(path, name="a.md")
    beating.cancel()

    assert len(reading.pieces) > 5_000
    assert longest < 0.5


async def test_a_document_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(b"<p>x" * 1_500_000)
    async with DocumentChildren(
        most=1, seconds=LONG_S, memory_bytes=250 * hostile.MIB
    ) as reader:
        with pytest.raises(Unreadable, match="more than 250 MiB"):
            await reader.read(path, name="a.html")
        assert (await reader.read("walrus", name="a.md")).content == "walrus"


async def test_a_child_that_is_killed_is_replaced_and_the_document_read(
    children: DocumentChildren, tmp_path: Path
) -> None:
    await children.read("walrus", name="a.md")
    (idle,) = children.pids
    os.kill(idle, signal.SIGKILL)
    assert (await children.read("clams", name="a.md")).content == "clams"

    (busy,) = children.pids
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * 6_000_000)
    asked = asyncio.create_task(children.read(path, name="a.txt"))
    await asyncio.sleep(0.2)
    os.kill(busy, signal.SIGKILL)

    assert len((await asked).pieces) > 10_000
    assert children.pids != [busy]


async def test_a_child_is_replaced_after_its_share() -> None:
    async with DocumentChildren(most=1, documents_each=3) as reader:
        pids = []
        for _ in range(7):
            await reader.read("walrus", name="a.md")
            pids += reader.pids
    assert len(set(pids)) == 3
    assert not any(_exists(pid) for pid in pids)


async def test_a_child_is_kept_however_large_its_parent_is(
    children: DocumentChildren,
) -> None:
    held = b"\1" * (768 * hostile.MIB)  # more than a child may hold and be kept
    await children.read("walrus", name="a.md")
    pids = children.pids
    await children.read("clams", name="a.md")
    assert len(pids) == 1
    assert children.pids == pids
    del held


async def test_who_leaves_ends_the_child_and_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(ENDLESS)
    async with DocumentChildren(most=1, seconds=LONG_S) as reader:
        await reader.read("walrus", name="a.md")
        (pid,) = reader.pids
        asked = asyncio.create_task(reader.read(path, name="a.html"))
        waiting = asyncio.create_task(reader.read("otter", name="a.md"))
        await asyncio.sleep(0.3)
        waiting.cancel()
        asked.cancel()
        results = await asyncio.gather(asked, waiting, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in results)
        assert (await reader.read("clams", name="a.md")).content == "clams"
        assert not _exists(pid) or reader.pids != [pid]


async def test_many_at_once_are_each_answered_by_a_few_children() -> None:
    async with DocumentChildren(most=2) as reader:
        texts = [f"# T{n}\n\nwalrus {n}" * (n % 40 + 1) for n in range(300)]
        found = await asyncio.gather(*(reader.read(t, name="a.md") for t in texts))
        assert [one.content for one in found] == texts
        assert len(reader.pids) <= 2


async def test_a_closed_reader_says_so_and_leaves_no_process(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(ENDLESS)
    reader = DocumentChildren(seconds=LONG_S)
    asked = asyncio.create_task(reader.read(path, name="a.html"))
    while not reader.pids:
        await asyncio.sleep(0.05)
    pids = reader.pids

    await reader.close()

    with pytest.raises(Unavailable, match="closed"):
        await asked
    with pytest.raises(Unavailable, match="closed"):
        await reader.read("x", name="a.md")
    assert not any(_exists(pid) for pid in pids)


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent"])
async def test_a_child_that_cannot_start_is_no_fault_of_the_document(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    async with DocumentChildren() as reader:
        with monkeypatch.context() as here:
            here.setattr(sys, "executable", program)
            with pytest.raises(Unavailable, match="documents cannot be read"):
                await reader.read("walrus", name="a.md")
        assert (await reader.read("walrus", name="a.md")).content == "walrus"


async def test_a_child_can_write_no_file_and_inherits_no_secret(
    children: DocumentChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTOR_SECRET", "walrus")
    await children.read("walrus", name="a.md")
    (pid,) = children.pids

    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        assert resource.prlimit(pid, kind) == (0, 0)
    assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == 1024 * hostile.MIB
    assert 0 < resource.prlimit(pid, resource.RLIMIT_CPU)[0] <= LONG_S + 5
    assert b"NESTOR_SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()


_PARENT = """
import asyncio, sys
from pathlib import Path
from nestor.backends.documents import DocumentChildren

def used(pid):  # hundredths of a second: that one is in the middle of parsing
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])

async def main():
    reader = DocumentChildren(most=2)
    await reader.read("walrus", name="a.md")
    asyncio.ensure_future(reader.read(Path(sys.argv[1]), name="a.html"))
    await reader.read("walrus", name="a.md")
    while len(reader.pids) < 2 or max(map(used, reader.pids)) < 100:
        await asyncio.sleep(0.05)
    print(*reader.pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def _gone(pids: list[int], within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    """Nobody may be there to reap it."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.heavy
def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(ENDLESS)
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(path)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()

    assert len(pids) == 2
    assert _gone(pids, 5)
