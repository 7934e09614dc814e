"""``kill -9`` of a process in the middle of its workflows: nothing is lost or repeated."""

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestor.backends.dbos.engine import MAX_RECOVERIES, DbosEngine
from nestor.backends.sql.database import Database

STEPS = 7
ROUNDS = 10
CHILD = """
import asyncio, os, sys
from pathlib import Path

from nestor.backends.dbos.engine import DbosEngine
from nestor.backends.sql.database import Database

url, folder, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

def note(line):
    fd = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)

async def workflow(task_id, steps):
    for number in range(7):
        async def action(number=number):
            note(f"{task_id} begin {number}")
            if mode == "poison":
                os._exit(9)
            await asyncio.sleep(0.03)
            note(f"{task_id} end {number}")
            return number * 10
        result = await steps.run(f"step-{number}", int, action)
        assert result == number * 10
    note(f"{task_id} done")

async def failed(task_id, error):
    note(f"{task_id} failed {type(error).__name__}")

async def main():
    async with Database.open(url):
        engine = DbosEngine(url, executor_id="x", workers=2, on_failure=failed)
        await engine.start(workflow)
        note("up")
        await asyncio.sleep(60)

asyncio.run(main())
"""


def start(url: str, folder: Path, mode: str = "work") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, url, str(folder), mode])


def lines(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def wait_for(folder: Path, wanted: str, times: int = 1, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while lines(folder).count(wanted) < times:
        assert time.monotonic() < deadline, (wanted, lines(folder))
        time.sleep(0.005)


def enqueue(url: str, *names: str) -> None:
    async def put() -> None:
        async def nobody(_task_id: str, _error: Exception) -> None: ...

        engine = DbosEngine(url, executor_id="cli", workers=1, on_failure=nobody)
        async with Database.open(url) as database:
            await engine.prepare()
            for name in names:
                async with database.write() as connection:
                    await connection.run_sync(engine.enqueue_in, name, priority=2)
        await engine.stop()

    asyncio.run(put())


def query(folder: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / "nestor.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def wait_for_success(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        seen = query(folder, "SELECT DISTINCT status FROM workflow_status")
        if seen == [("SUCCESS",)]:
            return
        assert time.monotonic() < deadline, (seen, lines(folder))
        time.sleep(0.02)


def recorded(folder: Path, name: str) -> set[int]:
    rows = query(
        folder,
        f"SELECT function_name FROM operation_outputs WHERE workflow_uuid = '{name}:1'",
    )
    return {int(str(row[0]).removeprefix("step-")) for row in rows}


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_at_any_instant_it_goes_on_from_the_last_recorded_step(
    tmp_path: Path, seed: int
) -> None:
    url = f"sqlite:///{tmp_path / 'nestor.db'}"
    names = ["a", "b"]
    enqueue(url, *names)
    instant = random.Random(seed)
    process = start(url, tmp_path)
    try:
        wait_for(tmp_path, f"a begin {instant.randrange(STEPS)}")
        time.sleep(instant.uniform(0, 0.06))
    finally:
        process.kill()
        process.wait()
    before = {name: recorded(tmp_path, name) for name in names}
    mark = len(lines(tmp_path))
    process = start(url, tmp_path)
    try:
        wait_for_success(tmp_path)
        time.sleep(0.3)  # long enough for a second run to show itself
    finally:
        process.kill()
        process.wait()
    after = lines(tmp_path)[mark:]
    for name in names:
        begun = [
            int(line.rsplit(" ", 1)[1]) for line in after if f"{name} begin" in line
        ]
        assert begun == sorted(set(range(STEPS)) - before[name])
        assert recorded(tmp_path, name) == set(range(STEPS))
        # Killed between the end of the code and its record, only the pure part repeats.
        done_before = f"{name} done" in lines(tmp_path)[:mark]
        assert after.count(f"{name} done") == 1 or done_before
        for number in range(STEPS):
            assert lines(tmp_path).count(f"{name} begin {number}") <= 2
    assert query(tmp_path, "SELECT DISTINCT status FROM workflow_status") == [
        ("SUCCESS",)
    ]
    assert query(tmp_path, "PRAGMA integrity_check") == [("ok",)]


def test_a_restart_takes_up_what_was_left_within_three_seconds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'nestor.db'}"
    enqueue(url, "a")
    process = start(url, tmp_path)
    wait_for(tmp_path, "a begin 2")
    process.kill()
    process.wait()
    process = start(url, tmp_path)
    try:
        wait_for(tmp_path, "up", times=2)
        up = time.monotonic()
        wait_for(tmp_path, "a begin 2", times=2)
        resumed_s = time.monotonic() - up
    finally:
        process.kill()
        process.wait()
    assert resumed_s < 3


def test_a_task_that_kills_its_process_is_given_up_after_five_recoveries(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'nestor.db'}"
    enqueue(url, "a")
    for _ in range(MAX_RECOVERIES + 1):
        assert start(url, tmp_path, "poison").wait(timeout=120) == 9
    process = start(url, tmp_path, "poison")
    try:
        wait_for(tmp_path, "a failed RecoveryLimit")
    finally:
        process.kill()
        process.wait()
    assert lines(tmp_path).count("a begin 0") == MAX_RECOVERIES + 1
