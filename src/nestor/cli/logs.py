"""``nestor logs``: what an agent and the checks that failed printed, as far as it is kept.

Of an agent the stack keeps what it told live, which is bounded; of a check the end.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from nestor.cli.client import ServerEvent, Stack, task_path
from nestor.cli.inert import one_line
from nestor.cli.render import Screen, print_json
from nestor.errors import InvalidInput

KEPT_CHARS = 8_000
"""The newest characters that the stack keeps of what one check prints; of an agent, where
it failed."""
_QUIET_S = 5.0
"""Of a task that goes on: all is read once nothing came for so long."""
_GOES_ON = {"queued", "awaiting_approval", "running"}
_CUT = "… what came before is not kept"

Piece = dict[str, Any]
"""``text``, and ``left_out_bytes`` before it; None: some, nobody counted."""


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(
        epilog="Examples:\n\n  nestor logs TASK\n\n  nestor logs TASK --iteration 2"
        "\n\n  nestor logs TASK --iteration 0      # the checks on the base"
        "\n\n  nestor logs TASK --json"
    )(logs)


def logs(
    task_id: Annotated[
        str, typer.Argument(help="Task id, as `nestor submit` printed it.")
    ],
    iteration: Annotated[
        int | None,
        typer.Option(min=0, help="Only this one; 0: the checks on the base."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the agent and the failed checks printed, as far as it is kept."""
    stack, screen, path = Stack.find(), Screen(), task_path(task_id)
    task = stack.call("ralph", "GET", path)
    recorded = stack.call("ralph", "GET", f"{path}/iterations")
    told = printed(stack.stream("ralph", f"{path}/events", quiet_s=_QUIET_S))
    found = _iterations(recorded, told)
    if iteration is None:
        shown = [one for one in found if one["n"] > 0]
    else:
        shown = [one for one in found if one["n"] == iteration]
        if not shown:
            known = ", ".join(str(one["n"]) for one in found)
            message = f"task {task_id} has no iteration {iteration}, but {known}"
            raise InvalidInput.at("--iteration", message)
    if as_json:
        status = task.get("status")
        print_json({"task_id": task_id, "status": status, "iterations": shown})
        return
    for one in shown:
        _show(screen, one)
    if not shown:
        screen.line("no iteration was begun yet", "note")
    if task.get("status") in _GOES_ON:
        screen.line(f"task {task_id} goes on: nestor watch {task_id}", "note")


def printed(events: Iterable[ServerEvent]) -> dict[int, list[Piece]]:
    """Gather what the agent printed in each iteration; of one that ran again, the last run."""
    found: dict[int, list[Piece]] = {}
    for event in events:
        n = event.data.get("n")
        if not isinstance(n, int):
            continue
        if event.kind == "iteration" and event.data.get("step") == "agent":
            found[n] = []
        elif event.kind == "output":
            text = str(event.data.get("text") or "")
            left_out = event.data.get("left_out_bytes") or 0
            found.setdefault(n, []).append({"left_out_bytes": left_out, "text": text})
    return found


def _iterations(
    recorded: Mapping[str, Any], told: Mapping[int, list[Piece]]
) -> list[dict[str, Any]]:
    """Put together what is known of the base (0) and of each iteration, in their order."""
    base: dict[str, Any] = {"n": 0, "outcome": None, "printed": [], "checks": []}
    found = {0: base | {"checks": _failed(recorded.get("base") or [])}}
    for n, pieces in told.items():
        found[n] = {"n": n, "outcome": None, "printed": pieces, "checks": []}
    for one in recorded.get("iterations") or []:
        n = one["n"]
        found[n] = {
            "n": n,
            "outcome": one.get("outcome"),
            "printed": _fuller(told.get(n, []), str(one.get("output_tail") or "")),
            "checks": _failed(one.get("verdicts") or []),
        }
    return [found[n] for n in sorted(found)]


def _fuller(pieces: list[Piece], tail: str) -> list[Piece]:
    """Return what was told live, or what was recorded where that says more."""
    told = sum(len(piece["text"]) for piece in pieces)
    if pieces and not any(piece["left_out_bytes"] for piece in pieces):
        return pieces
    if len(tail) <= told:
        return pieces
    cut = bool(pieces) or len(tail) >= KEPT_CHARS
    return [{"left_out_bytes": None if cut else 0, "text": tail}]


def _failed(verdicts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "check": one.get("check"),
            "exit_code": one.get("exit_code"),
            "note": one.get("note") or "",
            "cut": len(str(one.get("output_tail") or "")) >= KEPT_CHARS,
            "output": str(one.get("output_tail") or ""),
        }
        for one in verdicts
        if not one.get("passed")
    ]


def _show(screen: Screen, one: Mapping[str, Any]) -> None:
    n, outcome = one["n"], one["outcome"]
    title = "on the base" if n == 0 else f"iteration {n}"
    screen.line(f"{title}: {one_line(outcome)}" if outcome else title, "heading")
    if n > 0:
        _agent(screen, one["printed"])
    for check in one["checks"]:
        why = f": {one_line(check['note'], 300)}" if check["note"] else ""
        code = "" if check["exit_code"] is None else f" (exit {check['exit_code']})"
        screen.line(f"  check {one_line(check['check'])} failed{code}{why}", "failed")
        if check["cut"]:
            screen.line(f"    {_CUT}", "warn")
        _rows(screen, check["output"])
    if n == 0 and not one["checks"]:
        screen.line("  no check failed, or none was run", "note")


def _agent(screen: Screen, pieces: list[Piece]) -> None:
    screen.line("  the agent printed" + ("" if pieces else " nothing that is kept"))
    text = ""
    for piece in pieces:
        left_out = piece["left_out_bytes"]
        if left_out != 0:
            _rows(screen, text)
            mark = _CUT if left_out is None else f"… {left_out} bytes are not kept"
            screen.line(f"    {mark}", "warn")
            text = ""
        # A long line may come in several pieces.
        text += piece["text"]
    _rows(screen, text)


def _rows(screen: Screen, text: str) -> None:
    for row in text.strip("\n").split("\n") if text.strip() else ():
        screen.line(f"    | {row}".rstrip())
