"""``nestor submit|status|results|watch``: tasks of the loop; see also ``steering``, ``merge``."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from nestor.cli.asked import show_questions
from nestor.cli.client import Stack, task_path
from nestor.cli.flags import flags
from nestor.cli.inert import inert, one_line
from nestor.cli.render import Screen, print_json, seconds, usd
from nestor.cli.standing import (
    doing,
    ended,
    ended_before,
    how_to_go_on,
    iteration,
    none_of,
    standing,
)
from nestor.cli.task_file import checked_body, read_task_file, refusals_explained
from nestor.cli.verdicts import show_verdicts
from nestor.cli.watch import follow, show_detail, show_end, tail_of
from nestor.errors import Conflict, InvalidInput

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_TASK = Annotated[str, typer.Argument(help="Task id, as `nestor submit` printed it.")]
_PRIORITY = Annotated[str | None, typer.Option(help="P0 (first) to P3.")]
_PHASE = Annotated[int | None, typer.Option(help="Only tasks of this phase.")]
_STATUS = Annotated[
    str | None, typer.Option(help="Only tasks in this status, e.g. running.")
]
_LIMIT = Annotated[
    int, typer.Option(min=1, max=1000, help="At most so many, the newest.")
]
_SUBMIT = """Examples:

  nestor submit "make the tests pass" --repo . --check "pytest -q" --watch

  nestor submit --file examples/fix-tests.yaml --wait --json

  nestor submit "run it" --command "make report" --backend command

