"""Doing what the model calls for: each call checked, judged, and only then done."""

from __future__ import annotations

from pathlib import Path

from .bash import run_bash
from .faults import AgentError, Refused, ToolError
from .files import edit_file, read_file, write_file
from .limits import Limits
from .model import Model
from .output import clean, say, say_refused
from .places import Places
from .policy import Question, Reach, judge
from .search import search
from .timing import Clock
from .tools import arguments_of

_LINE_BYTES = 128 * 1024
"""The kernel takes no longer argument."""
_REFUSALS_SHOWN = 50
_OUTCOMES = {"command": "this command line", "host": "reaching this host"}


class Hands:
    """Runs the calls of one work. Refusals are printed as the harness reads them."""

    def __init__(
        self, model: Model, limits: Limits, clock: Clock, reach: Reach
    ) -> None:
        self._model = model
        self._limits = limits
        self._clock = clock
        self._reach = reach
        self._places = Places(Path.cwd())
        self._refused = 0

    def use(self, name: str, arguments: str) -> tuple[str, str | None]:
        """Run one call; returns what to tell the model, and a summary when it said ``done``.

        Raises AgentError when a person is needed and none answers, or the time is up.
        """
        try:
            given = arguments_of(name, arguments)
            if name == "done":
                return "ok", str(given["summary"])
            return self._do(name, given), None
        except Refused as error:
            self._note(error.what)
            return f"error: {error}", None
        except ToolError as error:
            return f"error: {error}", None

    def _do(self, name: str, given: dict[str, object]) -> str:
        if name == "bash":
            return self._bash(str(given["command"]))
        path = str(given.get("path", "."))
        say(f"{name} {path[:300]}")
        if name == "read_file":
            return read_file(path, *_numbers(given))
        if name == "search":
            timeout_s = self._clock.left(self._limits.search_timeout_s)
            return search(str(given["pattern"]), path, timeout_s)
        if name == "edit_file":
            return edit_file(path, str(given["old"]), str(given["new"]))
        return write_file(path, str(given["content"]))

    def _bash(self, command: str) -> str:
        say(f"$ {command}")
        if not _can_be_started(command):
            raise ToolError("the command cannot be started as written")
        decision = judge(command, self._places, self._reach)
        if decision.refused is not None:
            raise Refused(
                f"refused: {decision.refused}. Nothing was run.",
                what=f"command {command}: {decision.refused}",
            )
        for question in decision.questions:
            self._ask(question, command)
        timeout_s = self._clock.left(self._limits.command_timeout_s)
        return run_bash(command, timeout_s)

    def _ask(self, question: Question, command: str) -> None:
        """Return when a person allowed it now; else raise what the model, or nobody, is told."""
        say(f"(a person is asked: {question.why})")
        answer = self._model.ask(
            {
                "kind": question.kind,
                "subject": clean(question.subject),
                "why": question.why,
            }
        )
        what = f"{question.kind} {question.subject}"
        if answer is None:
            raise Refused(
                f"refused: {question.why}, and no person can be asked here. Nothing was"
                " run.",
                what=f"{what}: {question.why}",
            )
        approved, note = answer.get("approved"), str(answer.get("note") or "")[:500]
        said = f" They say: {note}" if note else ""
        if approved is None:
            message = f"a person was asked and has not answered: {question.why}"
            self._note(f"{what}: nobody has answered")
            raise AgentError("blocked", f"{message} ({question.subject[:200]})")
        if approved is not True:
            raise Refused(
                f"a person refused {_OUTCOMES[question.kind]}.{said} Nothing was run.",
                what=f"{what}: a person refused it",
            )
        if question.kind != "command":
            raise ToolError(
                f"a person allowed {question.subject}, from your next attempt on.{said}"
                " Nothing was run now: do what you can without it, then call done."
            )
        say(f"(a person allowed it: {command[:300]})")

    def _note(self, what: str) -> None:
        self._refused += 1
        if self._refused <= _REFUSALS_SHOWN:
            say_refused(what)


def _can_be_started(command: str) -> bool:
    try:
        return len(command.encode()) < _LINE_BYTES and "\0" not in command
    except UnicodeEncodeError:  # half of a character: JSON can say it, no file name can
        return False


def _numbers(given: dict[str, object]) -> list[int]:
    start, lines = given.get("start", 1), given.get("lines", 200)
    return [value for value in (start, lines) if isinstance(value, int)]
