"""A command that Nestor's own lapse ends is no verdict and no failure of the agent."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.system.workbench import FIXED, ended, repository, stack, task

from nestor.backends.sandbox.choice import sandbox_of
from nestor.model.task import Check, Outcome, Reason, SandboxSpec, Task, TaskStatus
from nestor.ports.sandbox import Sandbox, SandboxResult, SandboxRun
from nestor.wiring import stack as wiring

FIX = f"printf '%s' '{FIXED}' > calc.py"
RUBBLE = "touch rubble; touch $NESTOR_SETUP/rubble 2>/dev/null; echo begun; sleep 120"


class Lapsing:
    """A sandbox whose commands of these names are ended at once, that often each.

    As a lost lease does it: through the guardian.
    """

    def __init__(self, inner: Sandbox, times: dict[str, int]) -> None:
        self._inner = inner
        self.times = times
        self.runs: list[SandboxRun] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(self, run: SandboxRun) -> SandboxResult:
        self.runs.append(run)
        name = run.name.partition("/")[2]
        if not self.times.get(name):
            return await self._inner.run(run)
        self.times[name] -= 1
        output = run.run_dir / "output"
        output.unlink(missing_ok=True)  # of the run that was cut before
        argv = ["/bin/sh", "-c", RUBBLE]
        running = asyncio.create_task(
            self._inner.run(msgspec.structs.replace(run, argv=argv))
        )
        async with asyncio.timeout(60):
            while not (output.exists() and b"begun" in output.read_bytes()):
                await asyncio.sleep(0.02)
        about = json.loads((run.run_dir / "guardian.json").read_bytes())
        os.kill(about["guardian"][0], signal.SIGTERM)
        result = await running
        assert result.cancelled
        return result


async def end_of(
    home: Path, times: dict[str, int], **fields: Any
) -> tuple[Task, list[Any], Lapsing]:
    repo = repository(home / "repo")
    made: list[Lapsing] = []

    def lapsing(*args: Any, **more: Any) -> Lapsing:
        made.append(Lapsing(sandbox_of(*args, **more), times))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "sandbox_of", lapsing)
        async with stack(home / "home") as nestor:
            spec = task(repo, f"test ! -e rubble && {FIX}", task_id="t", **fields)
            done = await ended(nestor, spec, within_s=240)
            iterations = await nestor.ralph.iterations("t")
    return done, iterations, made[0]


async def test_what_was_cut_short_runs_again_from_its_start(tmp_path: Path) -> None:
    times = {"setup-1": 2, "base/tests": 1, "agent-1": 2, "after-1/tests": 2}
    once = "test ! -e rubble && test ! -e $NESTOR_SETUP/rubble && touch made"

    done, iterations, _ = await end_of(tmp_path, times, setup=[once])

    assert set(times.values()) == {0}
    assert (done.status, done.detail) == (
        TaskStatus.VERIFIED,
        "Every check passes on a fresh checkout of the result.",
    )
    (only,) = iterations
    assert only.outcome is Outcome.CHANGED
    assert [verdict.note for verdict in only.verdicts] == [""]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("setup-1", "setup"),
        ("base/tests", "check 'tests'"),
        ("agent-1", "the agent"),
        ("after-1/tests", "check 'tests'"),
    ],
)
async def test_what_is_always_cut_short_is_said_as_that(
    tmp_path: Path, name: str, what: str
) -> None:
    done, iterations, _ = await end_of(tmp_path, {name: 99}, setup=["true"])

    assert (done.status, done.reason) == (
        TaskStatus.FAILED,
        Reason.BACKEND_UNAVAILABLE,
    )
    assert f"{what} was ended 3 times by Nestor's side" in done.detail
    assert iterations == []


async def test_a_check_has_the_limits_of_its_task(tmp_path: Path) -> None:
    mib = 1024**2
    limits = SandboxSpec(memory_bytes=512 * mib, disk_bytes=64 * mib, processes=99)

    done, iterations, seen = await end_of(
        tmp_path,
        {},
        sandbox=limits,
        checks=[Check(name="full", run="head -c 200M /dev/zero > full; sleep 60")],
        max_iterations=1,
    )

    assert (done.status, done.reason) == (TaskStatus.EXHAUSTED, Reason.MAX_ITERATIONS)
    checks = [run for run in seen.runs if "agent" not in run.name]
    assert {(run.memory_bytes, run.disk_bytes, run.processes) for run in checks} == {
        (512 * mib, 64 * mib, 99)
    }
    (only,) = iterations
    assert {(v.check, v.note) for v in only.verdicts} >= {
        ("full", "killed: it used more than its disk limit")
    }
