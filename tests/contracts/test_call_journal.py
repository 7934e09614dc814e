"""What ``ports.call_journal.CallJournal`` promises, on real files and processes."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import Counter

from nestor.backends.files.abandoned_journal import UNSETTLED
from nestor.backends.files.call_journal import FileCallJournal
from nestor.errors import Misconfigured, Unavailable
from nestor.model.routing import Charge, ModelCall, Side
from nestor.model.task import Usage
from nestor.telemetry import metrics

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def a_call(name: str, **given: Any) -> ModelCall:
    fields: dict[str, Any] = {
        "at": NOON,
        "deployment": "main",
        "side": Side.REMOTE,
        "model": "m",
        "dialect": "openai",
        "route_reason": "asked for",
        "ok": True,
        "usage": Usage(),
        "cost_usd": None,
        "latency_ms": 0.0,
        "task_id": "t1",
        "charges": (Charge(account="key:k", usd=Decimal("0.5"), tokens=500),),
    }
    return ModelCall(interaction_id=name, **(fields | given))


def as_ended(call: ModelCall) -> ModelCall:
    return msgspec.structs.replace(
        call,
        usage=Usage(input_tokens=10, output_tokens=2),
        cost_usd=Decimal("0.000000000001"),
        latency_ms=12.5,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@contextlib.contextmanager
def opened(folder: Path, **given: Any) -> Iterator[FileCallJournal]:
    journal = FileCallJournal(folder, **given)
    try:
        yield journal
    finally:
        journal.close()


def die(journal: FileCallJournal) -> None:
    """Leave as kill -9 does: the kernel has what was written, and lets go of the lock."""
    with journal._lock:
        journal._closed = True
    journal._closing.set()
    journal._work.set()
    if journal._thread is not None:
        journal._thread.join()
    journal._file.let_go()


def do(journal: FileCallJournal, *names: str) -> list[ModelCall]:
    """Begin and end calls."""
    made = []
    for name in names:
        call = a_call(name)
        journal.begin(call)
        journal.end(as_ended(call))
        made.append(as_ended(call))
    return made


def fold(journal: Any, *, limit: int = 1000) -> list[ModelCall]:
    """Take all that is settled, and let it go."""
    found: list[ModelCall] = []
    while settled := journal.settled(limit=limit):
        found += settled.calls
        journal.folded(settled)
    return found


def names_of(calls: Any) -> list[str]:
    return [call.interaction_id for call in calls]


def recovered(folder: Path) -> list[ModelCall]:
    """What the next start finds; all of it folded."""
    with opened(folder) as next_one:
        found = []
        for journal in next_one.abandoned():
            found += fold(journal)
            journal.close()
    return found


def value(counter: Counter) -> float:
    return float(counter._value.get())


def test_calls_are_settled_in_the_order_they_ended(folder: Path) -> None:
    with opened(folder) as journal:
        calls = {name: a_call(name) for name in "abc"}
        for call in calls.values():
            journal.begin(call)
        assert journal.settled() is None
        journal.end(as_ended(calls["c"]))
        journal.end(as_ended(calls["a"]))
        first = journal.settled(limit=1)
        both = journal.settled()
        assert first
        assert both
        assert first.calls == [as_ended(calls["c"])]
        assert names_of(both.calls) == ["c", "a"]
        assert (first.journal, both.position > first.position) == (journal.id, True)
        assert journal.waiting == 2
        journal.folded(first)
        rest = journal.settled()
        assert rest
        assert names_of(rest.calls) == ["a"]
        assert rest.position == both.position
        journal.folded(both)
        journal.folded(first)  # an older place changes nothing
        assert (journal.settled(), journal.waiting) == (None, 0)


def test_a_process_that_dies_leaves_settled_and_unsettled_calls(folder: Path) -> None:
    journal = FileCallJournal(folder)
    done = do(journal, "a", "b")
    settled = journal.settled(limit=1)
    assert settled
    journal.begin(a_call("open"))
    journal.begin(a_call("canned", replayed=True))
    journal.folded(settled)
    die(journal)

    with opened(folder) as next_one:
        (left,) = next_one.abandoned()
        assert left.id == journal.id != next_one.id
        assert left.waiting == 3
        found = left.settled()
        assert found
        assert found.journal == journal.id
        # Beyond any place that the process itself could have told SQL.
        assert found.position > 2**61
        assert found.calls == [
            done[1],
            a_call("open", ok=False, unsettled=True, error=UNSETTLED),
            a_call(
                "canned",
                ok=False,
                unsettled=True,
                error=UNSETTLED,
                replayed=True,
                cost_usd=Decimal(0),
            ),
        ]
        left.folded(found)
        left.close()
        assert [path for path in folder.iterdir() if journal.id in path.name] == []


def test_a_journal_with_nothing_left_is_gone_at_its_end(folder: Path) -> None:
    with opened(folder) as journal:
        do(journal, "a")
        fold(journal)
    assert list(folder.iterdir()) == []


def test_what_is_open_at_the_end_is_found_at_the_next_start(folder: Path) -> None:
    with opened(folder) as journal:
        journal.begin(a_call("open"))
        do(journal, "ended")
    found = recovered(folder)
    assert [(c.interaction_id, c.unsettled) for c in found] == [
        ("ended", False),
        ("open", True),
    ]
    assert recovered(folder) == []
    assert list(folder.iterdir()) == []


def test_the_journal_of_a_living_process_is_not_taken(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from nestor.backends.files.call_journal import FileCallJournal\n"
        "from tests.contracts.test_call_journal import do\n"
        "journal = FileCallJournal(Path(sys.argv[1]))\n"
        "do(journal, 'child')\n"
        "print(journal.id, flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout
    child_id = child.stdout.readline().decode().strip()
    with opened(folder) as journal:
        assert child_id
        assert journal.abandoned() == []
        child.kill()
        child.communicate()
        (left,) = journal.abandoned()
        assert left.id == child_id
        assert names_of(fold(left)) == ["child"]
        left.close()


def test_a_call_begun_again_is_what_was_said_last(folder: Path) -> None:
    """As when another deployment is asked: also where the first line's file is gone."""
    journal = FileCallJournal(folder, segment_bytes=1000, fsync_interval_s=0.01)
    journal.begin(a_call("again"))
    do(journal, *(f"{number}" for number in range(20)))
    journal.begin(a_call("again", deployment="other"))
    fold(journal)
    deadline = time.monotonic() + 10
    while (folder / f"{journal.id}.0.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    journal.begin(a_call("once"))
    journal.begin(a_call("once", deployment="other"))
    die(journal)
    found = [(one.interaction_id, one.deployment) for one in recovered(folder)]
    assert found == [("again", "other"), ("once", "other")]


def test_of_many_takers_one_gets_it(folder: Path) -> None:
    with opened(folder) as journal:
        do(journal, "a")
    takers = [FileCallJournal(folder) for _ in range(4)]
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda one=one: found.extend(one.abandoned()))
        for one in takers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [left.id for left in found] == [journal.id]
    for one in (*found, *takers):
        one.close()


