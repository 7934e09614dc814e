"""What every EventLog promises, and what the file behind it adds."""

import fcntl
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.samples import Sample

from nestor.backends.files.append_file import AppendFile
from nestor.backends.files.event_log import (
    FILE_NAME,
    BadLine,
    FileEventLog,
    read_events,
)
from nestor.errors import Misconfigured
from nestor.model.event import Event
from nestor.ports.event_log import EventLog
from nestor.telemetry import metrics

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
PROCESSES, EVENTS = 8, 200


def event(event_id: str, /, task_id: str | None = None, **data: Any) -> Event:
    return Event(
        id=event_id,
        event_type="task_iteration",
        timestamp=NOW,
        source="ralph",
        trace_id="0af7651916cd43dd8448eb211c80319c",
        task_id=task_id,
        data=data,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "telemetry"


@pytest.fixture
def log(folder: Path) -> Iterator[EventLog]:
    log = FileEventLog(folder)
    yield log
    log.close()


def read(path: Path) -> list[Event]:
    """All events; a bad line fails the test."""

    def refuse(bad: BadLine) -> None:
        raise AssertionError(bad._replace(line=bad.line[:200]))

    return list(read_events(path, on_bad=refuse))


def value(name: str, **labels: str) -> float:
    samples: Iterator[Sample] = (
        sample
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return next((sample.value for sample in samples), 0.0)


# The port ------------------------------------------------------------------------------


def test_events_come_back_as_they_were_written_in_order(
    log: EventLog, folder: Path
) -> None:
    written = [
        event("a", task_id="P1-x", text="écris 🦉\nline\u2028end\x00", n=1, none=None),
        event("b", nested={"list": [1, 2.5, True]}),
    ]

    log.append(written)
    log.append([event("c")])

    assert read(folder / FILE_NAME) == [*written, event("c")]


def test_a_line_is_exactly_the_envelope(log: EventLog, folder: Path) -> None:
    log.append([event("a", task_id="t", n=1), event("b")])

    first, second = map(json.loads, (folder / FILE_NAME).read_text().splitlines())

    assert first == {
        "schema": 1,
        "id": "a",
        "event_type": "task_iteration",
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "source": "ralph",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "task_id": "t",
        "data": {"n": 1},
    }
    assert "task_id" not in second


def test_seen_tells_which_ids_stand_in_the_log(log: EventLog) -> None:
    log.append([event("a"), event("b", mentions='"id":"ghost"')])

    assert log.seen(frozenset({"a", "b", "ghost", "x"})) == {"a", "b"}
    assert log.seen(frozenset()) == frozenset()


def test_seen_looks_into_the_newest_rotated_file_only(
    log: EventLog, folder: Path
) -> None:
    for name, event_id, age_s in (("2", "old", 20), ("1", "newer", 10)):
        log.append([event(event_id)])
        rotated = folder / f"{FILE_NAME}.{name}"
        (folder / FILE_NAME).rename(rotated)
        os.utime(rotated, (time.time() - age_s,) * 2)
    log.append([event("here")])

    assert log.seen(frozenset({"old", "newer", "here"})) == {"newer", "here"}

    packed = folder / f"{FILE_NAME}.1.gz"
    packed.write_bytes(gzip.compress((folder / f"{FILE_NAME}.1").read_bytes()))
    (folder / f"{FILE_NAME}.1").unlink()

    assert log.seen(frozenset({"newer"})) == {"newer"}


def test_a_closed_log_takes_nothing_and_does_not_raise(
    log: EventLog, folder: Path
) -> None:
    before = value("nestor_events_dropped_total")
    log.close()
    log.close()
    log.append([event("late")])

    assert read(folder / FILE_NAME) == []
    assert value("nestor_events_dropped_total") - before == 1


@pytest.mark.parametrize(
    "data",
    [
        {"x": object()},
        {"x": "\ud800"},
        {"\udfff": 1},
        {"x": float("nan")},
        {"x": 10**400},
        {("a",): 1},
        {"x": {1, 2}},
        {"x": ["deep"]},
    ],
    ids=[
        "an object",
        "a lone surrogate",
        "a surrogate key",
        "NaN",
        "a huge number",
        "a tuple as key",
        "a set",
        "deep",
    ],
)
def test_whatever_the_data_holds_the_caller_sees_no_error(
    log: EventLog, folder: Path, data: dict[Any, Any]
) -> None:
    if data == {"x": ["deep"]}:
        for _ in range(100_000):
            data = {"x": [data]}

    log.append([Event(**{**as_fields(event("a")), "data": data})])

    assert [e.id for e in read(folder / FILE_NAME)] == ["a"]


def as_fields(source: Event) -> dict[str, Any]:
    return {name: getattr(source, name) for name in source.__struct_fields__}


def test_an_event_of_fifty_megabytes_is_bounded_and_says_so(
    log: EventLog, folder: Path
) -> None:
    log.append([event("one", x="a" * 50_000_000)])
    log.append([event("many", x=["b" * 200_000] * 50)])

    one, many = read(folder / FILE_NAME)

    assert one.data["x"].endswith("more characters]")
    assert many.data["oversize_bytes"] > 10_000_000
    assert (folder / FILE_NAME).stat().st_size < 1_000_000


# Many writers --------------------------------------------------------------------------


def write_many(folder: Path, writer: int) -> None:
    """Body of a child process: single events and batches, some far above 64 KiB."""
    chance = random.Random(writer)
    log = FileEventLog(folder)
    number = 0
    while number < EVENTS:
        batch = [
            event(f"{writer}-{n}", text="x" * chance.choice((10, 500, 70_000, 200_000)))
            for n in range(number, min(number + chance.randint(1, 5), EVENTS))
        ]
        log.append(batch)
        number += len(batch)
    log.close()


def child(*arguments: object) -> list[str]:
    return [sys.executable, __file__, *map(str, arguments)]


def test_eight_processes_lose_and_tear_no_line(folder: Path) -> None:
    processes = [
        subprocess.Popen(child("write_many", folder, n)) for n in range(PROCESSES)
    ]
    assert [process.wait(120) for process in processes] == [0] * PROCESSES

    lines = (folder / FILE_NAME).read_bytes().splitlines(keepends=True)
    written = [line for line in lines if line != b"\n"]  # a blank line loses nothing
    ids = [e.id for e in read(folder / FILE_NAME)]

    assert len(written) == len(ids) == len(set(ids)) == PROCESSES * EVENTS
    for n in range(PROCESSES):  # each writer's own order is kept
        own = [i for i in ids if i.startswith(f"{n}-")]
        assert own == [f"{n}-{k}" for k in range(EVENTS)]


def test_threads_share_one_log(log: EventLog, folder: Path) -> None:
    def work(n: int) -> None:
        for k in range(100):
            log.append([event(f"{n}-{k}")])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({e.id for e in read(folder / FILE_NAME)}) == 400


def test_a_torn_line_of_a_dead_writer_does_not_swallow_the_next_event(
    log: EventLog, folder: Path
) -> None:
    log.append([event("a")])
    with (folder / FILE_NAME).open("ab") as file:
        file.write(b'{"schema":1,"id":"torn","da')

    log.append([event("b"), event("c")])

    bad: list[BadLine] = []
    assert [e.id for e in read_events(folder / FILE_NAME, on_bad=bad.append)] == [
        *"abc"
    ]
    assert [b.line for b in bad] == [b'{"schema":1,"id":"torn","da\n']


class Raced(AppendFile):
    """Another writer dies in the middle of a line after each of our looks."""

    def _torn(self) -> bool:
        torn = super()._torn()
        with self._path.open("ab") as file:
            file.write(b'{"id":"torn')
        return torn


def test_a_writer_that_dies_between_look_and_write_swallows_nothing(
    folder: Path,
) -> None:
    file = Raced(folder / FILE_NAME)
    calm = AppendFile(folder / FILE_NAME)
    lines = [json.dumps({"id": n}).encode() + b"\n" for n in range(3)]

    raced = file.append(lines[:2])
    assert raced.whole == [1]
    assert raced.error is not None  # it gave up after a few deaths
    assert calm.append([lines[0], lines[2]]) == ([0, 1], None)

    stood = (folder / FILE_NAME).read_bytes().splitlines(keepends=True)
    assert [stood.count(line) for line in lines] == [1, 1, 1]
    file.close()
    calm.close()


def test_a_writer_half_way_through_its_line_is_waited_for(folder: Path) -> None:
    log = FileEventLog(folder)
    with (folder / FILE_NAME).open("ab", buffering=0) as slow:
        fcntl.flock(slow, fcntl.LOCK_SH)
        slow.write(b'{"half":')

        def finish() -> None:
            time.sleep(0.02)
            slow.write(b"1}\n")
            fcntl.flock(slow, fcntl.LOCK_UN)

        thread = threading.Thread(target=finish)
        thread.start()
        log.append([event("a")])
        thread.join()
    log.close()

    first, second = (folder / FILE_NAME).read_bytes().splitlines()
    assert first == b'{"half":1}'
    assert json.loads(second)["id"] == "a"


# Rotation ------------------------------------------------------------------------------


def test_after_a_rename_the_next_event_goes_to_a_new_file(
    log: EventLog, folder: Path
) -> None:
    log.append([event("a")])
    (folder / FILE_NAME).rename(folder / f"{FILE_NAME}.1")
    log.append([event("b")])

    assert [e.id for e in read(folder / f"{FILE_NAME}.1")] == ["a"]
    assert [e.id for e in read(folder / FILE_NAME)] == ["b"]


def test_after_a_rename_all_writers_meet_in_the_same_new_file(
    log: EventLog, folder: Path
) -> None:
    other = FileEventLog(folder)
    log.append([event("a")])
    (folder / FILE_NAME).rename(folder / f"{FILE_NAME}.1")
    other.append([event("b")])
    log.append([event("c")])
    other.close()

    assert [e.id for e in read(folder / FILE_NAME)] == ["b", "c"]


def test_a_rotation_under_the_lock_delays_the_event_but_keeps_it(
    folder: Path,
) -> None:
    log = FileEventLog(folder)
    log.append([event("a")])
    waiting = value("nestor_events_buffered")
    with (folder / FILE_NAME).open("rb") as rotator:
        fcntl.flock(rotator, fcntl.LOCK_EX)
        started = time.monotonic()
        log.append([event("b")])
        log.append([event("b")])
        assert time.monotonic() - started < 1
        assert log.buffered == value("nestor_events_buffered") - waiting == 1
        (folder / FILE_NAME).rename(folder / f"{FILE_NAME}.1")
    log.append([event("c")])
    log.close()

    assert [e.id for e in read(folder / FILE_NAME)] == ["b", "c"]
    assert [e.id for e in read(folder / f"{FILE_NAME}.1")] == ["a"]


def test_many_writers_and_a_rotator_lose_nothing(folder: Path) -> None:
    processes = [subprocess.Popen(child("write_many", folder, n)) for n in range(3)]
    rotations = 0
    while any(process.poll() is None for process in processes):
        time.sleep(0.02)
        try:
            with (folder / FILE_NAME).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                rotations += 1
                (folder / FILE_NAME).rename(folder / f"{FILE_NAME}.{rotations}")
        except FileNotFoundError:
            continue
    assert [process.returncode for process in processes] == [0, 0, 0]

    ids = [e.id for path in folder.iterdir() for e in read(path)]
    assert len(ids) == len(set(ids)) == 3 * EVENTS
    assert rotations > 1


# A disk that refuses -------------------------------------------------------------------


def fill_disk(folder: Path) -> None:
    """Body of a child: the file may not grow above 1,000 bytes, then it may again."""
    import resource  # noqa: PLC0415
    import signal  # noqa: PLC0415

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = FileEventLog(folder, buffer_events=5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
    for n in range(20):
        log.append([event(str(n), text="x" * 50)])
    size = (folder / FILE_NAME).stat().st_size
    report = {
        "buffered": log.buffered,
        "written": value("nestor_events_written_total", event_type="task_iteration"),
        "dropped": value("nestor_events_dropped_total"),
        "gauge": value("nestor_events_buffered"),
        "errors": value("nestor_event_log_errors_total", error="ENOSPC")
        + value("nestor_event_log_errors_total", error="EFBIG"),
        "ends_whole": (folder / FILE_NAME).read_bytes()[size - 1 :] == b"\n",
    }
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    log.append([event("again")])
    report["after"] = log.buffered
    log.close()
    sys.stdout.write(json.dumps(report))


def test_a_full_disk_buffers_to_the_bound_counts_and_recovers(folder: Path) -> None:
    done = subprocess.run(
        child("fill_disk", folder), capture_output=True, check=True, timeout=60
    )
    assert done.stderr.count(b"event_log_unwritable") == 1  # once an outage
    report = json.loads(done.stdout)

    written = int(report["written"])
    assert report["buffered"] == report["gauge"] == 5
    assert report["dropped"] == 20 - written - 5
    assert report["errors"] >= 5
    assert report["ends_whole"]
    assert report["after"] == 0
    kept = [str(n) for n in range(written + 5)]
    assert [e.id for e in read(folder / FILE_NAME)] == [*kept, "again"]


def test_a_folder_that_vanishes_is_made_again(folder: Path) -> None:
    log = FileEventLog(folder)
    shutil.rmtree(folder)
    log.append([event("a")])
    log.close()

    assert [e.id for e in read(folder / FILE_NAME)] == ["a"]


def test_a_log_that_turns_unsafe_while_open_buffers_and_counts(folder: Path) -> None:
    errors = value("nestor_event_log_errors_total", error="unsafe_path")
    log = FileEventLog(folder)
    target = folder / "victim"
    target.write_text("")
    (folder / FILE_NAME).unlink()
    (folder / FILE_NAME).symlink_to(target)

    log.append([event("a")])

    assert log.buffered == 1
    assert value("nestor_event_log_errors_total", error="unsafe_path") == errors + 1
    (folder / FILE_NAME).unlink()
    log.close()
    assert target.read_text() == ""
    assert [e.id for e in read(folder / FILE_NAME)] == ["a"]


def test_what_waits_is_tried_again_without_another_append(folder: Path) -> None:
    log = FileEventLog(folder)
    log.append([event("a")])
    with (folder / FILE_NAME).open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        log.append([event("b")])
        time.sleep(0.5)  # the first tries fail
    deadline = time.monotonic() + 10
    while log.buffered and time.monotonic() < deadline:
        time.sleep(0.05)

    assert [e.id for e in read(folder / FILE_NAME)] == ["a", "b"]
    log.close()


def test_a_forked_child_does_not_write_what_its_parent_holds(folder: Path) -> None:
    log = FileEventLog(folder)
    with (folder / FILE_NAME).open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        log.append([event("parent")])
        if (pid := os.fork()) == 0:
            fcntl.flock(holder, fcntl.LOCK_UN)
            log.close()
            os._exit(0 if log.buffered == 0 else 1)
        assert os.waitpid(pid, 0)[1] == 0
    log.close()

    assert [e.id for e in read(folder / FILE_NAME)] == ["parent"]


# Attack F2, secrets, durability --------------------------------------------------------


def test_folder_and_file_are_the_owners_alone(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / FILE_NAME).touch(mode=0o644)
    FileEventLog(folder).close()

    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / FILE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "trap",
    ["symlink", "dangling", "fifo", "directory", "hardlink", "owner", "folder_symlink"],
)
def test_f2_what_stands_in_the_path_is_refused_and_untouched(
    tmp_path: Path, folder: Path, trap: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = folder / FILE_NAME
    if trap == "folder_symlink":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
    match trap:
        case "symlink":
            path.symlink_to(victim)
        case "dangling":
            path.symlink_to(tmp_path / "absent")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "hardlink":
            path.hardlink_to(victim)
        case "owner":
            if os.geteuid() != 0:
                pytest.skip("only root can make a file of another owner")
            path.touch()
            os.chown(path, 12345, 12345)

    with pytest.raises(Misconfigured, match="event log"):
        FileEventLog(folder)

    assert victim.read_text() == "mine"
    assert not (tmp_path / "absent").exists()
    if trap == "folder_symlink":
        assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Misconfigured, match="event log"):
        FileEventLog(tmp_path / "file" / "telemetry")


def test_k1_no_secret_reaches_the_file(log: EventLog, folder: Path) -> None:
    secrets: dict[str, Any] = {
        "text": "use sk-proj-CANARY0123456789 or Bearer CANARY.abc",
        "password": "CANARY",
        "nested": [{"url": "postgres://u:CANARY@db/x"}],
    }
    log.append([event("a", **secrets), event("b", x={"nst_" + "CANARY7" * 7: 1})])

    assert b"CANARY" not in (folder / FILE_NAME).read_bytes()


def test_prompts_can_be_left_out(folder: Path) -> None:
    log = FileEventLog(folder, keep_prompts=False)
    log.append(
        [
            event(
                "a",
                query="PROMPT",
                output={"choices": "PROMPT"},
                deep=[{"input": ["PROMPT"], "description": "PROMPT"}],
                outcome="changed",
                usage={"input_tokens": 3, "input": 3},
            )
        ]
    )
    log.close()

    (only,) = read(folder / FILE_NAME)
    assert b"PROMPT" not in (folder / FILE_NAME).read_bytes()
    assert only.data["outcome"] == "changed"
    assert only.data["usage"] == {"input_tokens": 3, "input": 3}


def sync_slowly(folder: Path) -> None:
    """Body of a child: 100 appends in about half a second, then idle."""
    log = FileEventLog(folder)
    for n in range(100):
        log.append([event(str(n))])
        time.sleep(0.005)
    time.sleep(0.5)
    sys.stdout.write("idle\n")
    sys.stdout.flush()
    os._exit(0)  # no close: the thread alone must have done it


def test_fsync_comes_within_the_window_and_not_at_each_append(
    folder: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-ttt", "-y", "-e", "trace=fsync,write", "-o"]
    subprocess.run(
        [*command, str(trace), *child("sync_slowly", folder)],
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    lines = [line.split(None, 2) for line in trace.read_text().splitlines()]
    ours = [(float(t), call) for _, t, call in lines if FILE_NAME in call]
    writes = [t for t, call in ours if call.startswith("write")]
    syncs = [t for t, call in ours if call.startswith("fsync")]

    assert len(writes) == 100
    assert 1 <= len(syncs) <= 12
    for t in writes:  # each write is followed by an fsync soon, also the last
        assert any(t <= s <= t + 0.2 + 0.5 for s in syncs)


# Reading -------------------------------------------------------------------------------


def test_the_reader_takes_the_older_form_and_reports_what_is_bad(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        b'{"event":"task_started","timestamp":"2026-01-02T03:04:05","backend":"aider"}\r\n'
        b"\n"
        b'{"event_type":"x","timestamp":1767323045,"data":{"a":1},"id":"i"}\n'
        b"not json\n"
        b'{"id":"no-type","timestamp":"2026-01-02T03:04:05Z"}\n'
        b'{"event":"x","timestamp":"never"}\n'
        b"[1]\n"
        b'\xff\xfe{"event":"x"}\n'
        b'{"id":"torn","event_type":"x","timestamp":"2026-01-02T03:04:05Z"}'
    )
    bad: list[BadLine] = []

    old, new = read_events(path, on_bad=bad.append)

    assert (old.event_type, old.data) == ("task_started", {"backend": "aider"})
    assert old.timestamp == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert next(read_events(path)).id == old.id  # derived, so the same each time
    assert (new.id, new.data) == ("i", {"a": 1})
    assert new.timestamp == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert len(bad) == 5
    content = path.read_bytes()
    assert all(content[b.offset :].startswith(b.line) for b in bad)


def test_the_reader_passes_an_over_long_line_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with path.open("wb") as file:
        file.write(b"x" * 20_000_000 + b"\n")
        file.write(b'{"event":"x","timestamp":0}\n')
        file.write(b"y" * 20_000_000)
    bad: list[BadLine] = []

    assert len(list(read_events(path, on_bad=bad.append))) == 1
    assert [(b.offset, b.reason) for b in bad] == [(0, "line too long")]


if __name__ == "__main__":
    bodies = {f.__name__: f for f in (write_many, fill_disk, sync_slowly)}
    body: Any = bodies[sys.argv[1]]
    body(Path(sys.argv[2]), *map(int, sys.argv[3:]))
