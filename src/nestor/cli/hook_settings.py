"""Put a Stop hook into Claude Code's settings, beside whatever stands there."""

import difflib
import json
import os
import secrets
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestor.errors import InvalidInput

MARGIN_S = 30.0
"""Claude Code ends a hook at its own limit: after ours, or ours could not be told."""
_COMMAND = "hook stop"


@dataclass(frozen=True)
class Change:
    """A settings file as it is (None: there is none) and as it should be."""

    path: Path
    real: Path
    """Where its links lead."""
    before: str | None
    after: str

    @property
    def diff(self) -> str:
        """Unified diff; "" when nothing changes."""
        name = str(self.path)
        lines = difflib.unified_diff(
            (self.before or "").splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            name,
            name,
        )
        return "".join(lines)

    def write(self) -> None:
        """Replace the file, whole or not at all. Raises ``OSError``."""
        self.real.parent.mkdir(exist_ok=True)
        # A name that nobody knows, made by us alone: whoever made the repository may have
        # left a link in the place of any name that can be guessed.
        new = self.real.with_name(f".{self.real.name}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(new, flags, 0o666), "w") as file:
                file.write(self.after)
                file.flush()
                os.fsync(file.fileno())
            if self.before is not None:
                shutil.copymode(self.real, new, follow_symlinks=False)
            new.replace(self.real)
        finally:
            new.unlink(missing_ok=True)


def with_hook(path: Path, options: list[str], *, limit_s: float, top: Path) -> Change:
    """Return the settings with the hook in them; ours from before is replaced.

    Raises ``InvalidInput`` for settings that are not what Claude Code takes, and for such
    as lie outside of ``top``, the repository: they are for their owner to mend.
    """
    real = _within(path, top)
    before = real.read_text() if real.exists() else None
    settings = _read(path, before)
    hook = {
        "type": "command",
        "command": _command(options),
        "timeout": round(limit_s + MARGIN_S),
    }
    groups = _list(path, _object(path, settings, "hooks"), "Stop")
    ours = [
        (group["hooks"], number)
        for group in groups
        if isinstance(group, dict) and isinstance(group.get("hooks"), list)
        for number, one in enumerate(group["hooks"])
        if _is_ours(one)
    ]
    if ours:
        place, number = ours[0]
        place[number] = {**place[number], **hook}
    else:
        groups.append({"hooks": [hook]})
    after = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if before is not None and json.loads(before) == settings:
        after = before
    return Change(path, real, before, after)


def _within(path: Path, top: Path) -> Path:
    """Follow the links of a path that ends in a file, or in nothing yet, below ``top``."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"{path} cannot be followed: {error}") from error
    if not real.is_relative_to(top.resolve()):
        why = f"{path} is a link that leads out of the repository, to {real}"
        raise InvalidInput(f"{why}; put a file in its place first")
    if real.exists() and not real.is_file():
        raise InvalidInput(f"{path} is no file; mend it first")
    return real


def _command(options: list[str]) -> str:
    """Return the command line; Claude Code's shell fills in the project's folder."""
    beside = Path(sys.executable).with_name("nestor")
    found = shutil.which("nestor") or (str(beside) if beside.exists() else None)
    program = [found] if found else [sys.executable, "-m", "nestor.cli"]
    words = shlex.join([*program, "hook", "stop", *options])
    return f'{words} --repo "$CLAUDE_PROJECT_DIR"'


def _is_ours(hook: Any) -> bool:
    command = hook.get("command") if isinstance(hook, dict) else None
    return isinstance(command, str) and "nestor" in command and _COMMAND in command


def _read(path: Path, text: str | None) -> dict[str, Any]:
    if text is None or not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON ({error}); mend it first") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path} holds no JSON object; mend it first")
    return found


def _object(path: Path, within: dict[str, Any], name: str) -> dict[str, Any]:
    found = within.setdefault(name, {})
    if not isinstance(found, dict):
        raise InvalidInput(f"{path}: {name} is no object; mend it first")
    return found


def _list(path: Path, within: dict[str, Any], name: str) -> list[Any]:
    found = within.setdefault(name, [])
    if not isinstance(found, list):
        raise InvalidInput(f"{path}: {name} is no list; mend it first")
    return found