Options override what the file says."""


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog=_SUBMIT)(submit)
    app.command(
        epilog="Examples:\n\n  nestor status\n\n  nestor status TASK --json"
        "\n\n  nestor status --status running --phase 1"
    )(status)
    app.command(epilog="Examples:\n\n  nestor watch TASK")(watch)
    app.command(epilog="Examples:\n\n  nestor results\n\n  nestor results --json")(
        results
    )


def submit(
    text: Annotated[
        str | None, typer.Argument(help="What to do. Or give --file.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Task file, JSON or YAML.")
    ] = None,
    repo: Annotated[
        Path | None,
        typer.Option(help="Git repository to work on; left out: an empty scratch one."),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(help="Command that must pass for the task to be verified."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Agent; `nestor agents list` names them.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(help="Command that makes the environment, once, with network."),
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="What backend `command` runs.")
    ] = None,
    max_iterations: Annotated[
        int | None, typer.Option(min=1, help="Most turns of the agent.")
    ] = None,
    budget_usd: Annotated[
        str | None, typer.Option(help="Most money to spend, in USD.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of models to use.")
    ] = None,
    budget_seconds: Annotated[
        float | None, typer.Option(min=0, help="Longest time to work, in seconds.")
    ] = None,
    priority: _PRIORITY = None,
    phase: Annotated[
        int | None, typer.Option(min=0, help="Number to group tasks by; see status.")
    ] = None,
    task_id: Annotated[
        str | None, typer.Option("--id", help="Own id; the same again is safe.")
    ] = None,
    guard_only: Annotated[
        bool,
        typer.Option("--guard-only", help="Checks pass already and must stay green."),
    ] = False,
    include_dirty: Annotated[
        bool, typer.Option("--include-dirty", help="Start from uncommitted changes.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; exit 0 when verified.")
    ] = False,
    watch_: Annotated[
        bool, typer.Option("--watch", help="Like --wait, and show it live.")
    ] = False,
    as_json: _JSON = False,
) -> None:
    """Submit a task. It is done only when the checks, not the agent, say so."""
    task = read_task_file(file) if file else {}
    if text is None and file is None:
        raise InvalidInput.at("TEXT", "say what to do, or give --file")
    if text is not None and (named := {"task", "description", "prompt"} & task.keys()):
        raise InvalidInput.at(
            "TEXT", f"the file says what to do already ({min(named)}); leave one out"
        )
    budget = {
        "usd": money(budget_usd),
        "tokens": budget_tokens,
        "seconds": budget_seconds,
    }
    options = {
        "task": text,
        "task_id": task_id,
        "backend": backend,
        "command": command,
        "priority": priority,
        "phase": phase,
        "max_iterations": max_iterations,
        "setup": setup or None,
        "checks": [{"run": line} for line in check or []] or None,
        "guard_only": guard_only or None,
        "include_dirty": include_dirty or None,
        "workspace": {"repo": str(repo.expanduser().resolve())} if repo else None,
        "budget": {k: v for k, v in budget.items() if v is not None} or None,
    }
    task |= {name: value for name, value in options.items() if value is not None}
    stack, screen = Stack.find(), Screen()
    with refusals_explained(file):
        reply = stack.call("ralph", "POST", "/submit", body=checked_body(task))
    made = str(reply["task_id"])
    if not (wait or watch_):
        _accepted(screen, reply, as_json=as_json)
        return
    quiet = as_json or not watch_
    if not as_json:
        screen.line(f"task {made}")
    if ended(reply):
        typer.echo(inert(ended_before(reply)), err=True)
    _end(stack, screen, made, quiet=quiet, as_json=as_json)


def _accepted(screen: Screen, reply: dict[str, Any], *, as_json: bool) -> None:
    """Say what became of a submit.

    Raises ``Conflict`` when it met a task that has ended, and not well.
    """
    made = reply["task_id"]
    if as_json:
        print_json(reply)
    if ended(reply):
        if reply.get("status") != "verified":
            raise Conflict(ended_before(reply))
        if not as_json:
            screen.line(ended_before(reply))
        return
    if as_json:
        return
    screen.line(f"task {made}: {reply.get('status')}")
    if reply.get("status") == "awaiting_approval":
        who = "somebody whose key has the scope approve"
        screen.line(f"it waits until {who} runs: nestor approve {made}", "warn")
    elif reply.get("waits_for"):
        screen.line(f"it {one_line(reply.get('detail') or '', 400)}", "note")
    screen.line(f"watch it: nestor watch {made}", "note")


def watch(task_id: _TASK) -> None:
    """Show a task live until it ends; exit 0 only when it is verified."""
    stack = Stack.find()
    _end(stack, Screen(), task_id, quiet=False, as_json=False)


def status(
    task_id: Annotated[str | None, typer.Argument(help="One task; else all.")] = None,
    priority: _PRIORITY = None,
    phase: _PHASE = None,
    status: _STATUS = None,
    limit: _LIMIT = 200,
    as_json: _JSON = False,
) -> None:
    """Show what runs and what waits, or where one task stands."""
    stack, screen = Stack.find(), Screen()
    if task_id is not None:
        task = stack.call("ralph", "GET", task_path(task_id))
        if as_json:
            print_json(task)
        else:
            show_task(screen, task)
            found = stack.call("ralph", "GET", task_path(task_id, "/iterations"))
            show_verdicts(screen, found)
        return
    query = {"priority": priority, "phase": phase, "status": status, "limit": limit}
    found = stack.call("ralph", "GET", "/status", query=query)
    if as_json:
        print_json(found)
        return
    screen.table(
        ("task", "status", "why", "prio", "iteration", "backend", "what"),
        [
            (
                t.get("task_id"),
                standing(t),
                t.get("reason") or one_line(t.get("waits") or "", 48),
                t.get("priority"),
                f"{iteration(t)}/{t.get('max_iterations')}",
                t.get("backend"),
                one_line(t.get("name") or t.get("description", ""), 48) + flags(t),
            )
            for t in found.get("tasks", [])
        ],
        empty=none_of(query, "no tasks yet — submit one with: nestor submit"),
    )
    _say_if_truncated(screen, found, limit)
    counts = found.get("counts") or {}
    if counts:
        screen.line(", ".join(f"{n} {name}" for name, n in sorted(counts.items())))


def results(
    priority: _PRIORITY = None,
    phase: _PHASE = None,
    status: _STATUS = None,
    limit: _LIMIT = 200,
    as_json: _JSON = False,
) -> None:
    """List what tasks came to, with cost and branch."""
    query = {"priority": priority, "phase": phase, "status": status, "limit": limit}
    found = Stack.find().call("ralph", "GET", "/results", query=query)
    if as_json:
        print_json(found)
        return
    screen = Screen()
    screen.table(
        ("task", "status", "why", "iterations", "cost", "tokens", "time", "branch"),
        [
            (
                r.get("task_id"),
                r.get("status"),
                r.get("reason"),
                _count(r.get("iterations")),
                usd(r.get("cost_usd")),
                r.get("tokens"),
                seconds(r.get("duration_s")),
                f"{r.get('branch') or '-'}{flags(r)}",
            )
            for r in found.get("results", [])
        ],
        empty=none_of(query, "no results yet"),
    )
    _say_if_truncated(screen, found, limit)


def show_task(screen: Screen, task: dict[str, Any]) -> None:
    """Print one task for people."""
    screen.line(f"task {task.get('task_id')}: {standing(task)}", "heading")
    budget = task.get("budget") or {}
    spent = task.get("spent") or {}
    tokens = spent.get("tokens", budget.get("spent_tokens"))
    fields = {
        "what": one_line(task.get("name") or task.get("description", ""), 200),
        "why": task.get("reason"),
        "iteration": f"{iteration(task)} of {task.get('max_iterations')}{doing(task)}",
        "backend": task.get("backend"),
        "attempt": task["attempt"] if (task.get("attempt") or 1) > 1 else None,
        "waits for": ", ".join(task.get("waits_for") or []),
        "granted": ", ".join(one["subject"] for one in task.get("grants") or []),
        "forked from": _origin(task.get("forked_from")),
        "put back to iteration": task.get("rolled_back_to"),
        "workspace": task.get("workspace"),
        "branch": task.get("branch"),
        "waits": None if task.get("waits_for") else task.get("waits"),
        "spent": f"{usd(spent.get('usd', budget.get('spent_usd')))}, {tokens} tokens",
        "flags": flags(task).strip(),
        "sealed": task.get("checks_digest"),
        "trace": task.get("trace_id"),
    }
    for name, value in fields.items():
        if value not in (None, ""):
            screen.line(f"  {name}: {inert(value)}")
    asked = {one.get("what") for one in task.get("questions") or []}
    if task.get("detail") and task["detail"] not in asked:
        show_detail(screen, str(task["detail"]))
    show_questions(screen, task)
    if go_on := how_to_go_on(task):
        screen.line(f"  {go_on}", "note")
    if task.get("status") in {"failed", "exhausted"} and task.get("output"):
        screen.line("  last words of the agent:")
        for row in tail_of(task["output"]):
            screen.line(f"    | {row}", "note")


def _end(
    stack: Stack, screen: Screen, task_id: str, *, quiet: bool, as_json: bool
) -> None:
    try:
        task = follow(stack, screen, task_id, quiet=quiet)
    except KeyboardInterrupt:
        typer.echo(
            inert(
                f"task {task_id} goes on — see it again with: nestor watch {task_id},"
                f" end it with: nestor cancel {task_id}"
            ),
            err=True,
        )
        raise
    if as_json:
        print_json(task)
    else:
        show_end(screen, task)
    if task.get("status") != "verified":
        raise typer.Exit(1)


def _say_if_truncated(screen: Screen, found: dict[str, Any], limit: int) -> None:
    if found.get("truncated"):
        screen.line(f"only the newest {limit} are shown; see --limit", "warn")


def money(text: str | None) -> str | None:
    """Return an amount of USD as it was written. Raises ``InvalidInput``."""
    if text is None:
        return None
    try:
        value = Decimal(text)
    except ArithmeticError:
        raise InvalidInput.at("--budget-usd", f"{text!r} is not an amount") from None
    if not value.is_finite() or value < 0:
        raise InvalidInput.at("--budget-usd", "must be 0 or more")
    return str(value)


def _count(iterations: Any) -> Any:
    return len(iterations) if isinstance(iterations, list) else iterations


def _origin(point: dict[str, Any] | None) -> str | None:
    return f"{point['task_id']}, iteration {point['iteration']}" if point else None
