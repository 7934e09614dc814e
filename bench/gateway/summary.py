"""What was measured beside what."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path


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
