"""Follow a task's live stream and say what happens, one line at a time."""

import re
import sys
from collections.abc import Callable
from typing import Any

from nestor.cli.asked import answering, show_questions, show_subject
from nestor.cli.client import ServerEvent, Stack, task_path
from nestor.cli.flags import flags
from nestor.cli.inert import inert, one_line
from nestor.cli.render import Screen, seconds, usd
from nestor.cli.standing import how_to_go_on

_TAIL_LINES = 12
_SETUP_LINES = 6
_USEFUL_LINES = 3
_USEFUL = re.compile(
    r"error|fail|not found|no such|cannot|denied|missing", re.IGNORECASE
)
"""A line of a failed command's output that may say why, wherever it stands."""
_STEPS = {
    "context": "asking the knowledge base",
    "guidance": "asking a model for guidance",
    "agent": "the agent is working",
    "verify": "checking",
    "judge": "a judge reads the work",
}
"""Steps worth a line; the others take no time that a person would notice."""
_WORKED = {"changed", "unchanged"}
"""How a run of an agent ends that did not fail."""
_SETUP_FAILED = re.compile(r"(setup\.\d+: .*? failed \([^)]*\)): ?(.*)", re.DOTALL)


def follow(
    stack: Stack,
    screen: Screen,
    task_id: str,
    *,
    quiet: bool = False,
    keep: list[ServerEvent] | None = None,
) -> dict[str, Any]:
    """Follow a task to its end and return it as the stack then shows it.

    ``keep`` gets every event of the stream. ``quiet``: only what a person is asked is
    said, as a task that waits for that would seem to hang.
    """
    path = task_path(task_id)

    def now() -> str:
        return flags(stack.call("ralph", "GET", path))

    with screen.waiting(f"task {task_id} is being worked on") as going_on:
        show = _Live(screen, task_id, now, going_on)
        for event in stack.stream("ralph", f"{path}/events"):
            if keep is not None:
                keep.append(event)
            if not quiet:
                show(event)
            elif event.kind == "approval" and event.data.get("approved") is None:
                _say_asked(stack.call("ralph", "GET", path), event.data)
    task: dict[str, Any] = stack.call("ralph", "GET", path)
    return task


def _say_asked(task: dict[str, Any], asked: dict[str, Any]) -> None:
    """Say on standard error what is waited for; nothing when it was answered since."""
    name = asked.get("approval_id")
    if name not in [one.get("id") for one in task.get("questions") or []]:
        return
    task_id = str(task.get("task_id"))
    answer = answering(task_id, one_line(name, 80))
    print(  # noqa: T201 - standard output may be for a program
        f"task {inert(task_id)} asks: {one_line(asked.get('what', ''), 1000)}\n"
        f"  it waits for a person: see it with: nestor status {inert(task_id)},"
        f" answer it with: {inert(answer)}",
        file=sys.stderr,
        flush=True,
    )


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
        show_detail(screen, str(task["detail"]))
    if status != "verified":
        show_questions(screen, task)
    if go_on := how_to_go_on(task):
        screen.line(f"  {go_on}", "note")
    if task.get("branch"):
        screen.line(
            f"  branch {task['branch']} in {task.get('workspace') or 'scratch'}"
        )


def show_detail(screen: Screen, detail: str) -> None:
    """Print the sentence about a task; of a failed setup, the end of what it printed."""
    failed = _SETUP_FAILED.fullmatch(detail)
    if failed is None:
        screen.block(detail)
        return
    screen.line(f"  {one_line(failed[1], 500)}", "failed")
    # What came is the end of the output, cut anywhere: its first line may be half a one.
    lines = [line for line in failed[2].splitlines() if line.strip()]
    lines = lines[1:] or lines
    early = [line for line in lines[:-_SETUP_LINES] if _USEFUL.search(line)]
    for line in early[-_USEFUL_LINES:] + lines[-_SETUP_LINES:]:
        screen.line(f"    | {line}", "note", hang=2)
    screen.line(
        "  mend that command and submit again, under another --id: it runs with network in"
        " a copy of the base, and only what it writes to /setup is kept",
    )


