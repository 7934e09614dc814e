"""What commands print: tables and colour on a terminal, plain lines everywhere else.

Every piece of foreign text goes through ``inert`` here; rich never reads it as markup.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nestor.cli.inert import inert

if TYPE_CHECKING:
    from rich.console import Console

UNKNOWN = "unknown"
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
    "rejected": "yellow",
    "unverified": "yellow",
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

    def line(self, text: object = "", style: str = "") -> None:
        """Print one inert line (or several), coloured on a terminal."""
        shown = inert(text, multiline=True)
        if self.terminal:
            from rich.text import Text  # noqa: PLC0415 - only for a terminal

            self.console.print(Text(shown, style=_STYLES.get(style, style)))
        else:
            print(shown, flush=True)  # noqa: T201 - printing is this module's job

    def heading(self, text: str) -> None:
        """Print a title with room above it."""
        self.line()
        self.line(text, "heading")

    def block(self, text: str, style: str = "") -> None:
        """Print foreign text of many lines, indented by two."""
        for row in inert(text.rstrip(), multiline=True).splitlines():
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
        """Print rows under columns; ``None`` is shown as ``-``."""
        if not rows:
            self.line(empty, "note")
            return
        cells = [["-" if c is None else inert(c) for c in row] for row in rows]
        if self.terminal:
            self._rich_table(columns, cells)
            return
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for row in [columns, *cells]:
            padded = (c.ljust(w) for c, w in zip(row, widths, strict=True))
            print("  ".join(padded).rstrip(), flush=True)  # noqa: T201 - see line()

    def _rich_table(self, columns: Sequence[str], rows: list[list[str]]) -> None:
        from rich import box  # noqa: PLC0415 - only for a terminal
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in rows:
            table.add_row(*[Text(cell, style=_STYLES.get(cell, "")) for cell in row])
        self.console.print(table)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something is going on: a spinner, on a terminal only."""
        if self.terminal and not self._record:
            from rich.text import Text  # noqa: PLC0415 - only for a terminal

            with self.console.status(Text(inert(text), style="dim")):
                yield
        else:
            yield


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
