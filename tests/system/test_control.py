"""Resume, retry, rollback and fork through the real loop: backend ``command``, git, SQLite."""

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.system.workbench import (
    ADMIN,
    FIXED,
    ended,
    git,
    repository,
    stack,
    task,
    until_ended,
)

from nestor.errors import Conflict, InvalidInput
from nestor.model.task import Budget, ForkPoint, Reason, TaskStatus
from nestor.ralph.attempts import BudgetChange, Further
from nestor.wiring import Nestor


def agent(right_at: int) -> str:
    """Leaves one line an iteration, and is right when there are so many."""
    return (
        "echo line >> log.txt; "
        f"if [ $(wc -l < log.txt) -ge {right_at} ]; then printf '%s' '{FIXED}' > calc.py; fi"
    )


def lines(repo: Path, branch: str) -> int:
    """How many iterations the tree of a branch has seen."""
    return git(repo, "show", f"{branch}:log.txt").count("line")


def tip(repo: Path, branch: str) -> str:
    return git(repo, "rev-parse", branch).strip()


async def actions(nestor: Nestor) -> list[str]:
    assert (await nestor.audit.verify()).broken_at is None
    return [one.action for one in await nestor.audit.entries()]


async def test_an_exhausted_task_goes_on_where_its_tree_stood(tmp_path: Path) -> None:
    repo, home = repository(tmp_path / "repo"), tmp_path / "home"
    async with stack(home) as nestor:
        first = await ended(nestor, task(repo, agent(3), task_id="t"))
        assert (first.status, first.reason) == ("exhausted", "max_iterations")
        assert lines(repo, "nestor/t") == 2
        queued = await nestor.ralph.resume("t", Further(note="go on"), by=ADMIN)
        assert (queued.status, queued.attempt, queued.max_iterations) == (
            *("queued", 2, 4),
        )
        assert (queued.ended_at, queued.reason, queued.detail) == (None, None, "")
        done = await until_ended(nestor, "t")
        recorded = await nestor.ralph.iterations("t")
        assert await actions(nestor) == ["resume"]
        with pytest.raises(Conflict, match="verified"):
            await nestor.ralph.resume("t", Further(), by=ADMIN)

    assert (done.status, done.iteration, done.attempt) == ("verified", 3, 2)
    assert [one.n for one in recorded] == [1, 2, 3]
    assert lines(repo, "nestor/t") == 3
    log = (home / "telemetry" / "unified-events.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in log]
    kinds = Counter(e["event_type"] for e in told if e.get("task_id") == "t")
    assert (kinds["task_started"], kinds["task_iteration"]) == (2, 3)
    assert kinds["task_completed"] == 2
    durable = {"task_started", "task_iteration", "task_completed"}
    ids = [e["id"] for e in told if e["event_type"] in durable]
    assert len(ids) == len(set(ids)) == 7


async def test_a_retry_begins_at_the_base_and_a_rollback_anywhere(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home") as nestor:
        await ended(nestor, task(repo, agent(9), task_id="t"))
        await nestor.ralph.retry("t", Further(iterations=1), by=ADMIN)
        again = await until_ended(nestor, "t")
        assert (again.iteration, again.max_iterations) == (3, 3)
        assert lines(repo, "nestor/t") == 1
        back = await nestor.ralph.rollback("t", 2, by=ADMIN)
        assert (back.status, back.reason) == (again.status, again.reason)
        assert (back.rolled_back_to, back.detail) == (2, again.detail)
        assert lines(repo, "nestor/t") == 2
        assert "+line\n+line\n" in await nestor.ralph.diff("t")
        await nestor.ralph.resume("t", Further(iterations=1), by=ADMIN)
        on = await until_ended(nestor, "t")
        assert (on.iteration, on.rolled_back_to) == (4, None)
        assert lines(repo, "nestor/t") == 3
        base = await nestor.ralph.rollback("t", 0, by=ADMIN)
        assert tip(repo, "nestor/t") == base.base
        assert await nestor.ralph.diff("t") == ""
        with pytest.raises(InvalidInput, match="1 to 4"):
            await nestor.ralph.rollback("t", 5, by=ADMIN)
        found = await actions(nestor)
    assert found == ["retry", "rollback", "resume", "rollback"]


async def test_what_is_rolled_back_is_verified_no_more_and_can_be_forked(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home") as nestor:
        spec = task(repo, agent(2), task_id="t")
        assert (await ended(nestor, spec)).status is TaskStatus.VERIFIED
        verified = tip(repo, "nestor/t")
        same = await nestor.ralph.rollback("t", 2, by=ADMIN)
        assert (same.status, tip(repo, "nestor/t")) == ("verified", verified)

        git(repo, "checkout", "-q", "nestor/t")
        with pytest.raises(Conflict, match="checked out"):
            await nestor.ralph.rollback("t", 1, by=ADMIN)
        stuck = await nestor.ralph.get("t")
        assert (stuck.success, tip(repo, "nestor/t")) == (False, verified)
        assert "not moved yet" in stuck.detail
        git(repo, "checkout", "-q", "main")
        back = await nestor.ralph.rollback("t", 1, by=ADMIN)
        assert (back.status, back.reason) == (TaskStatus.CANCELLED, Reason.CANCELLED)
        assert "verified at iteration 2" in back.detail
        assert "not moved" not in back.detail
        assert lines(repo, "nestor/t") == 1

        forked = await nestor.ralph.fork("t", 2, into="f", by=ADMIN)
        assert forked.forked_from == ForkPoint(task_id="t", iteration=2)
        assert (forked.attempt, forked.spent.tokens) == (1, 0)
        assert forked.checks_digest == back.checks_digest
        twin = await nestor.ralph.fork("t", 2, into="f", by=ADMIN)
        assert twin.created_at == forked.created_at
        with pytest.raises(Conflict, match="another body"):
            await nestor.ralph.fork("t", 0, into="f", by=ADMIN)
        done = await until_ended(nestor, "f")
        found = await actions(nestor)

    assert (done.status, done.iteration) == (TaskStatus.VERIFIED, 1)
    assert lines(repo, "nestor/f") == 3
    assert lines(repo, "nestor/t") == 1
    assert found == ["rollback", "rollback", "rollback", "fork"]


async def test_what_a_budget_ended_needs_a_larger_one(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home") as nestor:
        spec = task(repo, agent(2), task_id="t", budget=Budget(seconds=0.01))
        first = await ended(nestor, spec)
        assert (first.reason, first.iteration) == (Reason.BUDGET_SECONDS, 1)
        for seconds in (0.01, first.spent.seconds):
            little = Further(budget=BudgetChange(seconds=seconds))
            with pytest.raises(Conflict, match=r"raise budget\.seconds"):
                await nestor.ralph.resume("t", little, by=ADMIN)
        with pytest.raises(Conflict, match=r"raise budget\.seconds"):
            await nestor.ralph.retry("t", Further(), by=ADMIN)
        wrong = Further(budget=BudgetChange(tokens=0))
        with pytest.raises(InvalidInput, match=r"budget\.tokens"):
            await nestor.ralph.resume("t", wrong, by=ADMIN)
        assert (await nestor.ralph.get("t")).attempt == 1
        more = Further(budget=BudgetChange(seconds=600.0))
        await nestor.ralph.resume("t", more, by=ADMIN)
        done = await until_ended(nestor, "t")
    assert (done.status, done.budget.seconds) == (TaskStatus.VERIFIED, 600.0)