def test_a_taker_that_dies_leaves_it_to_the_next_one_as_it_was(folder: Path) -> None:
    with opened(folder) as journal:
        do(journal, "a", "b")
        journal.begin(a_call("open"))

    def taken(limit: int) -> Any:
        with opened(folder) as taker:
            (left,) = taker.abandoned()
            settled = left.settled(limit=limit)
            assert settled
            left.folded(settled)
            rest = left.settled()
            left.close()
            return settled, rest

    first = taken(2)
    second = taken(2)
    assert first == second
    assert names_of(second[0].calls) == ["a", "b"]
    assert names_of(second[1].calls) == ["open"]
    assert names_of(recovered(folder)) == ["a", "b", "open"]


def test_a_torn_last_line_counts_as_not_written(folder: Path) -> None:
    """Torn at any byte: the call whose end it was has none, and nothing else is lost."""
    journal = FileCallJournal(folder)
    do(journal, "a")
    journal.begin(a_call("b"))
    die(journal)
    (path,) = folder.glob("*.jsonl")
    (lock,) = folder.glob("*.lock")
    before = path.read_bytes()
    line = FileCallJournal(folder)
    do(line, "b")
    die(line)
    end = next(
        one.read_bytes() for one in folder.glob("*.jsonl") if one != path
    ).splitlines(keepends=True)[-1]
    for one in folder.glob(f"{line.id}*"):
        one.unlink()
    bad = value(metrics.JOURNAL_BAD_LINES)
    for cut in (0, 1, 7, len(end) // 2, len(end) - 2, len(end) - 1, len(end)):
        path.write_bytes(before + end[:cut])
        lock.touch(mode=0o600)
        found = {call.interaction_id: call.unsettled for call in recovered(folder)}
        whole = cut >= len(end) - 1  # all but its line end
        assert found == {"a": False, "b": not whole}, cut
    assert value(metrics.JOURNAL_BAD_LINES) == bad


def test_bad_lines_are_kept_aside_and_stop_nothing(folder: Path) -> None:
    with opened(folder) as journal:
        do(journal, "a")
        journal.begin(a_call("open"))
    (path,) = folder.glob("*.jsonl")
    whole = path.read_bytes().splitlines(keepends=True)
    rubbish = [
        b"\x00\x00\n",
        b'{"json": 1}\n',
        b'["b",0,["too short"]]\n',
        b'["z",1]\n',
        b'["h",99,["id"]]\n',
        b"\xff\xfe\n",
        whole[1].replace(b'"remote"', b'"nowhere"'),
    ]
    path.write_bytes(b"".join([whole[0], *rubbish, *whole[1:]]))
    bad = value(metrics.JOURNAL_BAD_LINES)
    assert names_of(recovered(folder)) == ["a", "open"]
    assert value(metrics.JOURNAL_BAD_LINES) - bad == len(rubbish)
    (kept,) = folder.iterdir()
    assert (kept.suffix, kept.stat().st_size) == (
        ".bad",
        len(b"".join(rubbish + whole)),
    )
    assert recovered(folder) == []


def test_a_journal_of_a_version_with_other_fields_is_read_by_their_names(
    folder: Path,
) -> None:
    with opened(folder) as journal:
        made = do(journal, "a")
    (path,) = folder.glob("*.jsonl")
    header, begun, ended = (
        msgspec.json.decode(x) for x in path.read_bytes().splitlines()
    )
    header[2] = ["color", *reversed(header[2])]
    for line in (begun, ended):
        line[2] = ["blue", *reversed(line[2])]
    path.write_bytes(
        b"".join(msgspec.json.encode(x) + b"\n" for x in (header, begun, ended))
    )
    assert recovered(folder) == made


def test_only_plain_files_of_ours_are_touched(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    outside.chmod(0o644)
    with opened(folder) as journal:
        do(journal, "a")
    (folder / "link.lock").symlink_to(outside)
    (folder / "dir.lock").mkdir()
    (folder / f"{journal.id}.7.jsonl").symlink_to(outside)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.lstat().st_mode & 0o777 for p in folder.glob(f"{journal.id}.[0l]*")} == {
        0o600
    }
    assert names_of(recovered(folder)) == ["a"]
    assert (outside.read_text(), outside.stat().st_mode & 0o777) == ("mine", 0o644)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(folder)
    with pytest.raises(Misconfigured, match="call journal"):
        FileCallJournal(elsewhere)


def test_under_load_without_a_pause_it_does_not_grow(folder: Path) -> None:
    """One call is open all the time; segments go, and the open one is not lost."""
    with opened(folder, segment_bytes=20_000, fsync_interval_s=0.01) as journal:
        journal.begin(a_call("stream"))
        journal.begin(a_call("next"))
        positions = []
        for number in range(300):
            # Something is always open, so that the file is never empty of it.
            journal.begin(a_call(f"{number}"))
            if number:
                journal.end(as_ended(a_call(f"{number - 1}")))
            if number % 10 == 0 and (settled := journal.settled()):
                positions.append(settled.position)
                journal.folded(settled)
        assert positions == sorted(set(positions))
        deadline = time.monotonic() + 10
        while len(left := list(folder.glob("*.jsonl"))) > 3:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)
        numbers = {int(path.name.split(".")[1]) for path in left}
        assert 0 in numbers  # where the stream was begun
        assert max(numbers) > 5
        journal.end(as_ended(a_call("next")))
    found = {call.interaction_id: call.unsettled for call in recovered(folder)}
    assert found["stream"] is True
    assert found["next"] is False
    assert found["299"] is True
    assert "5" not in found  # folded, and its segment is gone


