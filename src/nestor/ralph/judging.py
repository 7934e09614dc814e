"""Stage judge: criteria in prose, where no check can tell, put to a model with evidence.

Never a verdict: the best that comes of it is the status ``judged``.
"""

import asyncio
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from nestor.errors import NestorError, WorkspaceError
from nestor.model.routing import NamedRoute
from nestor.model.task import Judgement, Task
from nestor.ports.workspace import Snapshot
from nestor.ralph.decision import discriminating
from nestor.ralph.judge_answer import (
    MAX_FILES,
    Unusable,
    criteria_of,
    holds,
    nothing_said,
    question,
    read_answer,
)
from nestor.ralph.parts import CANCELLED, Parts, say, until_cancelled
from nestor.ralph.records import AgentRun, Checked, Judged
from nestor.ralph.turns import Turns
from nestor.telemetry.trace import trace

_ANSWERS = 2
"""How often it is asked about one tree: an answer of no use is asked for once more."""
_MAX_ANSWER_TOKENS = 4_000
_MAX_READ_BYTES = 2 * 1024 * 1024


def wanted(
    task: Task, turns: Turns, agent: AgentRun, judged: Snapshot, checked: Checked
) -> bool:
    """Tell whether a judge could say something about this iteration. Pure.

    Where no check tells and the agent says it is done; where checks prove the work, only
    about criteria, and only for information.
    """
    verdicts, spec = checked.verdicts, task.spec
    if judged.tree == turns.prepared.base_tree or not all(v.passed for v in verdicts):
        return False
    proven = spec.guard_only or discriminating(turns.prepared.base_verdicts, verdicts)
    if verdicts and proven:
        return bool(spec.completion_criteria)
    return agent.claims_done


async def judge(p: Parts, task: Task, n: int, judged: Snapshot, turns: Turns) -> Judged:
    """Ask the configured judge about the tree, at most once a tree; none configured: nothing."""
    if p.judge_model is None:
        return Judged()
    await say(p, task, n, "judge")
    with trace(task.trace_id):
        result = await until_cancelled(
            p, task, _judge(p, task, n, judged, turns, p.judge_model)
        )
    return result or Judged(end=CANCELLED)


def with_judgement(checked: Checked, judged: Judged) -> Checked:
    """Add what the judge said, and what it cost, to what the checks said."""
    checked = msgspec.structs.replace(
        checked,
        judgements=judged.judgements,
        judge_model=judged.model,
        judge_error=judged.error,
        duration_s=checked.duration_s + judged.duration_s,
    )
    if judged.total is None or judged.iteration is None:
        return checked
    return msgspec.structs.replace(
        checked, total=judged.total, iteration=judged.iteration
    )


async def _judge(
    p: Parts, task: Task, n: int, judged: Snapshot, turns: Turns, name: str
) -> Judged:
    for earlier in await p.store.iterations(task.task_id):
        known = earlier.judgements and all(
            j.met is not None for j in earlier.judgements
        )
        if earlier.n != n and earlier.tree == judged.tree and known:
            return Judged(judgements=earlier.judgements, model=earlier.judge_model)
    begun = time.monotonic()
    tree = p.workspaces.folder(task.task_id) / f"checkout-judge-{n}"
    try:
        diff = await p.workspaces.diff(task.task_id, judged.commit, turns.prepared.base)
        paths = frozenset(await p.workspaces.files(task.task_id, judged.commit))
        await p.workspaces.checkout(task.task_id, judged.commit, tree)
        found = await _ask(p, task, n, diff, _Tree(tree, paths), name)
    except WorkspaceError as error:
        found = Judged(error=str(error))
    finally:
        await p.workspaces.remove(tree)
    return msgspec.structs.replace(
        found,
        duration_s=time.monotonic() - begun,
        total=await p.router.meter(task.task_id),
        iteration=await p.router.meter(task.task_id, iteration=n),
    )


class _Tree:
    """The files of the judged commit, read where they were written out."""

    def __init__(self, root: Path, paths: frozenset[str]) -> None:
        self._root = root
        self._paths = paths

    def text(self, path: str) -> str | None:
        """Read a file of the commit; None for what is none, a link, or too large."""
        if path not in self._paths:
            return None
        try:
            handle = os.open(
                self._root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:
            return None
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            data = file.read(_MAX_READ_BYTES + 1)
        return None if len(data) > _MAX_READ_BYTES else data.decode(errors="replace")

    def stands(self, path: str, quote: str) -> bool:
        """Tell whether a quote stands literally in that file."""
        text = self.text(path)
        return text is not None and holds(text, quote)

    def named(self, names: Sequence[str]) -> Mapping[str, str]:
        """Read the files that the task names."""
        found = {name: self.text(os.path.normpath(name)) for name in names[:MAX_FILES]}
        return {name: text for name, text in found.items() if text is not None}


async def _ask(
    p: Parts, task: Task, n: int, diff: str, tree: _Tree, judge: str
) -> Judged:
    criteria, refused, model = criteria_of(task.spec), "", judge
    files = await asyncio.to_thread(tree.named, task.spec.files)
    for _ in range(_ANSWERS):
        query = question(task.spec, diff=diff, files=files, refused=refused)
        try:
            answer = await p.router.route(
                NamedRoute(
                    query=query,
                    context=[],
                    iteration=n,
                    task_id=task.task_id,
                    model=judge,
                    max_tokens=_MAX_ANSWER_TOKENS,
                )
            )
        except NestorError as error:
            return _without(criteria, f"the judge did not answer: {error}", model)
        model = answer.model or model
        try:
            said: list[Judgement] = await asyncio.to_thread(
                read_answer, answer.response, criteria, tree.stands
            )
        except Unusable as error:
            refused = str(error)
            continue
        return Judged(judgements=said, model=model)
    return _without(criteria, f"the judge's answer is of no use: {refused}", model)


def _without(criteria: Sequence[str], why: str, model: str | None) -> Judged:
    return Judged(judgements=nothing_said(criteria, why), model=model, error=why)
