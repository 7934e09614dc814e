"""Fetches one pinned file from the package index that this machine is set up for.

``pip`` or ``uv`` does it, with the user's own settings (mirror, proxy, certificates): no
address of an index is known here. The hash is checked by them.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from nestor.errors import Unavailable
from nestor.telemetry.redact import redact

_LIMIT_S = 1800.0
_SAID_CHARACTERS = 300


def fetch(requirement: str, sha256: str, folder: Path) -> Path:
    """Put a package, without what it depends on, below ``folder``; return wheel or folder.

    ``sha256``: of its wheel. Raises ``Unavailable`` that says what the tool said, or that
    there is none.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    target = folder / "fetched"
    target.mkdir()
    command = _command(pinned, target)
    if command is None:
        raise Unavailable("neither pip nor uv is here to fetch it")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"{Path(command[0]).name} took longer than {_LIMIT_S:g} s"
        raise Unavailable(message) from error
    if done.returncode:
        raise Unavailable(f"{requirement} could not be fetched: {_why(done.stderr)}")
    wheels = list(target.glob("*.whl"))
    return wheels[0] if wheels else target


def _why(said: str) -> str:
    """Return what a tool says from its first error on: no secrets, one line, short."""
    text = " ".join(redact(said).split())
    first = re.search("error", text, re.IGNORECASE)
    return text[first.start() if first else 0 :][:_SAID_CHARACTERS]


def _command(pinned: Path, target: Path) -> list[str] | None:
    """Return what to run: the pip of this interpreter, uv, or any pip; None without one."""
    held = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    wanted = ["--requirement", str(pinned)]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    download = ["download", *quiet, *held, *wanted, "--dest", str(target)]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", *download]
    beside = Path(sys.executable).parent / "uv"
    if uv := (str(beside) if beside.is_file() else shutil.which("uv")):
        # It has no command that only downloads. What it unpacks is read, never imported.
        into = ["--python", sys.executable, "--target", str(target)]
        return [uv, "pip", "install", "--quiet", *held, *wanted, *into]
    pip = shutil.which("pip3") or shutil.which("pip")
    return [pip, *download] if pip else None