def test_a_file_with_nothing_open_is_emptied(folder: Path) -> None:
    with opened(folder) as journal:
        for _ in range(3):
            do(journal, "a", "b")
            fold(journal)
            (path,) = folder.glob("*.jsonl")
            assert path.stat().st_size == 0


def test_what_is_folded_is_not_found_again(folder: Path) -> None:
    """Also where a call that is open keeps its file."""
    journal = FileCallJournal(folder, segment_bytes=2000)
    journal.begin(a_call("open"))
    do(journal, *(f"{number}" for number in range(20)))
    fold(journal, limit=3)
    do(journal, "last")
    die(journal)
    assert names_of(recovered(folder)) == ["last", "open"]


def test_more_calls_than_memory_keeps_are_read_from_the_disk(folder: Path) -> None:
    with opened(folder, kept_calls=5, segment_bytes=3000) as journal:
        made = do(journal, *(f"{number}" for number in range(50)))
        assert sum(one.call is not None for one in journal._ended) == 5
        assert fold(journal, limit=7) == made


def test_a_disk_that_fails_to_give_a_call_back_is_said(folder: Path) -> None:
    with opened(folder, kept_calls=0) as journal:
        do(journal, "a")
        (path,) = folder.glob("*.jsonl")
        path.write_bytes(b"x" * path.stat().st_size)
        with pytest.raises(Unavailable, match="cannot be read"):
            journal.settled()
        assert journal.waiting == 1


