"""JSON Schemas of the types that calls take and give, for ``web.openapi``.

A type tells most of it. What only the service behind a call checks is added here, so that
a reader of the document knows the bounds, too.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from nestor.aidb.finder import LEGS
from nestor.aidb.ingest import MAX_NAME
from nestor.aidb.service import MAX_LIMIT
from nestor.aidb.skills import MAX_TEXT, MAX_TITLE
from nestor.coordinator.pricing import MAX_TOKENS
from nestor.model.access import SCOPES
from nestor.model.ids import TASK_ID
from nestor.ralph.sealing import MAX_ITERATIONS, MAX_PHASE, MAX_TIMEOUT_S, PRIORITIES

Json = dict[str, Any]

REF = "#/components/schemas/{name}"
AMOUNT: Json = {
    "type": "string",
    "format": "decimal",
    "pattern": r"^-?[0-9]+(\.[0-9]+)?$",
}
_NAMES: dict[str, Json] = {
    "project": {"minLength": 1, "maxLength": MAX_NAME},
    "path": {"minLength": 1, "maxLength": MAX_NAME},
}
_NARROWED: dict[str, dict[str, Json]] = {
    "TaskSpec": {
        "task_id": {"pattern": f"^({TASK_ID.pattern})?$"},
        "priority": {"enum": list(PRIORITIES)},
        "phase": {"minimum": 0, "maximum": MAX_PHASE},
        "max_iterations": {"minimum": 0, "maximum": MAX_ITERATIONS},
        "dependencies": {"maxItems": 0},
    },
    "Budget": {
        "usd": {"anyOf": [{"type": ["number", "null"]}, AMOUNT]},
        "tokens": {"exclusiveMinimum": 0},
        "seconds": {"exclusiveMinimum": 0},
    },
    "Check": {"timeout_s": {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S}},
    "ContextRequest": {
        "query": {"minLength": 1},
        "limit": {"minimum": 1, "maximum": MAX_LIMIT},
        "token_budget": {"minimum": 1},
    },
    "AddDocuments": _NAMES,
    "NewDocument": _NAMES,
    "NewKey": {
        "name": {"minLength": 1},
        "scopes": {
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"enum": sorted(SCOPES)},
                    {"pattern": f"^task:{TASK_ID.pattern}$"},
                ],
                "type": "string",
            },
        },
    },
    "KeyLimits": {
        "usd": {"anyOf": [{"type": ["number", "null"]}, AMOUNT]},
        "tokens": {"exclusiveMinimum": 0},
        "rpm": {"exclusiveMinimum": 0},
        "tpm": {"exclusiveMinimum": 0},
    },
    "SearchDocuments": {
        "query": {"minLength": 1},
        "limit": {"minimum": 1, "maximum": MAX_LIMIT},
        "leg": {"enum": list(LEGS)},
    },
    "Skill": {
        "id": {"pattern": "^[A-Za-z0-9._-]{1,64}$"},
        "title": {"minLength": 1, "maxLength": MAX_TITLE},
        "text": {"minLength": 1, "maxLength": MAX_TEXT},
    },
    "RouteRequest": {
        "query": {"minLength": 1},
        "iteration": {"minimum": 1},
        "max_tokens": {"minimum": 1, "maximum": MAX_TOKENS},
    },
}
"""Bounds that the services check by themselves, so that a type does not tell them."""


_TOGETHER: dict[str, Json] = {
    "TaskSpec": {
        "oneOf": [
            {
                "required": [name],
                "properties": {name: {"type": "string", "minLength": 1}},
            }
            for name in ("task", "description", "prompt")
        ]
    },
    "AddDocuments": {
        "oneOf": [
            {
                "required": ["project", "path", "content"],
                "properties": {"items": False},
            },
            {"required": ["items"], "maxProperties": 1},
        ]
    },
    "NewFeedback": {
        "anyOf": [
            {"required": [name], "properties": {name: {"type": kind}}}
            for name, kind in (("outcome", "string"), ("user_feedback", "number"))
        ]
    },
}
"""Which fields belong together."""


def of(types: Sequence[Any], *more: Any) -> tuple[dict[Any, Json], Json]:
    """Return the schema of each of ``types``, and the components that these refer to.

    ``more``: types whose components are wanted as well.
    """
    found, parts = msgspec.json.schema_components(
        [*types, *more], ref_template=REF, schema_hook=_anything
    )
    for name, part in parts.items():
        for field, bounds in _NARROWED.get(name, {}).items():
            part["properties"][field] = narrowed(part["properties"][field], bounds)
        part.update(_TOGETHER.get(name, {}))
    return dict(zip(types, found, strict=False)), _amounts(parts)


def narrowed(schema: Json, bounds: Json) -> Json:
    """Put bounds on the part of a union that they are about."""
    if "anyOf" in bounds or "anyOf" not in schema:
        return {**{k: v for k, v in schema.items() if k != "anyOf"}, **bounds}
    parts = [p if p.get("type") == "null" else {**p, **bounds} for p in schema["anyOf"]]
    return {**schema, "anyOf": parts}


def _anything(_: Any) -> Json:
    """``object`` in a type: whatever was given. msgspec refuses an empty answer."""
    return {"description": "Any JSON value."}


def _amounts(tree: Any) -> Any:
    """Say what msgspec's ``decimal`` looks like: no reader knows that format."""
    if isinstance(tree, list):
        return [_amounts(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    found = {name: _amounts(part) for name, part in tree.items()}
    return {**found, **AMOUNT} if found.get("format") == "decimal" else found
