"""``nestor spend``: what models cost, and what of it is not known."""

from typing import Annotated, Any

import typer

from nestor.cli.client import Stack
from nestor.cli.render import UNKNOWN, Screen, print_json, usd
from nestor.errors import InvalidInput

_BY = ("model", "deployment", "task", "key", "day")
_EPILOG = """Examples:

  nestor spend

  nestor spend --by key --since 2026-01-01 --json"""


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command(epilog=_EPILOG)(spend)


def spend(
    by: Annotated[
        str, typer.Option(help="model, deployment, task, key or day (UTC).")
    ] = "model",
    since: Annotated[
        str | None, typer.Option(help="First day that counts, YYYY-MM-DD.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="Most rows; the total is of all.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what calls of models cost; what is not known is said, and never 0."""
    if by not in _BY:
        raise InvalidInput.at("--by", f"{by!r} is not one of: {', '.join(_BY)}")
    query = {"by": by, "since": since, "limit": limit}
    found = Stack.find().call("coordinator", "GET", "/spend", query=query)
    if as_json:
        print_json(found)
        return
    screen = Screen()
    screen.table(
        (by, "calls", "failed", "input", "output", "cost"),
        [(_name(by, row), *_cells(row)) for row in found["rows"]],
        empty="no calls",
    )
    total = found["total"]
    if not total["calls"]:
        return
    if found["truncated"]:
        screen.line(f"only the first {limit} are shown", "warn")
    calls, failed, read, written, cost = _cells(total)
    cached = total["cached"]
    kept = f", {cached} answered from the cache" if cached else ""
    screen.line(
        f"total: {calls} calls ({failed} failed{kept}),"
        f" {read} tokens in, {written} out, {cost}",
        "heading",
    )
    if total["unsettled"]:
        what = "calls whose end nobody saw: whether they were billed is not known"
        screen.line(f"{total['unsettled']} {what}", "warn")


def _name(by: str, row: dict[str, Any]) -> str:
    if row["by"] is None:
        return f"no {by}"
    name = row["name"]
    return str(row["by"]) if name in {None, row["by"]} else f"{name} ({row['by']})"


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    tokens = [row[name] for name in ("input_tokens", "output_tokens")]
    shown = [UNKNOWN if count is None else count for count in tokens]
    return (row["calls"], row["failed"], *shown, _cost(row))


def _cost(row: dict[str, Any]) -> str:
    """Say what is known of the cost, and of how many calls nothing is."""
    unknown = row["unpriced"]
    if row["cost_usd"] is None or not unknown:
        return usd(row["cost_usd"])
    calls = "call" if unknown == 1 else "calls"
    return f"{usd(row['cost_usd'])} + {unknown} {calls} of unknown price"
