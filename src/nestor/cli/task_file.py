"""Read a task file (JSON or YAML) and fold the options of ``nestor submit`` into it."""

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nestor.errors import FieldError, InvalidInput, TooLarge

LIMIT_BYTES = 1024 * 1024
"""What the stack accepts as a body."""
_DIRTY_FIELD, _DIRTY_OPTION = "set include_dirty: true", "use --include-dirty"


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
        raise InvalidInput.at("--file", f"{path}, {error}") from error
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


@contextmanager
def refusals_explained(path: Path | None) -> Iterator[None]:
    """Let a refusal of the stack name what was typed: option, or file and line."""
    try:
        yield
    except InvalidInput as error:
        if not error.errors:
            raise
        fields = [
            FieldError(e.field, e.message.replace(_DIRTY_FIELD, _DIRTY_OPTION))
            for e in error.errors
        ]
        if path is not None:
            fields = [_explained(field, path) for field in fields]
        said = str(error)
        for old, new in zip(error.errors, fields, strict=True):
            said = said.replace(
                f"{old.field}: {old.message}", f"{new.field}: {new.message}"
            )
        raise type(error)(said, *fields) from error


def _explained(error: FieldError, path: Path) -> FieldError:
    message = error.message
    *outer, name = error.field.split(".")
    if "unknown field" in message:
        close = difflib.get_close_matches(name, _known(outer[0] if outer else ""), 1)
        message += f"; did you mean {close[0]}?" if close else ""
    line = _line_of(path, error.field)
    where = error.field if line is None else f"{path}, line {line}: {error.field}"
    return FieldError(where, message)


def _known(part: str) -> list[str]:
    """Return the fields of a task, or of one part of it."""
    # Only for who has mistyped: the models take a while to import.
    from nestor.model import task  # noqa: PLC0415

    kinds = {
        "": task.TaskSpec,
        "checks": task.Check,
        "workspace": task.WorkspaceSpec,
        "budget": task.Budget,
        "sandbox": task.SandboxSpec,
    }
    kind = kinds.get(part)
    return [] if kind is None else list(kind.__struct_fields__)


def _line_of(path: Path, field: str) -> int | None:
    """Find the line of a field; None: it is not in the file, or came by an option."""
    import yaml  # noqa: PLC0415 - JSON is close enough to YAML for this

    try:
        node = yaml.compose(path.read_text(), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    line = None
    for part in field.split("."):
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and part.isdigit():
            inside = node.value[int(part) : int(part) + 1]
            found = (inside[0], inside[0]) if inside else None
        else:
            found = None
        if found is None:
            return None
        key, node = found
        line = int(key.start_mark.line) + 1
    return line


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error


def _yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - only for YAML files

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses a key given twice, where YAML keeps the last."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(loader.construct_object(key))
            if name in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"line {line}: {name}: given twice")
            seen.add(name)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{line}{said}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: given twice")
    return seen
