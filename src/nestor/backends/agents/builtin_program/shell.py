"""Reads a command line as a shell would cut it up, without running or expanding anything.

Good enough to tell what a line is about. It is no parser to rely on alone: what a
variable will hold, or a script will do, is not known here; the sandbox holds then too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_BLANKS = " \t\r"
_OPERATORS = ("&>>", "&>", "&&", "||", "|&", ";;", ";", "&", "|", "(", ")", "\n")
_REDIRECTS = ("<<<", "<<-", "<<", "<&", "<>", ">>", ">|", ">&", "<", ">")
_DEPTH = 6
_WORDS = 20_000


class Unreadable(Exception):  # noqa: N818 - said of a line, not of us
    """The line is longer, or goes deeper, than is looked through."""


@dataclass
class Command:
    """One simple command, quotes taken off its words."""

    words: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    inside: list[list[Command]] = field(default_factory=list)
    """Command substitutions in it, and shell text that it is fed."""
    text_in: list[str] = field(default_factory=list)
    """Here-documents and here-strings."""
    piped: bool = False
    """It reads another one's output."""
    background: bool = False
    last: bool = False
    """Nothing follows it."""
    opens: int = 0
    closes: int = 0
    """Subshells that begin before it and end after it."""


def commands(line: str, depth: int = 0) -> list[Command]:
    """Return the simple commands of ``line`` in their order. Raises Unreadable."""
    if depth > _DEPTH:
        raise Unreadable
    return _Reader(line, depth).read()


