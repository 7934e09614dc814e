"""Medians, ranges, and the machine they were seen on."""

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Spread = dict[str, float]


def spread(values: Iterable[float], digits: int = 4) -> Spread:
    """Return median, lowest, highest."""
    seen = list(values)
    return {
        "median": round(statistics.median(seen), digits),
        "low": round(min(seen), digits),
        "high": round(max(seen), digits),
    }


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
        "shared": True,
    }


def versions(litellm: Path) -> dict[str, str]:
    """Say what was measured: packages here, LiteLLM in its own environment, nginx."""
    names = ("nestor", "uvicorn", "uvloop", "httptools", "aiohttp", "starlette")
    found = {name: version(name) for name in names}
    if litellm.exists():
        asked = "from importlib.metadata import version; print(version('litellm'))"
        found["litellm"] = _said([str(litellm.with_name("python")), "-c", asked])
    nginx = _said(["nginx", "-v"])
    if nginx:
        found["nginx"] = nginx.rpartition("/")[2]
    found["commit"] = _said(["git", "rev-parse", "--short", "HEAD"])
    return found


def _said(argv: list[str]) -> str:
    path = f"{os.environ['PATH']}:/usr/sbin"
    try:
        done = subprocess.run(
            argv,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PATH": path},
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return (done.stdout + done.stderr).strip()
