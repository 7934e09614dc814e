"""kill -9 of a process that appends: what it acknowledged stands in the log, once."""

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from nestor.backends.files.append_file import AppendFile
from nestor.backends.files.event_log import (
    FILE_NAME,
    BadLine,
    FileEventLog,
    read_events,
)
from nestor.model.event import Event

ROUNDS = 10
SEED = 20260102


@pytest.fixture(name="rounds_to_run")
def _rounds_to_run(request: pytest.FixtureRequest) -> int:
    try:
        return int(request.getfixturevalue("rounds"))
    except pytest.FixtureLookupError:
        return ROUNDS


HUGE = 2_000_000
"""Characters of a line that takes long enough to write for a kill to land inside."""


def append_for_ever(folder: Path, name: str, size: int) -> None:
    """Body of a child: print each id once its append has returned."""
    log = FileEventLog(folder)
    file = AppendFile(folder / FILE_NAME)
    # Made once and written without the work of redaction: most of the time is write(2).
    long = event("ID", "x" * size)
    number = 0
    while True:
        event_id = f"{name}-{number}"
        if size < HUGE:
            log.append([event(event_id, "x" * size)])
        else:
            line = msgspec.json.encode(long).replace(b"ID", event_id.encode(), 1)
            assert file.append([line + b"\n"]).error is None
        os.write(1, f"{event_id}\n".encode())
        number += 1


def event(event_id: str, text: str = "") -> Event:
    return Event(
        id=event_id,
        event_type="task_iteration",
        timestamp=datetime.now(UTC),
        source="ralph",
        trace_id="0" * 31 + "1",
        data={"output": text},
    )


def start(folder: Path, name: str, size: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), name, str(size)],
        stdout=subprocess.PIPE,
        bufsize=0,  # nothing may be read ahead of the first line
    )


def kill(process: subprocess.Popen[bytes]) -> list[str]:
    """Kill it and return every id it printed."""
    process.send_signal(signal.SIGKILL)
    printed, _ = process.communicate(timeout=30)
    return printed.decode().split()


def test_every_acknowledged_event_survives_kill_9_exactly_once(
    tmp_path: Path, rounds_to_run: int
) -> None:
    chance = random.Random(SEED)
    folder = tmp_path / "telemetry"
    acknowledged: list[str] = []
    for number in range(rounds_to_run):
        # Long lines, so that some kills land inside write(2); two writers at once, so
        # that one must get past the other's torn line.
        victims = [
            start(folder, f"{number}{side}", chance.choice((200, 200_000, HUGE)))
            for side in "ab"
        ]
        for victim in victims:
            assert victim.stdout is not None
            acknowledged.append(victim.stdout.readline().decode().strip())
        for victim in victims:
            time.sleep(chance.uniform(0, 0.03))
            acknowledged += kill(victim)
        follower = FileEventLog(folder)
        after = event(f"{number}-after")
        follower.append([after])
        acknowledged.append(after.id)
        assert after.id in follower.seen(frozenset({after.id}))
        follower.close()

    bad: list[BadLine] = []
    stood = [e.id for e in read_events(folder / FILE_NAME, on_bad=bad.append)]

    assert len(acknowledged) == len(set(acknowledged))
    assert len(stood) == len(set(stood))
    assert set(acknowledged) <= set(stood)
    # Beyond what was acknowledged: one append a victim that had not returned yet.
    assert len(stood) - len(acknowledged) <= 2 * rounds_to_run
    # A torn line a victim at most, each the beginning of an event.
    assert len(bad) <= 2 * rounds_to_run
    assert all(b.line.startswith(b'{"schema":1,') for b in bad)
    # Nothing else: a blank line is the most that a disturbed writer may add.
    lines = (folder / FILE_NAME).read_bytes().split(b"\n")
    assert len([line for line in lines if line]) == len(stood) + len(bad)
    print(f"{len(acknowledged)} acknowledged, {len(bad)} torn lines")  # noqa: T201


if __name__ == "__main__":
    append_for_ever(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