def tail_of(text: object) -> list[str]:
    """Return the last lines of an output, without blank ones, and how many came before."""
    lines = [line.rstrip() for line in str(text or "").splitlines() if line.strip()]
    before = len(lines) - _TAIL_LINES
    mark = [f"… {before} lines before these: nestor logs"] if before > 0 else []
    return mark + lines[-_TAIL_LINES:]


class _Live:
    """Prints each event once; what did not change is not said again.

    An iteration is printed when it is recorded, in the order in which it went; until then
    ``going_on`` is told where it stands. ``flags_now`` asks the stack whether answers were
    replayed, or a sandbox was missing.
    """

    def __init__(
        self,
        screen: Screen,
        task_id: str,
        flags_now: Callable[[], str],
        going_on: Callable[[str], None],
    ) -> None:
        self._screen = screen
        self._task_id = task_id
        self._flags_now = flags_now
        self._going_on = going_on
        self._sources: list[str] = []
        self._attempts = 0
        """How often it was begun again."""
        self._said: set[tuple[object, ...]] = set()

    def __call__(self, event: ServerEvent) -> None:
        data = event.data
        if event.kind == "task":  # of the end, what is stored then says more
            self._task(data)
        elif event.kind == "iteration":
            self._iteration(data)
        elif event.kind == "verdict" and data.get("phase") == "base":
            # The others stand in their iteration, after what the agent says.
            self._verdict(data)
        elif event.kind == "output":
            self._output(data)
        elif event.kind == "approval":
            self._approval(data)

    def _once(self, text: str, style: str = "", *, about: object = "") -> None:
        if (about, text) not in self._said:
            self._said.add((about, text))
            self._screen.line(text, style)

    def _task(self, data: dict[str, Any]) -> None:
        status, reason = data.get("status"), data.get("reason")
        attempt = data.get("attempt")
        if data.get("action"):  # a person has begun it again, or put it back
            self._attempts += 1
            which = f", attempt {attempt}" if attempt else ""
            self._once(
                f"{data['action']}{which}", "heading", about=("again", self._attempts)
            )
        if data.get("rolled_back_to") is not None:
            self._once(f"put back to iteration {data['rolled_back_to']}", "warn")
        if status:
            because = f" ({reason})" if reason else ""
            text = f"task: {status}{because}{flags(data)}"
            self._once(text, str(status), about=("task", self._attempts))
        if waits := data.get("waits_for"):
            self._once(f"  waits for {', '.join(map(one_line, waits))}", "note")
        if data.get("step") == "prepare":
            self._step("preparing the environment", "prepare", self._attempts)
        if data.get("detail"):
            self._once(f"  {one_line(data['detail'], 300)}", "note")

    def _approval(self, data: dict[str, Any]) -> None:
        """Say what a person is asked, and how to answer; or the answer."""
        name = one_line(data.get("approval_id") or "", 80)
        if data.get("approved") is None:
            if ("asked", name) in self._said:
                return
            self._said.add(("asked", name))
            self._screen.line(f"asks: {one_line(data.get('what', ''), 1000)}", "warn")
            if data.get("subject"):
                show_subject(self._screen, data)
            else:
                seen = f"nestor status {self._task_id}"
                self._screen.line(f"  see all that it brings with: {seen}", "note")
            answer = answering(self._task_id, name)
            self._screen.line(f"  answer it with: {answer}", "note")
            return
        answer = "allowed" if data["approved"] else "refused"
        what = one_line(data.get("subject") or name, 200)
        note = f": {one_line(data['note'], 200)}" if data.get("note") else ""
        self._once(f"{answer} {what}".strip() + note, "warn", about=("answer", name))

    def _step(self, text: str, *about: object) -> None:
        if (*about, text) not in self._said:
            self._said.add((*about, text))
            self._going_on(text)

    def _iteration(self, data: dict[str, Any]) -> None:
        n = data.get("n")
        if data.get("step") in _STEPS:
            self._step(f"iteration {n}: {_STEPS[data['step']]}", n)
        if data.get("outcome"):
            self._once(f"iteration {n}", "heading", about=n)
            self._told(n, data)
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
        for note in data.get("notes") or []:
            self._once(f"  not had: {one_line(note, 300)}", "warn", about=n)

    def _attempt(self, n: object, data: dict[str, Any]) -> None:
        """Say what the agent did, and what the checks said to that."""
        claims = ", says it is done" if data.get("claimed_done") else ""
        stat = data.get("diff_stat") or {}
        size = (
            f", in total {stat.get('files')} file(s) +{stat.get('insertions')}"
            f" -{stat.get('deletions')}"
            if stat.get("files")
            else ", nothing changed so far"
            if stat
            else ""
        )
        self._once(f"  agent: {data['outcome']}{claims}{size}", about=n)
        if data["outcome"] not in _WORKED:
            for number, row in enumerate(tail_of(data.get("output_tail"))):
                self._once(f"    | {row}", "note", about=(n, number))
        elif data.get("output_tail") and data.get("claimed_done"):
            self._once(f"    “{one_line(data['output_tail'], 200)}”", "note", about=n)
        for one in data.get("refused") or []:
            self._once(f"  the sandbox refused: {one_line(one, 200)}", "warn", about=n)
        for path in data.get("left_out") or []:
            self._once(f"  left out: {one_line(path, 200)}", "warn", about=n)
        for path in data.get("protected_restored") or []:
            self._once(f"  protected, put back as on the base: {path}", "warn", about=n)
        for verdict in data.get("verdicts") or []:
            self._verdict({"n": n, **verdict})
        self._judgements(n, data)
        if data.get("blocked_reason"):
            reason = one_line(data["blocked_reason"], 300)
            self._once(f"  exit blocked: {reason}", "blocked", about=n)
        cost = usd(data.get("cost_usd"))
        self._once(f"  cost: {cost}{self._flags_now()}", "note", about=n)

    def _judgements(self, n: object, data: dict[str, Any]) -> None:
        """Say what a judge found; it is an opinion, and no check."""
        for one in data.get("judgements") or []:
            met = {True: "met", False: "not met"}.get(
                one.get("met"), "no usable answer"
            )
            who = one_line(data.get("judge_model") or "a model", 80)
            criterion = one_line(one.get("criterion"), 200)
            style = "judged" if one.get("met") else "warn"
            self._once(f"  judged by {who}, {met}: {criterion}", style, about=n)
            for quote in one.get("evidence") or []:
                text = one_line(quote.get("text"), 160)
                shown = f"    {one_line(quote.get('path'), 100)}: “{text}”"
                self._once(shown, "note", about=(n, criterion))
            if not one.get("met") and one.get("why"):
                why = one_line(one["why"], 300)
                self._once(f"    {why}", "note", about=(n, criterion))

    def _verdict(self, data: dict[str, Any]) -> None:
        passed = bool(data.get("passed"))
        about = (data.get("n"), data.get("phase"), data.get("check"), self._attempts)
        if about in self._said:
            return
        self._said.add(about)
        where = "on the base" if data.get("phase") == "base" else "after"
        tests = f", {data['tests']} tests" if data.get("tests") is not None else ""
        runs = data.get("runs") or 1
        tests += f", {runs} runs" if runs > 1 else ""
        flaky = ", flaky" if data.get("flaky") else ""
        self._screen.line(
            f"  check {one_line(data.get('check'))} {where}:"
            f" {'passed' if passed else 'failed'}{flaky} (exit {data.get('exit_code')},"
            f" {seconds(data.get('duration_s'))}{tests})",
            "warn" if flaky else "passed" if passed else "failed",
        )
        if data.get("note"):
            self._screen.line(f"    {one_line(data['note'], 300)}", "warn")
        if not passed and data.get("phase") != "base":
            for row in tail_of(data.get("output_tail")):
                self._screen.line(f"    | {row}", "note")

    def _output(self, data: dict[str, Any]) -> None:
        text = str(data.get("text") or data.get("output") or data.get("line") or "")
        if data.get("left_out_bytes"):
            self._screen.line(f"  > … {data['left_out_bytes']} bytes left out", "note")
        for row in tail_of(text):
            self._screen.line(f"  > {row}", "note")
