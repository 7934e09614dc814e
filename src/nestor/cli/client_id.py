"""Who adds folders: a random id in the client's data folder, made once."""

import os
import re
import secrets
from pathlib import Path

from nestor.errors import Misconfigured

_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST = 100


def client_id(home: Path, *, make: bool = True) -> str:
    """Return the id in the data folder ``home``; ``make``: keep one there if there is none.

    Raises ``Misconfigured`` for a file that is no id or cannot be read or made.
    """
    path = home / "client-id"
    try:
        if not path.exists():
            if not make:
                return secrets.token_hex(16)
            _make(path)
        with path.open("rb") as file:
            found = file.read(_LONGEST).decode("ascii", "replace").strip()
    except OSError as error:
        message = (
            f"{path}: {error.strerror} — this file tells your folders from those of"
            " other machines; let it be written, or set NESTOR_HOME to another folder"
        )
        raise Misconfigured(message) from error
    if not _ID.fullmatch(found):
        message = f"{path} does not hold 32 hex digits — delete it: a new one is made"
        raise Misconfigured(message)
    return found


def _make(path: Path) -> None:
    """Write a whole file under its name, or leave the one that came first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(f"{secrets.token_hex(16)}\n")
        file.flush()
        # An empty file after a power cut would make every folder another one's.
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process was first: its id is the one
    except OSError:  # there are no hard links here
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
