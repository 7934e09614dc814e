"""What happens after an iteration: a pure function of recorded facts."""

from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

import msgspec

from nestor.model.task import (
    Budget,
    Judgement,
    Outcome,
    Reason,
    Spent,
    TaskStatus,
    Verdict,
)

UNCHANGED_LIMIT = 3
"""Iterations in a row that leave the tree as it was."""
SAME_FAILURE_LIMIT = 5
"""Iterations in a row whose checks fail with the same output."""
ERROR_LIMIT = 2
"""Iterations in a row in which the agent itself fails in the same way."""

_SHOWN = 100
_AGENT_FAILED = {
    *(Outcome.AGENT_ERROR, Outcome.USAGE_ERROR, Outcome.REFUSED),
    *(Outcome.TIMEOUT, Outcome.BLOCKED),
}


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One iteration, reduced to what decides."""

    outcome: Outcome
    claimed_done: bool
    tree: str
    """What was judged: the snapshot with its protected paths as on the base."""
    verdicts: list[Verdict]
    """After; empty when verification did not run or there are no checks."""
    judgements: list[Judgement] = []
    """Of a judge, on the same tree; empty: none was asked."""
    error_signature: str = ""
    """Digest of how the agent itself failed; "" when it did not, when it waits for a
    person, or when its time was up before it said anything: that tells nothing apart."""
    failure_signature: str = ""
    """Digest of the failing checks' output; "" when none failed."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``decide`` looks at."""

    base_tree: str
    base_verdicts: list[Verdict]
    guard_only: bool
    has_checks: bool
    turns: Sequence[Turn]
    """Of this attempt: a person who starts another has looked."""
    iterations: int
    """Of all attempts."""
    max_iterations: int
    budget: Budget
    spent: Spent


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """``status`` None: go on. ``blocked``: why the claim of the agent was not accepted."""

    status: TaskStatus | None = None
    reason: Reason | None = None
    blocked: str | None = None


def discriminating(base: Sequence[Verdict], after: Sequence[Verdict]) -> list[str]:
    """Return the checks that failed on the base and pass now, each time they were run."""
    failed = {v.check for v in proving(base)}
    return [
        v.check for v in after if v.passed and v.flaky is not True and v.check in failed
    ]


def proving(base: Sequence[Verdict]) -> list[Verdict]:
    """Return the failures on the base that a later pass would turn into a proof."""
    return [v for v in base if not v.passed and v.telling and v.flaky is not True]


def decide(facts: Facts) -> Decision:
    """Verified, ended for another reason, or go on. The last turn is the newest.

    ``verified`` needs a changed tree, every check passing on it, and at least one of them
    failing on the base, or ``guard_only``. Nothing else is a success, ``judged`` neither.
    """
    turn = facts.turns[-1]
    verdict = _verdict(facts, turn)
    if verdict.status is not None:
        return verdict
    stop = _over_budget(facts) or _stalled(facts.turns, facts.base_tree)
    if stop is None and facts.iterations >= facts.max_iterations:
        stop = Reason.MAX_ITERATIONS
    if stop is not None:
        return Decision(
            status=TaskStatus.EXHAUSTED, reason=stop, blocked=verdict.blocked
        )
    return verdict


def _verdict(facts: Facts, turn: Turn) -> Decision:
    changed = turn.tree != facts.base_tree
    if not facts.has_checks:
        if turn.claimed_done:
            return _judged(turn, Reason.NO_CHECKS, changed=changed)
        return Decision()
    failing = [verdict.check for verdict in turn.verdicts if not verdict.passed]
    if failing or not turn.verdicts:
        said = f"failing: {', '.join(failing)}" if failing else "no check was run"
        return Decision(blocked=said if turn.claimed_done else None)
    told_apart = discriminating(facts.base_verdicts, turn.verdicts)
    if changed and (told_apart or facts.guard_only):
        return Decision(status=TaskStatus.VERIFIED, reason=Reason.CHECKS_PASSED)
    if turn.claimed_done:
        return _judged(turn, Reason.CHECKS_NOT_DISCRIMINATING, changed=changed)
    return Decision()


def _judged(turn: Turn, reason: Reason, *, changed: bool) -> Decision:
    """Decide on a claim that no check proves: unverified, but for what a judge says."""
    said = turn.judgements
    if not changed or not said or any(one.met is None for one in said):
        return Decision(status=TaskStatus.UNVERIFIED, reason=reason)
    if unmet := [one.criterion for one in said if not one.met]:
        named = "; ".join(_shown(criterion) for criterion in unmet)
        return Decision(blocked=f"a judge finds not met: {named}")
    return Decision(status=TaskStatus.JUDGED, reason=Reason.JUDGE_PASSED)


def _shown(criterion: str) -> str:
    line = " ".join(criterion.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _over_budget(facts: Facts) -> Reason | None:
    budget, spent = facts.budget, facts.spent
    # A price nobody knows cannot be kept within a limit: stop rather than guess.
    if budget.usd is not None and (
        spent.usd is None or spent.usd >= Decimal(budget.usd)
    ):
        return Reason.BUDGET_USD
    if budget.tokens is not None and spent.tokens >= budget.tokens:
        return Reason.BUDGET_TOKENS
    if budget.seconds is not None and spent.seconds >= budget.seconds:
        return Reason.BUDGET_SECONDS
    return None


def _stalled(turns: Sequence[Turn], base_tree: str) -> Reason | None:
    last = turns[-ERROR_LIMIT:]
    if (
        len(last) == ERROR_LIMIT
        and all(turn.outcome in _AGENT_FAILED for turn in last)
        and last[0].error_signature
        and len({turn.error_signature for turn in last}) == 1
    ):
        return Reason.REPEATED_ERROR
    trees = [base_tree, *(turn.tree for turn in turns)]
    if len(trees) > UNCHANGED_LIMIT and len(set(trees[-UNCHANGED_LIMIT - 1 :])) == 1:
        return Reason.STALLED
    moves = [tree for before, tree in pairwise(trees) if tree != before]
    if (
        moves and moves.count(moves[-1]) >= UNCHANGED_LIMIT
    ):  # A B A B A: going in circles
        return Reason.STALLED
    failures = [turn.failure_signature for turn in turns[-SAME_FAILURE_LIMIT:]]
    if len(failures) == SAME_FAILURE_LIMIT and failures[0] and len(set(failures)) == 1:
        return Reason.STALLED
    return None
