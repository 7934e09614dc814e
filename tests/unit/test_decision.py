"""What may never be called verified, whatever the agent says or does."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from nestor.model.task import (
    Budget,
    Judgement,
    Outcome,
    Reason,
    Spent,
    TaskStatus,
    Verdict,
)
from nestor.ralph.decision import (
    ERROR_LIMIT,
    SAME_FAILURE_LIMIT,
    UNCHANGED_LIMIT,
    Decision,
    Facts,
    Turn,
    decide,
)

BASE = "base-tree"
NO_LIMIT = Budget()
NOTHING = Spent()


def verdict(
    *,
    passed: bool,
    check: str = "tests",
    phase: str = "after",
    flaky: bool | None = None,
) -> Verdict:
    return Verdict(
        flaky=flaky,
        check=check,
        phase=phase,
        passed=passed,
        exit_code=int(not passed),
        duration_s=0.1,
    )


def turn(
    *,
    tree: str = "t1",
    passed: bool | None = True,
    claimed: bool = True,
    outcome: Outcome = Outcome.CHANGED,
    error: str = "",
    failure: str = "",
    flaky: bool | None = None,
    met: tuple[bool | None, ...] = (),
) -> Turn:
    return Turn(
        outcome=outcome,
        claimed_done=claimed,
        tree=tree,
        verdicts=[] if passed is None else [verdict(passed=passed, flaky=flaky)],
        judgements=[
            Judgement(criterion=f"c{n}", met=one) for n, one in enumerate(met, 1)
        ],
        error_signature=error,
        failure_signature=failure,
    )


def facts(
    *turns: Turn,
    base_passes: bool = False,
    guard_only: bool = False,
    has_checks: bool = True,
    max_iterations: int = 10,
    budget: Budget = NO_LIMIT,
    spent: Spent = NOTHING,
) -> Facts:
    return Facts(
        base_tree=BASE,
        base_verdicts=[verdict(passed=base_passes, phase="base")] if has_checks else [],
        guard_only=guard_only,
        has_checks=has_checks,
        turns=turns,
        iterations=len(turns),
        max_iterations=max_iterations,
        budget=budget,
        spent=spent,
    )


def end(decision: Decision) -> tuple[TaskStatus | None, Reason | None]:
    return decision.status, decision.reason


def test_a_check_that_failed_before_and_passes_now_verifies() -> None:
    assert end(decide(facts(turn()))) == (TaskStatus.VERIFIED, Reason.CHECKS_PASSED)


def test_the_claim_is_not_needed_when_the_checks_pass() -> None:
    assert decide(facts(turn(claimed=False))).status is TaskStatus.VERIFIED


def test_a_claim_with_failing_checks_is_blocked_and_the_loop_goes_on() -> None:
    decision = decide(facts(turn(passed=False)))

    assert decision == Decision(blocked="failing: tests")


def test_checks_that_passed_before_prove_nothing() -> None:
    assert end(decide(facts(turn(), base_passes=True))) == (
        TaskStatus.UNVERIFIED,
        Reason.CHECKS_NOT_DISCRIMINATING,
    )
    guarded = facts(turn(), base_passes=True, guard_only=True)
    assert decide(guarded).status is TaskStatus.VERIFIED


def test_an_unchanged_tree_is_never_verified() -> None:
    for base_passes in (True, False):
        idle = facts(turn(tree=BASE), base_passes=base_passes, guard_only=True)
        assert end(decide(idle)) == (
            TaskStatus.UNVERIFIED,
            Reason.CHECKS_NOT_DISCRIMINATING,
        )


def test_without_checks_a_claim_stays_a_claim() -> None:
    assert end(decide(facts(turn(passed=None), has_checks=False))) == (
        TaskStatus.UNVERIFIED,
        Reason.NO_CHECKS,
    )


def test_checks_that_were_not_run_block() -> None:
    assert decide(facts(turn(passed=None))).blocked == "no check was run"


def test_the_last_granted_iteration_exhausts() -> None:
    wrong = turn(passed=False)
    assert decide(facts(wrong, max_iterations=2)).status is None
    other = turn(passed=False, tree="t2")
    assert end(decide(facts(wrong, other, max_iterations=2))) == (
        TaskStatus.EXHAUSTED,
        Reason.MAX_ITERATIONS,
    )


def test_a_pass_in_the_last_iteration_still_counts() -> None:
    done = facts(
        turn(), max_iterations=1, budget=Budget(tokens=1), spent=Spent(tokens=9)
    )
    assert decide(done).status is TaskStatus.VERIFIED


def test_budgets_end_a_task_and_an_unknown_price_is_not_zero() -> None:
    wrong = turn(passed=False)
    cases = [
        (Budget(usd=Decimal(1)), Spent(usd=Decimal(1)), Reason.BUDGET_USD),
        (Budget(usd=Decimal(1)), Spent(usd=None), Reason.BUDGET_USD),
        (Budget(tokens=10), Spent(tokens=10), Reason.BUDGET_TOKENS),
        (Budget(seconds=5), Spent(seconds=5.0), Reason.BUDGET_SECONDS),
    ]
    for budget, spent, reason in cases:
        decision = decide(facts(wrong, budget=budget, spent=spent))
        assert end(decision) == (TaskStatus.EXHAUSTED, reason)
    within = facts(
        wrong, budget=Budget(usd=Decimal(1)), spent=Spent(usd=Decimal("0.9"))
    )
    assert decide(within).status is None


def test_an_agent_that_fails_twice_in_the_same_way_stops_the_loop() -> None:
    broken = turn(
        passed=False,
        claimed=False,
        tree=BASE,
        outcome=Outcome.USAGE_ERROR,
        error="e1",
    )
    other = turn(
        passed=False,
        claimed=False,
        tree=BASE,
        outcome=Outcome.USAGE_ERROR,
        error="e2",
    )
    assert decide(facts(broken)).status is None
    assert decide(facts(broken, other)).status is None
    assert end(decide(facts(*[broken] * ERROR_LIMIT))) == (
        TaskStatus.EXHAUSTED,
        Reason.REPEATED_ERROR,
    )


@pytest.mark.parametrize(
    "outcome", [Outcome.AGENT_ERROR, Outcome.REFUSED, Outcome.TIMEOUT, Outcome.BLOCKED]
)
def test_the_same_twice_stops_the_loop_though_the_tree_changes(
    outcome: Outcome,
) -> None:
    def failed(tree: str, error: str) -> Turn:
        return turn(
            passed=False, claimed=False, tree=tree, outcome=outcome, error=error
        )

    twice = facts(failed("t1", "e1"), failed("t2", "e1"))
    assert end(decide(twice)) == (TaskStatus.EXHAUSTED, Reason.REPEATED_ERROR)
    for second in ("e2", ""):
        assert decide(facts(failed("t1", "e1"), failed("t2", second))).status is None
    nothing = facts(failed("t1", ""), failed("t2", ""))
    assert decide(nothing).status is None, "what was not told cannot be the same"


def test_no_progress_stalls() -> None:
    stuck = [turn(passed=False, tree="t1") for _ in range(UNCHANGED_LIMIT + 1)]
    assert decide(facts(*stuck[:-1])).status is None
    assert decide(facts(*stuck)).reason is Reason.STALLED


def test_going_in_circles_stalls() -> None:
    circle = [turn(passed=False, tree=name) for name in "ABABA"]
    assert decide(facts(*circle[:-1])).status is None
    assert decide(facts(*circle)).reason is Reason.STALLED


def test_the_same_failure_again_and_again_stalls() -> None:
    same = [
        turn(passed=False, tree=f"t{n}", failure="same")
        for n in range(SAME_FAILURE_LIMIT)
    ]
    assert decide(facts(*same[:-1])).status is None
    assert decide(facts(*same)).reason is Reason.STALLED


def test_a_flaky_check_passes_and_proves_nothing() -> None:
    unproven = (TaskStatus.UNVERIFIED, Reason.CHECKS_NOT_DISCRIMINATING)
    assert end(decide(facts(turn(flaky=True)))) == unproven
    assert decide(facts(turn(flaky=False))).status is TaskStatus.VERIFIED
    assert decide(facts(turn(flaky=True), guard_only=True)).status is (
        TaskStatus.VERIFIED
    )
    doubtful = facts(turn())
    base = [structs.replace(v, flaky=True) for v in doubtful.base_verdicts]
    assert end(decide(structs.replace(doubtful, base_verdicts=base))) == unproven


def test_a_judge_decides_where_no_check_does_and_never_verifies() -> None:
    def judged(*met: bool | None, **fields: Any) -> Decision:
        where = {"has_checks": False} | fields
        tree = where.pop("tree", "t1")
        return decide(
            facts(turn(passed=where.pop("passed", None), met=met, tree=tree), **where)
        )

    good = (TaskStatus.JUDGED, Reason.JUDGE_PASSED)
    assert end(judged(True, True)) == good
    assert judged(True, False) == Decision(blocked="a judge finds not met: c2")
    assert end(judged(True, None)) == (TaskStatus.UNVERIFIED, Reason.NO_CHECKS)
    assert end(judged(True, tree=BASE)) == (TaskStatus.UNVERIFIED, Reason.NO_CHECKS)
    weak = {"has_checks": True, "base_passes": True, "passed": True}
    assert end(judged(True, **weak)) == good
    assert judged(False, **weak).blocked
    # A check that proves it, or disproves it, is not for a judge to overrule.
    proof = {"has_checks": True, "passed": True}
    assert end(judged(False, **proof)) == (TaskStatus.VERIFIED, Reason.CHECKS_PASSED)
    wrong = {"has_checks": True, "passed": False}
    assert judged(True, **wrong).blocked == "failing: tests"


TURNS = st.builds(
    turn,
    tree=st.sampled_from([BASE, "t1", "t2"]),
    passed=st.sampled_from([True, False, None]),
    claimed=st.booleans(),
    outcome=st.sampled_from(list(Outcome)),
    error=st.sampled_from(["", "e"]),
    failure=st.sampled_from(["", "f"]),
    flaky=st.sampled_from([None, False, True]),
    met=st.sampled_from([(), (True,), (True, False), (None,)]),
)


@given(
    turns=st.lists(TURNS, min_size=1, max_size=8),
    base_passes=st.booleans(),
    guard_only=st.booleans(),
    has_checks=st.booleans(),
    limit=st.integers(1, 8),
)
def test_verified_always_rests_on_a_changed_tree_and_a_telling_check(
    turns: list[Turn], base_passes: bool, guard_only: bool, has_checks: bool, limit: int
) -> None:
    if not has_checks:  # then there is nothing to have a verdict on
        turns = [structs.replace(one, verdicts=[]) for one in turns]
    given_facts = facts(
        *turns,
        base_passes=base_passes,
        guard_only=guard_only,
        has_checks=has_checks,
        max_iterations=limit,
    )
    decision = decide(given_facts)

    if decision.status is TaskStatus.VERIFIED:
        last = turns[-1]
        assert has_checks
        assert last.tree != BASE
        assert last.verdicts
        assert all(v.passed for v in last.verdicts)
        assert guard_only or not base_passes
        assert guard_only or any(v.flaky is not True for v in last.verdicts)
    if decision.status is TaskStatus.JUDGED:
        assert turns[-1].claimed_done
        assert turns[-1].tree != BASE
        assert all(one.met for one in turns[-1].judgements)
        assert not has_checks or all(v.passed for v in turns[-1].verdicts)
    if decision.status is None:
        assert len(turns) < limit
    assert decide(given_facts) == decision
