"""What the loop remembers between iterations: rebuilt from records after a crash."""

from nestor.model.task import Outcome, Spent, Task, Verdict
from nestor.ports.workspace import Snapshot
from nestor.ralph.decision import Facts, Turn
from nestor.ralph.records import AgentRun, Checked, Prepared
from nestor.ralph.verification import failure_signature


class Turns:
    """The base and the turns so far. Changed by the loop alone, never inside a step."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.turns: list[Turn] = []
        self.commit = prepared.base
        """The newest snapshot of the agent's tree, or the base."""
        self.agent_tree = prepared.base_tree
        """The tree of ``commit``."""
        self.judged = prepared.base
        """The newest commit that verdicts are on: protected paths as on the base."""
        self.restored: list[str] = []
        self.spent = Spent(seconds=prepared.duration_s)
        self.begun = prepared.at
        """When the current iteration began."""

    @property
    def failing(self) -> list[Verdict]:
        """What failed on the newest tree."""
        last = self.turns[-1].verdicts if self.turns else []
        return [verdict for verdict in last if not verdict.passed]

    def add(
        self, turn: Turn, *, snapshot: Snapshot, checked: Checked, spent: Spent
    ) -> None:
        """Note the turn that was just recorded."""
        self.turns.append(turn)
        self.commit = snapshot.commit
        self.agent_tree = snapshot.tree
        self.judged = (checked.judged or snapshot).commit
        self.restored = checked.restored
        self.spent = spent

    def checked_before(self, tree: str) -> tuple[str, list[Verdict]] | None:
        """Find the verdicts on this very tree, and where they are from."""
        if tree == self.prepared.base_tree and self.prepared.base_verdicts:
            return "base", self.prepared.base_verdicts
        for number, turn in enumerate(self.turns, 1):
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
        error_signature=agent.signature,
        failure_signature=failure_signature(checked.verdicts),
    )