class _Reader:
    def __init__(self, line: str, depth: int) -> None:
        self._line = line.replace("\\\n", "")
        self._at = 0
        self._depth = depth
        self._found: list[Command] = []
        self._now = Command()
        self._word: list[str] | None = None
        self._quoted = False
        self._into: str | None = None
        self._waiting: list[tuple[Command, str, bool]] = []
        self._words = 0

    def read(self) -> list[Command]:
        """Read to the end; what is not closed ends there."""
        while self._at < len(self._line):
            self._step()
            if self._words > _WORDS:
                raise Unreadable
        self._end_word()
        self._end_command()
        if self._found and self._depth == 0:
            self._found[-1].last = True
        return self._found

    def _step(self) -> None:
        line, at = self._line, self._at
        here = line[at]
        if here in _BLANKS:
            self._end_word()
            self._at += 1
        elif here == "#" and self._word is None:
            end = line.find("\n", at)
            self._at = len(line) if end < 0 else end
        elif here in "<>" and line[at + 1 : at + 2] == "(":
            self._inside(at + 1, here)
        elif operator := _first(line, at, _OPERATORS):
            self._operator(operator)
        elif redirect := _first(line, at, _REDIRECTS):
            self._redirect(redirect)
        else:
            self._char(here)

    def _operator(self, operator: str) -> None:
        if operator.startswith("&>"):
            self._redirect(operator)
            return
        self._end_word()
        self._at += len(operator)
        if operator == "(":
            self._end_command()
            self._now.opens += 1
            return
        before = self._now
        if operator == "&":
            # After a subshell it is that which goes to the background.
            closed = not before.words and bool(self._found)
            (self._found[-1] if closed else before).background = True
        if operator == ")":
            before.closes += 1
        self._end_command()
        if operator in {"|", "|&"}:
            self._now.piped = True
        elif operator == ")" and _pipe_follows(self._line, self._at):
            self._now.piped = True
            self._at = self._line.index("|", self._at) + 1
        if operator == "\n":
            self._here_documents()

    def _redirect(self, redirect: str) -> None:
        if self._word is not None and "".join(self._word).isdigit():
            self._word = None  # 2>file
        self._end_word()
        self._at += len(redirect)
        self._into = redirect

    def _char(self, here: str) -> None:
        if self._word is None:
            self._word = []
        line = self._line
        if here == "\\":
            self._word.append(line[self._at + 1 : self._at + 2])
            self._at += 2
        elif here == "'":
            end = line.find("'", self._at + 1)
            end = len(line) if end < 0 else end
            self._word.append(line[self._at + 1 : end])
            self._quoted = True
            self._at = end + 1
        elif here == '"':
            self._double()
        elif here == "`" or line.startswith("$(", self._at):
            self._inside(self._at + (here == "$"), "$")
        elif line.startswith(("$'", '$"'), self._at):
            self._at += 1
        else:
            self._word.append(here)
            self._at += 1

    def _double(self) -> None:
        self._quoted = True
        self._at += 1
        line = self._line
        word = self._word if self._word is not None else []
        while self._at < len(line) and line[self._at] != '"':
            here = line[self._at]
            if here == "\\":
                word.append(line[self._at + 1 : self._at + 2])
                self._at += 2
            elif here == "`" or line.startswith("$(", self._at):
                self._inside(self._at + (here == "$"), "$")
            else:
                word.append(here)
                self._at += 1
        self._at += 1

    def _inside(self, start: int, mark: str) -> None:
        """Read a substitution that begins with ``(`` or a backtick at ``start``."""
        end = _closing(self._line, start)
        text = self._line[start + 1 : end]
        self._now.inside.append(commands(text, self._depth + 1))
        if self._word is None:
            self._word = []
        self._word.append(f"{mark}()")
        self._at = end + 1

    def _end_word(self) -> None:
        if self._word is None:
            return
        word, self._word = "".join(self._word), None
        quoted, self._quoted = self._quoted, False
        self._words += 1
        into, self._into = self._into, None
        if into is None:
            self._now.words.append(word)
        elif into in {"<<", "<<-"}:
            self._waiting.append((self._now, word, quoted))
        elif into == "<<<":
            self._now.text_in.append(word)
        elif into in {"<", "<>", "<&"}:
            self._now.reads.append(word)
        elif not (into == ">&" and (word.isdigit() or word == "-")):
            self._now.writes.append(word)

    def _end_command(self) -> None:
        now, self._now = self._now, Command()
        if now.words or now.writes or now.reads or now.inside or now.closes:
            self._found.append(now)
        else:
            self._now.opens += now.opens

    def _here_documents(self) -> None:
        for command, word, quoted in self._waiting:
            lines = []
            while self._at < len(self._line):
                end = self._line.find("\n", self._at)
                end = len(self._line) if end < 0 else end
                line = self._line[self._at : end]
                self._at = end + 1
                if line.strip() == word:
                    break
                lines.append(line)
            body = "\n".join(lines)
            command.text_in.append(body)
            if not quoted:
                command.inside.extend(_substitutions(body, self._depth))
        self._waiting = []


def _pipe_follows(line: str, at: int) -> bool:
    """Tell whether a pipe follows a closed subshell."""
    rest = line[at:].lstrip(_BLANKS)
    return rest.startswith("|") and not rest.startswith("||")


def _first(line: str, at: int, marks: tuple[str, ...]) -> str:
    return next((mark for mark in marks if line.startswith(mark, at)), "")


def _closing(line: str, start: int) -> int:
    """Return where the parenthesis or backtick at ``start`` ends, or the line does."""
    if line[start] == "`":
        end = line.find("`", start + 1)
        return len(line) if end < 0 else end
    depth, at, quote = 0, start, ""
    while at < len(line):
        here = line[at]
        if here == "\\" and quote != "'":
            at += 1
        elif quote:
            quote = "" if here == quote else quote
        elif here in "'\"":
            quote = here
        elif here == "(":
            depth += 1
        elif here == ")":
            depth -= 1
            if not depth:
                return at
        at += 1
    return len(line)


def _substitutions(text: str, depth: int) -> list[list[Command]]:
    found, at = [], text.find("$(")
    while at >= 0:
        end = _closing(text, at + 1)
        found.append(commands(text[at + 2 : end], depth + 1))
        at = text.find("$(", end)
    return found
