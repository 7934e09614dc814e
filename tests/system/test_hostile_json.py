"""What is no JSON, no text or no number, on every call that the OpenAPI documents list."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.system.explored import WAITING, Explored, Json, exploring

pytestmark = pytest.mark.heavy

Step = str | int
TASK = {**WAITING, "checks": [{"run": "true"}]}
BODIES: dict[str, Json] = {
    "ralph POST /submit": TASK,
    "ralph POST /tasks": TASK,
    "ralph POST /tasks/{task_id}/approve": {"approved": False},
    "ralph POST /tasks/{task_id}/resume": {"note": "n"},
    "ralph POST /tasks/{task_id}/retry": {"note": "n"},
    "ralph POST /tasks/{task_id}/rollback": {"iteration": 0},
    "ralph POST /tasks/{task_id}/fork": {"iteration": 0},
    "ralph POST /tasks/{task_id}/grant": {"host": "pypi.org:443"},
    "ralph POST /mcp": {"jsonrpc": "2.0", "method": "ping", "id": 1},
    "aidb POST /context": {"query": "words"},
    "aidb POST /search": {"query": "words"},
    "aidb POST /documents": {"project": "p", "path": "b.md", "content": "Words."},
    "aidb POST /skills": {"id": "s", "kind": "pattern", "title": "t", "text": "Words."},
    "aidb POST /mcp": {"jsonrpc": "2.0", "method": "ping", "id": 1},
    "coordinator POST /route": {"query": "words"},
    "coordinator POST /keys": {"name": "n", "scopes": ["read"]},
    "coordinator POST /v1/chat/completions": {
        "messages": [{"role": "user", "content": "Hello."}]
    },
    "coordinator POST /v1/messages": {
        "model": "auto",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hello."}],
    },
    "coordinator POST /v1/responses": {"input": "Hello."},
    "coordinator POST /v1/embeddings": {"input": "Hello."},
    "coordinator POST /augment_query": {"query": "words"},
    "coordinator POST /interactions": {"query": "words"},
    "coordinator POST /feedback": {"interaction_id": "x", "outcome": "success"},
    "coordinator POST /mcp": {"jsonrpc": "2.0", "method": "ping", "id": 1},
    "dashboard POST /session": {"link": "x"},
}
"""For each call that takes JSON, one body that is read."""
HUGE = (2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400)
UNREADABLE = {
    "200,000 lists": b"[" * 200_000,
    "200,000 lists, closed": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep in a field": b'{"NAME":' + b"[" * 200_000,
    "5,000 digits": b'{"NAME":' + b"9" * 5_000 + b"}",
    "a fraction of 5,000 digits": b'{"NAME":0.' + b"9" * 5_000 + b"e999}",
    "NaN": b'{"NAME":NaN}',
    "Infinity": b'{"NAME":Infinity}',
    "-Infinity": b'{"NAME":[-Infinity]}',
    "beyond a float": b'{"NAME":1e999}',
    "twice": b'{"NAME":null,"NAME":null}',
    "twice, spelled otherwise": b'{"NAME":null,"FIRST":null}',
    "lone surrogate": b'{"NAME":"\\ud800"}',
    "lone low surrogate": b'{"NAME":["\\udfff x"]}',
    "lone surrogate as a name": b'{"\\ud800":1}',
    "surrogate in UTF-8": b'{"NAME":"\xed\xa0\x80"}',
    "not UTF-8": b'{"NAME":"\xff"}',
    "UTF-16": '{"NAME":1}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"NAME":1}',
    "nothing": b"",
    "two documents": b"{}{}",
}
PIECES = ("%ed%a0%80", "%ff", "%00", "%0d%0aX-A:%20b", "%u002e", "%c0%ae")


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explored]:
    with exploring(tmp_path_factory.mktemp("explored")) as running:
        yield running


def _bodies(explored: Explored) -> Iterator[tuple[str, Any, str]]:
    """Layer, operation and path of every call that takes JSON."""
    for layer, operation, _ in explored.operations:
        described = operation.schema.raw_schema["paths"][operation.path]
        taken = described[operation.method].get("requestBody", {"content": {}})
        if "application/json" in taken["content"]:
            path = operation.path
            for name in [parameter.name for parameter in operation.path_parameters]:
                path = path.replace(f"{{{name}}}", explored.thing(name) or "x")
            yield layer, operation, path


def test_l6_no_call_reads_what_is_no_json(explored: Explored) -> None:
    seen = set()
    for layer, operation, path in _bodies(explored):
        call = f"{layer} {operation.label}"
        seen.add(call)
        for name in BODIES[call]:
            spelled = f"\\u{ord(name[0]):04x}{name[1:]}"
            for case, text in UNREADABLE.items():
                body = text.replace(b"NAME", name.encode())
                body = body.replace(b"FIRST", spelled.encode())
                reply = explored.send(layer, operation.method, path, data=body)
                # The page's sign-in refuses before it reads: few tries, small bodies.
                early = {413, 429} if call == "dashboard POST /session" else set()
                assert reply.status_code in {400} | early, (call, case, reply.text)
                # Calls of a dialect are refused in its own words.
                own = operation.path.startswith(("/v1/", "/mcp"))
                kind = "application/json" if own else "application/problem+json"
                assert reply.headers["content-type"] == kind, (call, case)
                assert "Traceback" not in reply.text
    assert seen == BODIES.keys()
    explored.check_readers()


def test_l6_numbers_that_no_store_holds_are_refused(explored: Explored) -> None:
    for layer, operation, path in _bodies(explored):
        good = BODIES[f"{layer} {operation.label}"]
        described = operation.schema.raw_schema["paths"][operation.path]
        content = described[operation.method]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        fields: list[tuple[Step, ...]] = [
            *_numbers(operation.schema.raw_schema, schema),
            ("anything",),
        ]
        for field_path, number in itertools.product(fields, HUGE):
            body = json.loads(json.dumps(good))
            place = body
            for step in field_path[:-1]:
                known = isinstance(place, list) or step in place
                place = place[step] if known else place.setdefault(step, {})
            place[field_path[-1]] = number
            reply = explored.send(
                layer, operation.method, path, data=json.dumps(body).encode()
            )
            assert reply.status_code < 500, (
                operation.label,
                field_path,
                number,
                reply.text,
            )
    explored.check_readers()


def test_l6_names_in_paths_and_queries_that_are_no_text(explored: Explored) -> None:
    for layer, operation, _ in explored.operations:
        for piece in PIECES:
            for target in (
                re.sub(r"\{\w+\}", piece, operation.path),
                f"{operation.path}?{piece}={piece}",
                *(f"{operation.path}?{p.name}={piece}" for p in operation.query),
            ):
                reply = explored.send(layer, operation.method, target)
                assert reply.status_code < 500, (layer, operation.label, target)
                assert "X-A" not in reply.headers
    explored.check_readers()


def test_l6_headers_that_are_no_number_are_told(explored: Explored) -> None:
    tried = set()
    for layer, operation, _ in explored.operations:
        for header in operation.headers:
            if header.definition["schema"]["type"] == "string":
                continue
            tried.add(header.name)
            given = {name: explored.thing(name) for name in ("task_id",)}
            path = operation.path.format(**given)
            for value in ("9" * 5_000, "-1", "1e9", "\xb2", "\xff", "0x1", ""):
                good = BODIES.get(f"{layer} {operation.label}")
                data = json.dumps(good).encode() if good else None
                reply = explored.send(
                    layer, operation.method, path, data=data, more={header.name: value}
                )
                assert reply.status_code == 400, (operation.label, header.name, value)
                said = reply.json()
                if "errors" in said:
                    assert said["errors"][0]["field"].lower() == header.name.lower()
                else:
                    assert header.name.lower() in said["error"]["message"].lower()
    assert "x-nestor-iteration" in {name.lower() for name in tried}


def _numbers(document: Json, schema: Json, *at: Step) -> Iterator[tuple[Step, ...]]:
    """Yield the path of every number in an object of this schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
    for part in schema.get("anyOf", ()):
        yield from _numbers(document, part, *at)
    kinds = schema.get("type", ())
    if at and {"integer", "number"} & {*([kinds] if isinstance(kinds, str) else kinds)}:
        yield at
    if "items" in schema:
        yield from _numbers(document, schema["items"], *at, 0)
    for name, part in schema.get("properties", {}).items():
        if isinstance(part, dict):
            yield from _numbers(document, part, *at, name)
    if at and isinstance(schema.get("additionalProperties"), dict):
        yield (*at, "anything")
