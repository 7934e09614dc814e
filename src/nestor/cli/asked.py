"""What a task asks a person: the whole of it, for who answers binds to the whole of it."""

import json
from collections.abc import Iterator
from typing import Any

from nestor.cli.inert import inert, one_line
from nestor.cli.render import Screen

_WHAT_CHARS = 1000
"""More than a question has that Nestor words; a longer one was not worded by it."""


def answering(task_id: str, question: str) -> str:
    """Return the command that says yes to a question; ``--reject`` says no."""
    action = f" --action {question}" if question and question != "start" else ""
    return f"nestor approve {task_id}{action}"


def show_questions(screen: Screen, task: dict[str, Any]) -> None:
    """Print what nobody has answered, each with the command that does."""
    for one in task.get("questions") or []:
        show_question(screen, task, one)
        name = one_line(one.get("id") or "", 80)
        answer = answering(str(task.get("task_id")), name)
        screen.line(f"    answer it with: {answer}", "note")


def show_question(screen: Screen, task: dict[str, Any], one: dict[str, Any]) -> None:
    """Print one question and, line by line, all that a yes would let through."""
    screen.line(f"  asks: {one_line(one.get('what'), _WHAT_CHARS)}", "warn")
    if one.get("id") == "start":
        for name, text in _brought(task):
            _whole(screen, name, text)
    else:
        show_subject(screen, one)


def show_subject(screen: Screen, one: dict[str, Any]) -> None:
    """Print exactly what is asked for, unless the question is that in one line."""
    subject = str(one.get("subject") or "")
    if one.get("kind") == "command" or subject not in one_line(
        one.get("what"), _WHAT_CHARS
    ):
        _whole(screen, "exactly this", subject)


def _whole(screen: Screen, name: str, text: str) -> None:
    """Print all of a foreign text. Its size goes first: its beginning may scroll away."""
    rows = inert(text, multiline=True).split("\n")
    size = f" ({len(text)} characters in {len(rows)} lines)" if len(rows) > 1 else ""
    screen.line(f"    {name}{size}:")
    for row in rows:
        screen.line(f"      | {row}", hang=2)


def _brought(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a task brings that runs, or that it may reach."""
    if task.get("command"):
        yield "command", _line(task["command"])
    for line in task.get("setup") or []:
        yield "setup", _line(line)
    for check in task.get("checks") or []:
        env = "".join(f"{name}={value}\n" for name, value in check["env"].items())
        yield f"check {one_line(check.get('name'))}", env + _line(check["run"])
    for path in task.get("mounts") or []:
        yield "sees", str(path)
    limits = task.get("sandbox") or {}
    if limits.get("network") not in {None, "coordinator"}:
        yield "network", str(limits["network"])
    if limits.get("hosts"):
        yield "reaches", "\n".join(map(str, limits["hosts"]))


def _line(run: str | list[str]) -> str:
    # A list is no shell's line: its quotes say where each argument ends.
    return run if isinstance(run, str) else json.dumps(run, ensure_ascii=False)
