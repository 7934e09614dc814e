"""The tools as the model is told of them, and the check of what it calls them with."""

from __future__ import annotations

import json

from .faults import ToolError

_NAME_CHARS = 80
Schema = dict[str, tuple[str, str, bool]]


def _tool(name: str, description: str, parameters: Schema) -> dict[str, object]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": kind, "description": text}
                    for key, (kind, text, _) in parameters.items()
                },
                "required": [key for key, (*_, need) in parameters.items() if need],
                "additionalProperties": False,
            },
        },
    }


_PATH = "Path relative to the current folder."
_SCHEMAS: dict[str, tuple[str, Schema]] = {
    "bash": (
        "Run a command in bash; returns its exit code and output. Killed after 120 s.",
        {"command": ("string", "The command line.", True)},
    ),
    "read_file": (
        "Show lines of a text file, numbered.",
        {
            "path": ("string", _PATH, True),
            "start": ("integer", "The first line; 1 when not given.", False),
            "lines": ("integer", "How many; 200 when not given.", False),
        },
    ),
    "search": (
        "Find lines that match an extended regular expression, as path:line:text.",
        {
            "pattern": ("string", "As for grep -E.", True),
            "path": (
                "string",
                "File or folder; the current folder if not given.",
                False,
            ),
        },
    ),
    "edit_file": (
        "Replace one exact piece of text of a file; it must stand there exactly once.",
        {
            "path": ("string", _PATH, True),
            "old": ("string", "The text as it stands, without line numbers.", True),
            "new": ("string", "The text that takes its place.", True),
        },
    ),
    "write_file": (
        "Create or replace one file inside the current folder.",
        {
            "path": ("string", _PATH, True),
            "content": ("string", "The whole new content.", True),
        },
    ),
    "done": (
        "End the work.",
        {"summary": ("string", "What was done, in one line.", True)},
    ),
}
TOOLS: list[object] = [
    _tool(name, text, schema) for name, (text, schema) in _SCHEMAS.items()
]


def arguments_of(name: str, arguments: str) -> dict[str, object]:
    """Return the checked arguments of a call. Raises ToolError that says what is right."""
    if name not in _SCHEMAS:
        known = ", ".join(_SCHEMAS)
        raise ToolError(f"unknown tool {name[:_NAME_CHARS]!r}; the tools are {known}")
    schema = _SCHEMAS[name][1]
    usage = f"{name} takes {_usage(schema)}"
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the arguments are not valid JSON; {usage}") from error
    if not isinstance(given, dict):
        raise ToolError(f"the arguments are not a JSON object; {usage}")
    unknown = sorted(set(given) - set(schema))
    if unknown:
        raise ToolError(f"there is no argument {unknown[0][:_NAME_CHARS]!r}; {usage}")
    for key, (kind, _, needed) in schema.items():
        if given.get(key) is None:
            if needed:
                raise ToolError(f"{key} is missing; {usage}")
            given.pop(key, None)
        elif not _is(kind, given[key]):
            raise ToolError(f"{key} must be of type {kind}; {usage}")
    return given


def _usage(schema: Schema) -> str:
    shown = (
        f"{key}: {kind}" if need else f"{key}?: {kind}"
        for key, (kind, _, need) in schema.items()
    )
    return "{" + ", ".join(shown) + "}"


def _is(kind: str, value: object) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)
