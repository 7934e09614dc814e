"""The table of the task loop, filled into docs/explanation/benchmarks.md."""

from collections.abc import Mapping
from typing import Any

from bench.tables import said, table, verdict

CPU_MS, START_MS, RECOVERY_S = 40.0, 200.0, 3.0


def loop(found: Mapping[str, Any], machine: str) -> str:
    """Return what an iteration costs, how soon one starts, and how soon it goes on."""
    ours, theirs = found["systems"]["nestor"], found["systems"]["dbos"]
    rows = []
    for what, key, target, digits in (
        ("CPU of an iteration, the engine, ms", "engine_cpu_ms", CPU_MS, 1),
        ("submit to start, ms", "starts_ms", START_MS, 0),
        (
            "`kill -9` and restart, until the agent runs again, s",
            "recovery_s",
            RECOVERY_S,
            2,
        ),
    ):
        reached = verdict(ours[key]["median"] < target)
        row = [said(ours[key], digits), said(theirs[key], digits)]
        rows.append([what, *row, f"< {target:g}", reached])
    for what, key in (
        ("CPU of git, guardian and sandbox, ms", "children_cpu_ms"),
        ("of that the sandbox alone, ms", "sandbox_cpu_ms"),
    ):
        rows.append([what, said(ours[key], 1), "", "", ""])
    head = ["", "Nestor", "DBOS, steps empty", "target", ""]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    return f"{table(head, rows)}\n{versions}; {machine}"
