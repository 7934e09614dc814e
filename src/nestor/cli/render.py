"""What commands print: tables and colour on a terminal, plain lines everywhere else.

Every piece of foreign text goes through ``inert`` here; rich never reads it as markup.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nestor.cli.inert import inert

if TYPE_CHECKING:
    from rich.console import Console

UNKNOWN = "unknown"
_LAST_COLUMN = 24
"""Room that the last column of a table needs at least, if it has that much to say."""
_STYLES = {
    "verified": "bold green",
    "passed": "green",
    "ok": "green",
    "running": "cyan",
    "queued": "dim",
    "failed": "red",
    "fail": "bold red",
    "exhausted": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "rejected": "yellow",
    "unverified": "yellow",
    "judged": "magenta",
    "awaiting_approval": "yellow",
    "warn": "yellow",
    "blocked": "yellow",
    "heading": "bold",
    "note": "dim",
    "added": "green",
    "removed": "red",
}


class Screen:
    """One way out for all commands. ``width`` and ``record`` are for pictures of a run."""

    def __init__(
        self,
        *,
        terminal: bool | None = None,
        width: int | None = None,
        record: bool = False,
    ) -> None:
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self._width = width
        self._record = record
        self._console: Console | None = None

    @property
    def console(self) -> "Console":
        """The rich console; made on first use, because importing rich takes a while."""
        if self._console is None:
            from rich.console import Console  # noqa: PLC0415 - only for a terminal

            self._console = Console(
                markup=False,
                highlight=False,
                emoji=False,
                width=self._width,
                record=self._record,
                force_terminal=True if self._record else None,
            )
        return self._console

    def line(self, text: object = "", style: str = "", *, hang: int = 0) -> None:
        """Print one inert line (or several), coloured on a terminal.

        What a terminal has no room for goes on below, ``hang`` columns further in than
        its own beginning.
        """
        shown = inert(text, multiline=True)
        if not self.terminal:
            print(shown, flush=True)  # noqa: T201 - printing is this module's job
            return
        from rich.text import Text  # noqa: PLC0415 - only for a terminal

        for row in shown.split("\n"):
            words = row.lstrip(" ")
            indent = min(len(row) - len(words), self.console.width // 2)
            styled = Text(words, style=_STYLES.get(style, style))
            room = self.console.width - indent
            if styled.cell_len > room:
                room -= hang
            for number, part in enumerate(styled.wrap(self.console, room)):
                part.rstrip()
                inset = indent + hang if number else indent
                self.console.print(Text(" " * inset) + part)

    def piece(self, text: str) -> None:
        """Print inert text that goes on: of an answer, as it comes."""
        print(inert(text, multiline=True), end="", flush=True)  # noqa: T201 - see line()

    def heading(self, text: str) -> None:
        """Print a title with room above it."""
        self.line()
        self.line(text, "heading")

    def block(self, text: str, style: str = "") -> None:
        """Print foreign text of many lines, indented by two."""
        for row in text.rstrip().splitlines():
            self.line(f"  {row}", style)

    def diff(self, text: str) -> None:
        """Print a unified diff, coloured by line."""
        for row in text.rstrip().splitlines():
            self.line(row, _diff_style(row))

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        empty: str = "nothing to show",
    ) -> None:
        """Print rows under columns; ``None`` is shown as ``-``.

        A terminal too narrow for that gets one block for each row: ids stay whole.
        """
        if not rows:
            self.line(empty, "note")
            return
        cells = [["-" if c is None else inert(c) for c in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        if self.terminal:
            words = [w for row in (columns, *cells) for w in row[-1].split()]
            last = max(min(widths[-1], _LAST_COLUMN), *map(len, words), 0)
            needed = sum(widths[:-1]) + last + 3 * len(columns)
            if needed <= self.console.width:
                self._rich_table(columns, cells)
            else:
                self._blocks(columns, cells)
            return
        for row in [columns, *cells]:
            padded = (c.ljust(w) for c, w in zip(row, widths, strict=True))
            print("  ".join(padded).rstrip(), flush=True)  # noqa: T201 - see line()

    def _rich_table(self, columns: Sequence[str], rows: list[list[str]]) -> None:
        from rich import box  # noqa: PLC0415 - only for a terminal
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns[:-1]:
            table.add_column(Text(column), no_wrap=True)
        table.add_column(Text(columns[-1]), overflow="fold")
        for row in rows:
            table.add_row(*[Text(cell, style=_STYLES.get(cell, "")) for cell in row])
        self.console.print(table)

    def _blocks(self, columns: Sequence[str], rows: list[list[str]]) -> None:
        for title, *others in rows:
            self.line(title, "heading")
            told = zip(columns[1:], others, strict=True)
            said = ", ".join(f"{name} {cell}" for name, cell in told if cell != "-")
            self.line(f"  {said}")

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show that something is going on: a spinner, on a terminal only.

        Yields what to call with a newer text: the spinner then says that one; where there
        is none, it is printed as a line.
        """
        if self.terminal and not self._record:
            from rich.text import Text  # noqa: PLC0415 - only for a terminal

            with self.console.status(Text(inert(text), style="dim")) as spinner:
                yield lambda now: spinner.update(Text(inert(now), style="dim"))
        else:
            yield lambda now: self.line(f"… {now}", "note")


def print_json(value: Any) -> None:
    """Print ``value`` as JSON for programs: ASCII only, so that it is inert as well."""
    text = json.dumps(value, ensure_ascii=True, indent=2)
    print(text.replace("\x7f", "\\u007f"), flush=True)  # noqa: T201 - see Screen.line


def usd(value: object) -> str:
    """Show money; None is unknown, never 0."""
    return UNKNOWN if value is None else f"${value}"


def seconds(value: object) -> str:
    """Show a duration given in seconds; None is unknown."""
    return f"{value:.1f} s" if isinstance(value, int | float) else UNKNOWN


def _diff_style(row: str) -> str:
    if row.startswith(("+++", "---", "diff ", "index ")):
        return "heading"
    if row.startswith("+"):
        return "added"
    return "removed" if row.startswith("-") else ""
