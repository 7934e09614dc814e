"""How often ``nestor hook stop`` held a session: what keeps it from holding for ever."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FORGET_S = 30 * 24 * 3600.0


@dataclass
class Session:
    """What is known of one session."""

    blocks: int = 0
    """How often it was held."""
    same: int = 0
    """How often the last failure was seen in a row, in this turn."""
    signature: str = ""

    def saw(self, signature: str, *, fresh: bool) -> None:
        """Note a failure. ``fresh``: a person has spoken since the session was held."""
        if fresh or signature != self.signature:
            self.same = 0
        self.signature = signature
        self.same += 1

    def saw_none(self) -> None:
        """Note that nothing fails."""
        self.same, self.signature = 0, ""


@contextmanager
def session_of(folder: Path, session_id: str) -> Iterator[Session]:
    """Yield what is known of a session; what the body changes is kept.

    One process at a time. Raises ``OSError`` where it cannot be kept.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()[:32]
    path = folder / f"{name}.json"
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        session = _read(path)
        yield session
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(session)))
        new.replace(path)
        _forget_old(folder)


def _read(path: Path) -> Session:
    try:
        kept: Any = json.loads(path.read_bytes())
        return Session(
            blocks=max(int(kept["blocks"]), 0),
            same=max(int(kept["same"]), 0),
            signature=str(kept["signature"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Nothing, or damaged: it begins again, still bounded.
        return Session()


def _forget_old(folder: Path) -> None:
    old = time.time() - _FORGET_S
    for path in folder.glob("*.json"):
        with suppress(OSError):
            if os.stat(path).st_mtime < old:  # noqa: PTH116 - one call
                path.unlink()
