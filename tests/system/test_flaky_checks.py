"""Checks that pass and fail on one tree: found, said, and never what proves the work."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.system.workbench import FIXED, ended, repository, stack, task

from nestor.model.task import Check, Reason, Task, TaskStatus, Verdict
from nestor.wiring import Nestor

HANG = "."
FIX = f"cat > prompt; printf '%s' '{FIXED}' > calc.py"
TESTED = Check(name="honest", run="python3 -m unittest -q test_calc")


class Coin:
    """Tells a check whether to pass: one sign of the script for each of its runs."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        self.script = iter(script)
        self.thrown = ""

    @property
    def check(self) -> Check:
        ask = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX);"
            f" s.connect('{self.folder}/coin'); sys.exit(s.recv(1) != b'+')"
        )
        return Check(name="coin", run=["python3", "-c", ask])

    async def throw(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        sign = next(self.script, "+")
        self.thrown += sign
        if sign == HANG:
            await reader.read()  # until who asks is killed
        writer.write(sign.encode())
        writer.close()


@asynccontextmanager
async def coin(script: str) -> AsyncIterator[Coin]:
    """Serve where a check finds it."""
    # The path of a socket is short, and tests have long names.
    with tempfile.TemporaryDirectory(prefix="coin") as folder:
        found = Coin(Path(folder), script)
        async with await asyncio.start_unix_server(found.throw, f"{folder}/coin"):
            yield found


async def checked(
    nestor: Nestor,
    repo: Path,
    script: str,
    *more: Check,
    command: str = FIX,
    n: int = 1,
) -> tuple[Task, str, list[Verdict]]:
    """Run a task whose first check says ``script``; return also what it was asked to say."""
    async with coin(script) as found:
        spec = task(
            repo,
            command,
            test_command=None,
            checks=[found.check, *more],
            mounts=[str(found.folder)],
            max_iterations=n,
        )
        done = await ended(nestor, spec, within_s=240)
    base = await nestor.ralph.base_verdicts(done.task_id)
    iterations = await nestor.ralph.iterations(done.task_id)
    verdicts = [*base, *(v for one in iterations for v in one.verdicts)]
    return done, found.thrown, verdicts


def said(verdicts: list[Verdict]) -> str:
    """Every run that was recorded of the coin, in order."""
    runs = [
        run.passed
        for verdict in verdicts
        if verdict.check == "coin"
        for run in verdict.each_run or (verdict,)
    ]
    return "".join("+" if passed else "-" for passed in runs)


async def test_a_flaky_check_proves_nothing(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    scripts = {
        "--++": TaskStatus.VERIFIED,  # the same each time, before and after
        "-++++": TaskStatus.UNVERIFIED,  # flaky on the base, where it passed at last
        "-+-++": TaskStatus.UNVERIFIED,  # flaky on the base, where it failed at last
        "--+-+": TaskStatus.UNVERIFIED,  # flaky on the result
        "--+--": TaskStatus.EXHAUSTED,  # and lost there
    }

    async with stack(tmp_path / "home", workers=3) as nestor:
        found = await asyncio.gather(*(checked(nestor, repo, one) for one in scripts))

    for script, (done, thrown, verdicts) in zip(scripts, found, strict=True):
        assert (done.status, thrown) == (scripts[script], script)
        assert said(verdicts) == script
        flaky = [verdict for verdict in verdicts if verdict.flaky]
        assert bool(flaky) is (done.status is not TaskStatus.VERIFIED), script
        assert all("flaky" in verdict.note for verdict in flaky)
    reasons = {done.reason for done, *_ in found if done.status == "unverified"}
    assert reasons == {Reason.CHECKS_NOT_DISCRIMINATING}


async def test_one_bad_run_is_nobodys_fault_and_what_never_changes_is_run_once_more(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    slowly = "date +%N >> x"

    async with stack(tmp_path / "home", workers=3) as nestor:
        beside, told, steady = await asyncio.gather(
            checked(nestor, repo, "+-++", TESTED),
            checked(nestor, repo, "-+-", TESTED, command="cat > told.txt; false"),
            checked(nestor, repo, "-----", command=slowly, n=3),
        )
        diff = await nestor.ralph.diff(told[0].task_id)

    done, _, verdicts = beside
    assert done.status is TaskStatus.VERIFIED
    flaky, honest = verdicts[-2:]
    assert (flaky.passed, flaky.flaky, flaky.runs) == (True, True, 3)
    assert (honest.passed, honest.flaky, honest.runs) == (True, False, 2)
    # The agent is told not to look for what is not there.
    assert "Do not chase" in diff
    assert told[2][0].flaky
    # Twice on the base, once after each iteration: it never passed, so nothing is new.
    assert steady[1] == "-----"


async def test_further_runs_end_with_what_they_may_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = repository(tmp_path / "repo")
    monkeypatch.setattr("nestor.ralph.flaky._MIN_ALLOWANCE_S", 0.0)
    monkeypatch.setattr("nestor.ralph.flaky._TIMES", 0.0)

    async with stack(tmp_path / "home") as nestor:
        done, thrown, verdicts = await checked(nestor, repo, "-+-")
        monkeypatch.setattr("nestor.ralph.flaky._MIN_ALLOWANCE_S", 3.0)
        begun = asyncio.get_running_loop().time()
        hung, asked, cut = await checked(nestor, repo, f"-{HANG}+{HANG}")
        took_s = asyncio.get_running_loop().time() - begun

    assert (done.status, thrown) == (TaskStatus.VERIFIED, "-+")
    assert (hung.status, asked) == (TaskStatus.VERIFIED, f"-{HANG}+{HANG}")
    # A run that was cut for its cost says nothing about the check.
    assert [verdict.flaky for verdict in [*verdicts, *cut]] == [None] * 4
    assert took_s < 240
