"""What the loop remembers between iterations: rebuilt from records after a crash."""

from nestor.model.task import Outcome, Spent, Task, Verdict
from nestor.ports.workspace import Snapshot
from nestor.ralph.decision import Facts, Turn
from nestor.ralph.records import AgentRun, Begun, Carried, Checked
from nestor.ralph.verification import failure_signature


class Turns:
    """The base and the turns of this attempt. Changed by the loop alone, never inside a step."""

    def __init__(self, begun: Begun, carried: Carried) -> None:
        self.prepared = carried.prepared
        self.before = carried.n
        """Iterations of earlier attempts."""
        self.turns: list[Turn] = []
        self.commit = carried.commit
        """The newest snapshot of the agent's tree, or the base."""
        self.agent_tree = carried.agent_tree
        """The tree of ``commit``."""
        self.judged = carried.judged
        """The newest commit that verdicts are on: protected paths as on the base."""
        self.restored = carried.restored
        self.failing = carried.failing
        """What failed on the newest tree."""
        self.judge_error = ""
        """Why a judge said nothing of it, although it was asked."""
        self.spent = carried.spent
        self.begun = begun.at
        """When the current iteration began."""

    @property
    def flaky(self) -> list[str]:
        """Checks that passed and failed on one tree: the base, or one of this attempt."""
        seen = [*self.prepared.base_verdicts, *self.failing]
        seen += [verdict for turn in self.turns for verdict in turn.verdicts]
        return sorted({verdict.check for verdict in seen if verdict.flaky})

    @property
    def carried(self) -> Carried:
        """What a further attempt needs."""
        return Carried(
            n=self.before + len(self.turns),
            prepared=self.prepared,
            commit=self.commit,
            agent_tree=self.agent_tree,
            judged=self.judged,
            restored=self.restored,
            failing=self.failing,
            spent=self.spent,
        )

    def add(
        self, turn: Turn, *, snapshot: Snapshot, checked: Checked, spent: Spent
    ) -> None:
        """Note the turn that was just recorded."""
        self.turns.append(turn)
        self.failing = [v for v in turn.verdicts if not v.passed]
        self.judge_error = checked.judge_error
        self.commit = snapshot.commit
        self.agent_tree = snapshot.tree
        self.judged = (checked.judged or snapshot).commit
        self.restored = checked.restored
        self.spent = spent

    def checked_before(self, tree: str) -> tuple[str, list[Verdict]] | None:
        """Find the verdicts on this very tree, and where they are from."""
        if tree == self.prepared.base_tree and self.prepared.base_verdicts:
            return "base", self.prepared.base_verdicts
        for number, turn in enumerate(self.turns, self.before + 1):
            if turn.tree == tree and turn.verdicts:
                return f"iteration {number}", turn.verdicts
        return None

    def outcome(self, agent: AgentRun, snapshot: Snapshot) -> Outcome:
        """Class of what the agent did."""
        if agent.failure is not None:
            return Outcome(agent.failure)
        same = snapshot.tree == self.agent_tree
        return Outcome.UNCHANGED if same else Outcome.CHANGED


def facts_of(task: Task, turns: Turns) -> Facts:
    """Everything the decision looks at."""
    return Facts(
        base_tree=turns.prepared.base_tree,
        base_verdicts=turns.prepared.base_verdicts,
        guard_only=task.spec.guard_only,
        has_checks=bool(task.spec.all_checks),
        turns=turns.turns,
        iterations=turns.before + len(turns.turns),
        max_iterations=task.max_iterations,
        budget=task.budget,
        spent=turns.spent,
    )


def turn_of(
    turns: Turns, agent: AgentRun, snapshot: Snapshot, checked: Checked
) -> Turn:
    """Reduce an iteration's records to what decides."""
    return Turn(
        outcome=turns.outcome(agent, snapshot),
        claimed_done=agent.claims_done,
        tree=(checked.judged or snapshot).tree,
        verdicts=checked.verdicts,
        judgements=checked.judgements,
        error_signature=_told_apart(agent),
        failure_signature=failure_signature(checked.verdicts),
    )


def _told_apart(agent: AgentRun) -> str:
    """Return its signature where the same again would mean that it goes round in circles."""
    silent = agent.failure == Outcome.TIMEOUT and not agent.output_tail.strip()
    # Many programs print at their end only: cut off twice, they may well have got on.
    return "" if silent or agent.unanswered else agent.signature
