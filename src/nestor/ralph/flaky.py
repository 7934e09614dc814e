"""Which checks are run again on the same tree, and what their runs come to together.

Pure. A check that passes and fails on one tree tells nothing about the work: it never
proves it, and an agent is not blamed for one bad run. Only a run that decides something is
doubted, so that checks that always say the same cost one run more on the base and one at
the end.
"""

from collections.abc import Sequence

import msgspec

from nestor.model.task import CheckRun, Verdict

MAX_RUNS = 3
"""Of one check on one tree; two of them must agree."""
_ENOUGH = 2
_MIN_ALLOWANCE_S = 60.0
_TIMES = 2.0


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What other trees have shown; names of checks."""

    proving: frozenset[str] = frozenset()
    """Failed on the base in a way that a later pass would prove something."""
    passed: frozenset[str] = frozenset()
    """Passed on the base or after the last iteration."""
    flaky: frozenset[str] = frozenset()


NOTHING = Known()


def failing(phase: str, verdicts: Sequence[Verdict], known: Known) -> list[str]:
    """Name the failures to look at again.

    On the base each one that would prove the work; afterwards what passed before, for the
    agent would be blamed for it.
    """
    if phase == "base":
        return [v.check for v in verdicts if not v.passed and v.telling]
    doubted = known.passed | known.flaky
    return [v.check for v in verdicts if not v.passed and v.check in doubted]


def believed(phase: str, verdicts: Sequence[Verdict], known: Known) -> list[str]:
    """Name the passes to look at again: when all pass, those that prove the work."""
    if phase == "base" or not all(v.passed for v in verdicts):
        return []
    doubted = known.proving | known.flaky
    return [v.check for v in verdicts if v.runs == 1 and v.check in doubted]


def allowance_s(firsts: Sequence[Verdict]) -> float:
    """Return how long all further runs on one tree may take together."""
    return max(_MIN_ALLOWANCE_S, _TIMES * sum(verdict.duration_s for verdict in firsts))


def affordable(done: Sequence[Verdict], left_s: float) -> bool:
    """Tell whether one more run, as long as the longest so far, is within ``left_s``."""
    return left_s > 0 and max(run.duration_s for run in done) <= left_s


def wants_another(done: Sequence[Verdict]) -> bool:
    """Tell whether one more run would decide something: the second, or after a pair that differs."""
    return len(done) < MAX_RUNS and (len(done) == 1 or _differ(done))


def settle(done: Sequence[Verdict]) -> Verdict:
    """Make one verdict of the runs of a check on one tree, the first one first."""
    first, count = done[0], len(done)
    if count == 1:
        return first
    runs = [
        CheckRun(
            passed=run.passed,
            exit_code=run.exit_code,
            duration_s=run.duration_s,
            note=run.note,
        )
        for run in done
    ]
    if not _differ(done):
        return msgspec.structs.replace(first, flaky=False, runs=count, each_run=runs)
    won = sum(run.passed for run in done)
    passed = won >= _ENOUGH
    shown = next(run for run in reversed(done) if run.passed is passed)
    said = f"flaky: it passed {won} of {count} runs on the same tree"
    return msgspec.structs.replace(
        shown,
        flaky=True,
        runs=count,
        each_run=runs,
        telling=False,
        note="; ".join(part for part in (said, shown.note) if part),
    )


def _differ(done: Sequence[Verdict]) -> bool:
    return len({run.passed for run in done}) > 1
