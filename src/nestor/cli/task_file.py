"""Read a task file (JSON or YAML) and fold the options of ``nestor submit`` into it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nestor.errors import InvalidInput, TooLarge

LIMIT_BYTES = 1024 * 1024
"""What the stack accepts as a body."""


def read_task_file(path: Path) -> dict[str, Any]:
    """Read a task file; relative workspaces are taken from the file's own folder.

    Raises ``InvalidInput`` that names the file and what is wrong in it. Which fields
    there are is for the stack to say: it refuses unknown ones by name.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput.at("--file", f"{path}: {error.strerror}") from error
    if len(raw) > LIMIT_BYTES:
        raise TooLarge(f"--file: {path} is larger than 1 MiB")
    try:
        text = raw.decode()
        value = _json(text) if path.suffix == ".json" else _yaml(text)
    except RecursionError:
        raise InvalidInput.at("--file", f"{path}: nested too deeply") from None
    except ValueError as error:
        raise InvalidInput.at("--file", f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput.at("--file", f"{path}: not a task: a mapping is needed")
    workspace = value.get("workspace")
    if isinstance(workspace, dict) and isinstance(workspace.get("repo"), str):
        repo = (path.parent / Path(workspace["repo"]).expanduser()).resolve()
        value["workspace"] = {**workspace, "repo": str(repo)}
    return value


def checked_body(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task as it will be sent, or say why it cannot be.

    YAML aliases can make a small file stand for a huge one, so the size is counted
    while it is written out and not afterwards.
    """
    pieces, size = [], 0
    try:
        for piece in json.JSONEncoder(allow_nan=False, default=str).iterencode(task):
            pieces.append(piece)
            size += len(piece)
            if size > LIMIT_BYTES:
                raise TooLarge("the task is larger than 1 MiB")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the task cannot be written as JSON: {error}") from error
    body: dict[str, Any] = json.loads("".join(pieces))
    return body


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - only for YAML files

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses a key given twice, where YAML keeps the last."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        _without_duplicates([(str(key), None) for key in keys])
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: given twice")
    return seen
