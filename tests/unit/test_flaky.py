"""Which checks are run again, and what several runs on one tree come to."""

import pytest
from msgspec import structs

from nestor.model.task import Verdict
from nestor.ralph.flaky import (
    NOTHING,
    Known,
    affordable,
    allowance_s,
    believed,
    failing,
    settle,
    wants_another,
)


def run(*, passed: bool, check: str = "tests", took_s: float = 1.0) -> Verdict:
    return Verdict(
        check=check,
        phase="after",
        passed=passed,
        exit_code=int(not passed),
        duration_s=took_s,
        output_tail="good" if passed else "bad",
    )


def runs(pattern: str) -> list[Verdict]:
    return [run(passed=sign == "+") for sign in pattern]


@pytest.mark.parametrize(
    ("pattern", "passed", "flaky"),
    [
        ("+", True, None),
        ("-", False, None),
        ("++", True, False),
        ("--", False, False),
        ("+-", False, True),
        ("-+", False, True),
        ("+-+", True, True),
        ("-++", True, True),
        ("+--", False, True),
        ("-+-", False, True),
    ],
)
def test_two_of_three_runs_decide_and_a_differing_pair_is_flaky(
    pattern: str, passed: bool, flaky: bool | None
) -> None:
    verdict = settle(runs(pattern))

    assert (verdict.passed, verdict.flaky) == (passed, flaky)
    assert verdict.runs == len(pattern)
    assert verdict.telling is (flaky is not True)
    assert verdict.output_tail == ("good" if passed else "bad")
    each = [one.passed for one in verdict.each_run]
    assert each == ([sign == "+" for sign in pattern] if len(pattern) > 1 else [])
    assert ("flaky" in verdict.note) is (flaky is True)


@pytest.mark.parametrize(
    ("pattern", "more"),
    [("+", True), ("++", False), ("+-", True), ("--", False), ("+-+", False)],
)
def test_a_third_run_is_for_a_pair_that_differs(pattern: str, more: bool) -> None:
    assert wants_another(runs(pattern)) is more


def test_on_the_base_each_failure_that_would_prove_something_is_doubted() -> None:
    first = [run(passed=False, check="a"), run(passed=True, check="b")]
    first.append(structs.replace(run(passed=False, check="c"), telling=False))

    assert failing("base", first, NOTHING) == ["a"]
    assert believed("base", [run(passed=True)], NOTHING) == []


def test_afterwards_what_failed_before_is_not_run_again() -> None:
    first = [run(passed=False, check=name) for name in "abc"]
    known = Known(proving=frozenset("a"), passed=frozenset("b"), flaky=frozenset("c"))

    assert failing("after", first, known) == ["b", "c"]
    assert failing("after", first, NOTHING) == []


def test_a_pass_is_doubted_where_it_proves_something_and_all_pass() -> None:
    known = Known(proving=frozenset("a"), passed=frozenset("b"))
    good = [run(passed=True, check=name) for name in "ab"]

    assert believed("after", good, known) == ["a"]
    assert believed("after", [*good, run(passed=False, check="c")], known) == []
    again = [settle([one, one]) for one in good]
    assert believed("after", again, known) == []


def test_further_runs_have_a_bound() -> None:
    assert allowance_s([run(passed=True, took_s=1)]) == 60
    assert allowance_s([run(passed=True, took_s=50)] * 2) == 200
    assert affordable([run(passed=True, took_s=10)], 10)
    assert not affordable([run(passed=True, took_s=10)], 9.9)
    assert not affordable([run(passed=True, took_s=0)], 0)
