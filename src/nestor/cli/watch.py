"""Follow a task's live stream and say what happens, one line at a time."""

from collections.abc import Callable
from typing import Any

from nestor.cli.client import ServerEvent, Stack, task_path
from nestor.cli.inert import one_line
from nestor.cli.render import Screen, seconds, usd

_TAIL_LINES = 12
_STEPS = {
    "context": "asking the knowledge base for context",
    "guidance": "asking a model for guidance",
    "agent": "the agent is working",
    "verify": "running the checks in a fresh checkout",
}
"""Steps worth a line; the others take no time that a person would notice."""


def follow(
    stack: Stack,
    screen: Screen,
    task_id: str,
    *,
    quiet: bool = False,
    keep: list[ServerEvent] | None = None,
) -> dict[str, Any]:
    """Follow a task to its end and return it as the stack then shows it.

    ``keep`` gets every event of the stream.
    """
    path = task_path(task_id)

    def now() -> str:
        return flags(stack.call("ralph", "GET", path))

    show = _Live(screen, now)
    with screen.waiting(f"task {task_id} is being worked on"):
        for event in stack.stream("ralph", f"{path}/events"):
            if keep is not None:
                keep.append(event)
            if not quiet:
                show(event)
    task: dict[str, Any] = stack.call("ralph", "GET", path)
    return task


def show_end(screen: Screen, task: dict[str, Any]) -> None:
    """Print how a task ended, what it cost, and where the result is."""
    status = str(task.get("status"))
    spent = task.get("spent") or {}
    budget = task.get("budget") or {}
    cost = usd(spent.get("usd", budget.get("spent_usd")))
    screen.line(
        f"{status}: {task.get('reason')} after {task.get('iteration')} iteration(s),"
        f" cost {cost}{flags(task)}",
        "verified" if status == "verified" else "failed",
    )
    if task.get("detail"):
        screen.line(f"  {task['detail']}")
    if task.get("branch"):
        screen.line(
            f"  branch {task['branch']} in {task.get('workspace') or 'scratch'}"
        )


def flags(task: dict[str, Any]) -> str:
    """Say what a reader must know before trusting this: a replayed model, no sandbox."""
    found = ""
    if task.get("replayed"):
        found += " [replayed model]"
    if task.get("sandboxed") is False:
        found += " [no sandbox]"
    return found


class _Live:
    """Prints each event once; what did not change is not said again.

    ``flags_now`` asks the stack whether answers were replayed, or a sandbox was missing.
    """

    def __init__(self, screen: Screen, flags_now: Callable[[], str]) -> None:
        self._screen = screen
        self._flags_now = flags_now
        self._sources: list[str] = []
        self._said: set[tuple[object, ...]] = set()

    def __call__(self, event: ServerEvent) -> None:
        data = event.data
        if event.kind in {"task", "end"}:
            self._task(data)
        elif event.kind == "iteration":
            self._iteration(data)
        elif event.kind == "verdict" and data.get("phase") == "base":
            # The others stand in their iteration, after what the agent says.
            self._verdict(data)
        elif event.kind == "output":
            self._output(data)
        elif event.kind == "approval":
            self._once(f"approval: {one_line(data.get('what', ''), 300)}", "warn")

    def _once(self, text: str, style: str = "", *, about: object = "") -> None:
        if (about, text) not in self._said:
            self._said.add((about, text))
            self._screen.line(text, style)

    def _task(self, data: dict[str, Any]) -> None:
        status, reason = data.get("status"), data.get("reason")
        if status:
            because = f" ({reason})" if reason else ""
            self._once(f"task: {status}{because}{flags(data)}", str(status))
        if data.get("detail"):
            self._once(f"  {one_line(data['detail'], 300)}", "note")

    def _iteration(self, data: dict[str, Any]) -> None:
        n = data.get("n")
        self._once(f"iteration {n}", "heading", about=n)
        if data.get("step") in _STEPS:
            self._once(f"  {_STEPS[data['step']]}", "note", about=n)
        self._told(n, data)
        if data.get("outcome"):
            self._attempt(n, data)

    def _told(self, n: object, data: dict[str, Any]) -> None:
        """Say what the agent was given: context and guidance."""
        sources = [one_line(i.get("source")) for i in data.get("context_items") or []]
        if sources and sources == self._sources:
            self._once("  context: the same as before", about=n)
        for source in [] if sources == self._sources else sources:
            self._once(f"  context: {source}", about=n)
        self._sources = sources or self._sources
        if data.get("guidance"):
            who = f"{data.get('model')}, {data.get('route')}"
            text = one_line(data["guidance"], 300)
            self._once(f"  guidance ({who}): {text}", about=n)

    def _attempt(self, n: object, data: dict[str, Any]) -> None:
        """Say what the agent did, and what the checks said to that."""
        claims = ", says it is done" if data.get("claimed_done") else ""
        stat = data.get("diff_stat") or {}
        size = (
            f", {stat.get('files')} file(s) +{stat.get('insertions')}"
            f" -{stat.get('deletions')}"
            if stat
            else ""
        )
        self._once(f"  agent: {data['outcome']}{claims}{size}", about=n)
        if data.get("output_tail") and data.get("claimed_done"):
            self._once(f"    “{one_line(data['output_tail'], 200)}”", "note", about=n)
        for path in data.get("protected_restored") or []:
            self._once(f"  protected, put back as on the base: {path}", "warn", about=n)
        for verdict in data.get("verdicts") or []:
            self._verdict({"n": n, **verdict})
        if data.get("blocked_reason"):
            reason = one_line(data["blocked_reason"], 300)
            self._once(f"  exit blocked: {reason}", "blocked", about=n)
        cost = usd(data.get("cost_usd"))
        self._once(f"  cost: {cost}{self._flags_now()}", "note", about=n)

    def _verdict(self, data: dict[str, Any]) -> None:
        passed = bool(data.get("passed"))
        about = (data.get("n"), data.get("phase"), data.get("check"))
        if about in self._said:
            return
        self._said.add(about)
        where = "on the base" if data.get("phase") == "base" else "after"
        tests = f", {data['tests']} tests" if data.get("tests") is not None else ""
        self._screen.line(
            f"  check {one_line(data.get('check'))} {where}:"
            f" {'passed' if passed else 'failed'} (exit {data.get('exit_code')},"
            f" {seconds(data.get('duration_s'))}{tests})",
            "passed" if passed else "failed",
        )
        if data.get("note"):
            self._screen.line(f"    {one_line(data['note'], 300)}", "warn")
        if not passed and data.get("phase") != "base":
            tail = str(data.get("output_tail", "")).strip().splitlines()[-_TAIL_LINES:]
            for row in tail:
                self._screen.line(f"    | {row}", "note")

    def _output(self, data: dict[str, Any]) -> None:
        text = str(data.get("text") or data.get("output") or data.get("line") or "")
        for row in text.strip().splitlines()[-_TAIL_LINES:]:
            self._screen.line(f"  > {row}", "note")
