"""Read ``nestor.toml`` and the files of keys that it names; say where they are wrong."""

import os
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from nestor.model import deployment_table, secret
from nestor.model.routing import Deployment
from nestor.resilience.secret_file import read_secret_file


class TomlFile(NamedTuple):
    """What stands in a file, and what the file was that was opened."""

    values: dict[str, Any]
    found: os.stat_result


def read_toml(path: Path) -> TomlFile:
    """Read ``path``. Raises ``OSError``, and ``ValueError`` that names the line."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        raw = file.read()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"not UTF-8 text (at line {line})") from error
    try:
        return TomlFile(tomllib.loads(text), found)
    except tomllib.TOMLDecodeError as error:
        last = f"at line {text.count(chr(10)) + 1}, the end"
        raise ValueError(str(error).replace("at end of document", last)) from error


def read_deployments(tables: object) -> tuple[Deployment, ...]:
    """Read ``[[deployment]]`` tables and the keys they name.

    Raises ``ValueError`` that says which place is wrong.
    """
    return tuple(
        table.deployment(api_key=_key(f"deployment.{at}.api_key_file", table))
        for at, table in enumerate(deployment_table.read(tables))
    )


def _key(where: str, table: deployment_table.DeploymentTable) -> str | None:
    if table.api_key_file is None:
        return None
    try:
        path = Path(table.api_key_file).expanduser()
        found = read_secret_file(path)
        secret.refuse_placeholder(found)
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}: {path}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}") from error
    return found