def test_texts_and_counts_that_no_line_can_hold_are_mended(folder: Path) -> None:
    odd = a_call("a", error="half \ud83d", usage=Usage(input_tokens=10**30))
    with opened(folder) as journal:
        journal.begin(odd)
    (found,) = recovered(folder)
    assert found.usage == Usage()
    assert found.unsettled


FULL = """
import os, resource, sys, time
from pathlib import Path
from nestor.backends.files.call_journal import FileCallJournal
from nestor.telemetry import metrics
from tests.contracts.test_call_journal import a_call, as_ended, do, fold, names_of

folder, then = Path(sys.argv[1]), sys.argv[2]
journal = FileCallJournal(folder, fsync_interval_s=0.01, buffer_bytes=100_000, kept_calls=1)
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, most))
journal.begin(a_call("open"))
names = [f"{number}" for number in range(int(sys.argv[3]))]
do(journal, *names)
assert journal.unwritten > 0
assert metrics.JOURNAL_UNWRITTEN._value.get() == journal.unwritten
deadline = time.monotonic() + 10
while not metrics.JOURNAL_ERRORS.labels("EFBIG")._value.get():
    assert time.monotonic() < deadline
    time.sleep(0.01)
if then == "kill":
    os.kill(os.getpid(), 9)
if then == "drop":
    lost = metrics.JOURNAL_DROPPED._value.get()
    assert lost > 0
    kept = names_of(fold(journal))
    assert names[:len(kept)] == kept
    assert 100 < len(kept) < len(names)
    os._exit(0)
if then == "fold":  # from memory
    assert names_of(fold(journal)) == names
    assert metrics.JOURNAL_DROPPED._value.get() == 0
    os.kill(os.getpid(), 9)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
deadline = time.monotonic() + 10
while journal.unwritten and time.monotonic() < deadline:
    time.sleep(0.01)
assert journal.unwritten == metrics.JOURNAL_UNWRITTEN._value.get() == 0
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("then", "calls"), [("recover", 150), ("fold", 150), ("kill", 150), ("drop", 500)]
)
def test_a_full_disk_stops_no_call(folder: Path, then: str, calls: int) -> None:
    """Lines wait in memory, are tried again, and what is folded from there is folded."""
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(folder), then, str(calls)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == (0 if then == "drop" else -9), ended.stderr.decode()
    found = {call.interaction_id: call.unsettled for call in recovered(folder)}
    assert found.pop("open") is True
    if then == "recover":
        assert found == {f"{number}": False for number in range(calls)}
    else:
        # What the file took; where its last line is torn, one has no end.
        assert 40 < len(found) < calls
        assert list(found) == [f"{number}" for number in range(len(found))]
        assert sum(found.values()) <= 1


def test_after_fork_the_child_has_no_part_in_it(folder: Path) -> None:
    with opened(folder) as journal:
        journal.begin(a_call("parents"))
        child = os.fork()
        if child == 0:
            do(journal, "childs")
            os._exit(0 if journal.waiting == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        journal.end(as_ended(a_call("parents")))
        assert names_of(fold(journal)) == ["parents"]


def test_lines_are_synced_within_the_interval(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    with opened(folder, fsync_interval_s=0.01) as journal:
        do(journal, "a")
        deadline = time.monotonic() + 10
        while f"{journal.id}.0.jsonl" not in synced or "journal" not in synced:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(synced) <= 4  # and not again while nothing is written
        fold(journal)
