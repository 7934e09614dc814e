"""Medians, ranges, and the machine they were seen on."""

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
PEERS = ROOT / ".cache/peers"
Spread = dict[str, float]


def spread(values: Iterable[float], digits: int = 4) -> Spread:
    """Return median, lowest, highest."""
    seen = list(values)
    return {
        "median": round(statistics.median(seen), digits),
        "low": round(min(seen), digits),
        "high": round(max(seen), digits),
    }


def share(values: Sequence[float], of: float) -> float:
    """Return the value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(of * len(ordered)))]


def machine() -> dict[str, Any]:
    """Say where this runs."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / 1024**2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(one, 1) for one in os.getloadavg()],
        "shared": True,
    }


def version_in(python: Path, package: str) -> str:
    """Return which version of a package another environment has."""
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run(
        [str(python), "-c", asked], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit() -> str:
    """Return which commit of this repository is measured; ``-dirty``: with changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return done.stdout.strip()
