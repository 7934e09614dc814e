"""The programs that a command line starts, as far as its words tell, one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .shell import Command, Unreadable, commands

SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ash", "fish"}
INTERPRETERS = {"python", "python3", "perl", "ruby", "node", "php", "lua", "deno"}
_RESERVED = {
    *("if", "then", "else", "elif", "fi", "do", "done", "while", "until", "!", "{"),
    *("}", "time", "coproc"),
}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_WRAPPERS = {
    "env": {"-u", "-C", "-S", "--unset", "--chdir"},
    "command": set(),
    "builtin": set(),
    "exec": {"-a"},
    "nice": {"-n"},
    "ionice": {"-c", "-n"},
    "timeout": {"-k", "-s", "--signal", "--kill-after"},
    "stdbuf": {"-i", "-o", "-e"},
    "xargs": {"-I", "-n", "-P", "-L", "-d", "-a", "-s", "-E"},
    "busybox": set(),
    "time": {"-f", "-o"},
    "unbuffer": set(),
    "chronic": set(),
    "watch": {"-n"},
    "parallel": {"-j"},
}
"""Programs that start another one, with their options that take a value."""
_INLINE = {"-c", "-e", "-E", "--eval", "-r", "-p", "--print"}
_DEPTH = 8


@dataclass
class Step:
    """One program with its arguments. ``cwd``: where it starts, as the line says."""

    name: str
    args: list[str]
    cwd: str
    assigns: list[str]
    command: Command
    code: str = ""
    """Program text on the command line, of an interpreter."""
    runs_text: bool = False
    """A shell or interpreter that runs what it reads, not a file that is named."""
    nested: bool = field(default=False, kw_only=True)


def steps(line: str, cwd: str) -> list[Step]:
    """Return every program that ``line`` names, those inside others included.

    Raises Unreadable.
    """
    return list(_steps(commands(line), cwd, 0))


def _steps(found: list[Command], cwd: str, depth: int) -> Iterator[Step]:
    if depth > _DEPTH:
        raise Unreadable
    outer: list[str] = []
    for command in found:
        outer.extend([cwd] * command.opens)
        for inner in command.inside:
            for step in _steps(inner, cwd, depth + 1):
                step.nested = True
                yield step
        for step in _of(command, command.words, cwd, depth):
            yield step
            if step.name == "cd" and not step.nested:
                cwd = _moved(cwd, step.args)
        for _ in range(command.closes):
            cwd = outer.pop() if outer else cwd


def _moved(cwd: str, args: list[str]) -> str:
    target = next((a for a in args if not a.startswith("-") or a == "-"), "~")
    return os.path.normpath(os.path.join(cwd, target))  # noqa: PTH118 - words, not files


def _of(command: Command, words: list[str], cwd: str, depth: int) -> Iterator[Step]:
    assigns, rest = _unwrapped(words)
    name = os.path.basename(rest[0]) if rest else ""  # noqa: PTH119 - a word
    args = rest[1:]
    step = Step(name, args, cwd, assigns, command)
    if name in SHELLS:
        text = _inline(args, {"-c"})
        step.runs_text = text is not None or not _operands(args)
        for part in [text or "", *(command.text_in if step.runs_text else [])]:
            yield from _steps(commands(part), cwd, depth + 1)
    elif name == "eval":
        step.runs_text = True
        yield from _steps(commands(" ".join(args)), cwd, depth + 1)
    elif name in {"source", "."}:
        step.runs_text = True
    elif _interpreter(name):
        step.code = "\n".join([_inline(args, _INLINE) or "", *command.text_in])
        step.runs_text = not _operands(args) or args[-1:] == ["-"]
    elif name == "find":
        yield from _found_by_find(command, args, cwd, depth)
    yield step


def _interpreter(name: str) -> bool:
    return re.sub(r"[\d.]+$", "", name) in INTERPRETERS or name in INTERPRETERS


def _unwrapped(words: list[str]) -> tuple[list[str], list[str]]:
    """Take off reserved words, assignments, and programs that only start another."""
    assigns: list[str] = []
    rest = list(words)
    while rest:
        if rest[0] in _RESERVED and len(rest) >= 1 and rest[0] != "time":
            rest = rest[1:]
        elif _ASSIGNMENT.match(rest[0]):
            assigns.append(rest[0])
            rest = rest[1:]
        elif (name := os.path.basename(rest[0])) in _WRAPPERS and len(rest) > 1:  # noqa: PTH119
            rest = _after_options(rest[1:], _WRAPPERS[name])
            if name == "timeout" and len(rest) > 1:
                rest = rest[1:]
        else:
            break
    return assigns, rest


def _after_options(words: list[str], valued: set[str]) -> list[str]:
    at = 0
    while at < len(words) and words[at].startswith("-"):
        if words[at] == "--":
            return words[at + 1 :]
        at += 2 if words[at] in valued else 1
    return words[at:]


def _inline(args: list[str], flags: set[str]) -> str | None:
    """Return the program text after ``-c`` and its like, bundled flags included."""
    for at, arg in enumerate(args):
        if not arg.startswith("-"):
            return None
        bundled = re.fullmatch(r"-[A-Za-z]*", arg) is not None
        if arg in flags or (bundled and f"-{arg[-1]}" in flags):
            return args[at + 1] if at + 1 < len(args) else ""
    return None


def _operands(args: list[str]) -> list[str]:
    return [arg for arg in args if not arg.startswith(("-", "+"))]


def _found_by_find(
    command: Command, args: list[str], cwd: str, depth: int
) -> Iterator[Step]:
    for at, arg in enumerate(args):
        if arg in {"-exec", "-execdir", "-ok", "-okdir"}:
            stop = next(
                (i for i in range(at, len(args)) if args[i] in {";", "+"}), len(args)
            )
            yield from _of(command, args[at + 1 : stop], cwd, depth + 1)
