"""Markdown tables of what was measured, filled into a page from bench/results.

What stands between ``<!-- measured: NAME -->`` and ``<!-- end -->`` of a page is written here
and nowhere else, so that the page never says what the results do not.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
Parts = Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]]
"""Part of a page: which results it shows, and how."""
_PART = re.compile(
    r"(<!-- measured: (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)
_NOTHING_YET = "Not measured yet.\n"


def read(name: str) -> dict[str, Any] | None:
    """Return one file of results; None where there is none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = None
    if path.exists():
        found = json.loads(path.read_text())
    return found


def said(spread: Mapping[str, float], digits: int = 0, times: float = 1.0) -> str:
    """Return a median and its range."""
    low, high = spread["low"] * times, spread["high"] * times
    return f"{spread['median'] * times:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def verdict(reached: bool) -> str:
    """Say whether a target is reached."""
    return "reached" if reached else "**missed**"


def fill(page: str, parts: Parts) -> str:
    """Return a page with its tables as the results are now."""

    def part(match: re.Match[str]) -> str:
        name, shown = parts[match["name"]]
        found = read(name)
        text = _NOTHING_YET if found is None else shown(found)
        return f"{match[1]}{text}{match[3]}"

    return _PART.sub(part, page)
