"""Attacks L5 to L7: more than a reader can bear, and a loop that never ends."""

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.system.attacks.attacked import LAYERS, Attacked
from tests.system.child import until_ended
from tests.system.workbench import repository

pytestmark = [pytest.mark.heavy, pytest.mark.alone]

MIB = 1 << 20
GROWTH_BYTES = 96 * MIB
"""By which one attack may make the stack grow: three bodies of the largest size."""


def chunks(size: int = 65536, count: int = 2048) -> Iterator[bytes]:
    """128 MiB of a chunked body without an end, unless told otherwise."""
    one = b"%x\r\n%s\r\n" % (size, b"x" * size)
    return (one for _ in range(count))


@cache
def packed() -> bytes:
    """200 MiB in 200 kB."""
    return gzip.compress(bytes(200 * MIB), 9)


BODY_LINES = {
    "dashboard": "POST /", "ralph": "POST /submit", "aidb": "POST /documents",
    "coordinator": "POST /route", "learning": "POST /learning/stats",
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_l5_a_body_that_says_it_is_10_gb_is_413_at_once(
    stack: Attacked, layer: str
) -> None:
    with stack.unharmed():
        for length in (33 * MIB, 10 * 1024**3, 2**63 - 1):
            for key, status in (("admin", {413}), (None, {401})):
                said = f"Content-Length: {length}"
                talk = stack.ask(layer, BODY_LINES[layer], said, key=key, first=True)
                assert talk.status in status, talk.raw[:300]
                assert talk.values("connection") == ["close"]


@pytest.mark.parametrize("key", ["admin", None])
@pytest.mark.parametrize("layer", LAYERS)
def test_l5_a_chunked_body_without_an_end_is_cut_and_not_kept(
    stack: Attacked, layer: str, key: str | None
) -> None:
    stack.forget_peak()
    before = stack.memory("VmHWM")
    lines = ("Transfer-Encoding: chunked", "Content-Type: application/json")
    with stack.unharmed():
        head = stack.request(
            layer, f"{BODY_LINES[layer]} HTTP/1.1", *lines, key=key, close=False
        )
        talk, taken = stack.pour(layer, head, chunks())
        assert talk.closed
        inside = 405 if layer in {"dashboard", "learning"} else 413
        wanted = 401 if key is None else inside
        assert talk.status == wanted, talk.raw[:300]
        assert taken < 128 * MIB
    assert stack.memory("VmHWM") - before < GROWTH_BYTES


@pytest.mark.parametrize("layer", LAYERS)
def test_l5_ten_of_them_at_once_are_bounded_too(stack: Attacked, layer: str) -> None:
    stack.forget_peak()
    before = stack.memory("VmHWM")
    head = stack.request(
        layer,
        f"{BODY_LINES[layer]} HTTP/1.1",
        "Transfer-Encoding: chunked",
        close=False,
    )
    head += b"".join(chunks(count=8))
    held = [
        socket.create_connection(("127.0.0.1", stack.ports[layer])) for _ in range(10)
    ]
    with stack.unharmed():
        for sock in held:
            with suppress(OSError):
                sock.sendall(head)
        for sock in held:
            sock.close()
    assert stack.memory("VmHWM") - before < GROWTH_BYTES


@pytest.mark.parametrize("layer", LAYERS)
def test_l5_a_compressed_body_is_415_and_never_unpacked(
    stack: Attacked, layer: str
) -> None:
    bomb = packed()
    small = b'{"query": "q"}'
    stack.forget_peak()
    before = stack.memory("VmHWM")
    with stack.unharmed():
        for body, coding in (
            (bomb, "gzip"), (bomb, "x-gzip"), (bomb, "GZIP"), (zlib.compress(small), "deflate"),
            (small, "br"), (small, "zstd"), (small, "compress"), (small, "gzip, identity"),
            (bomb, "identity, gzip"), (small, "gzip;q=1"), (small, ""), (small, "utf-8"),
        ):  # fmt: skip
            talk = stack.ask(
                layer, BODY_LINES[layer], f"Content-Encoding: {coding}", body=body
            )
            assert talk.status == 415, (coding, talk.raw[:300])
        two = ("Content-Encoding: identity", "Content-Encoding: gzip")
        assert stack.ask(layer, BODY_LINES[layer], *two, body=bomb).status == 415
        talk = stack.ask(layer, BODY_LINES[layer], "Transfer-Encoding: gzip, chunked")
        assert talk.status == 400
        # Unnamed, it is only bytes that are no JSON.
        talk = stack.ask(layer, BODY_LINES[layer], body=bomb)
        assert talk.status in {400, 405}
    assert stack.memory("VmHWM") - before < GROWTH_BYTES


VALUES: dict[str, dict[str, Any]] = {
    "POST /submit": {"task": "t", "backend": "command", "command": "true"},
    "POST /tasks": {"task": "t", "backend": "command", "command": "true"},
    "POST /tasks/{task_id}/approve": {"approved": False},
    "POST /context": {"query": "q"},
    "POST /search": {"query": "q"},
    "POST /documents": {"project": "p", "path": "l6.md", "content": "x"},
    "POST /route": {"query": "q", "context": []},
    "POST /v1/chat/completions": {"messages": [{"role": "user", "content": "q"}], "model": "local"},
    "POST /keys": {"name": "l6", "scopes": ["read"]},
}  # fmt: skip
"""A right body of each route that reads one; of others ``{"a": "b"}`` is spoiled."""


def spoiled(value: dict[str, Any]) -> dict[str, bytes]:
    """Bodies that some reader chokes on, or that two read differently."""
    text = json.dumps(value)
    name = next(iter(value))
    given = json.dumps(value[name])
    rest = text[:-1]  # without the brace
    return {
        "200,000 arrays": b"[" * 200_000,
        "100,000 objects": b'{"a":' * 100_000,
        "100,000 closed arrays": b"[" * 100_000 + b"]" * 100_000,
        "deep in a field": f'{{"{name}":'.encode() + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep in a new field": f'{rest},"zz":'.encode() + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "5,000 digits": f'{rest},"zz":{"9" * 5_000}}}'.encode(),
        "5,000 digits in a field": f'{{"{name}":{"9" * 5_000}}}'.encode(),
        "exponent": f'{rest},"zz":1e{"9" * 400}}}'.encode(),
        "NaN": f'{rest},"zz":NaN}}'.encode(),
        "NaN in a field": f'{{"{name}":NaN}}'.encode(),
        "Infinity": f'{rest},"zz":Infinity}}'.encode(),
        "-Infinity": f'{rest},"zz":-Infinity}}'.encode(),
        "a name twice": f'{rest},"{name}":{given}}}'.encode(),
        "a name twice, escaped": f'{rest},"\\u{ord(name[0]):04x}{name[1:]}":{given}}}'.encode(),
        "a name twice, first": f'{{"{name}":"other",{text[1:]}'.encode(),
        "a lone surrogate": f'{{"{name}":"\\ud800"}}'.encode(),
        "a lone surrogate as a name": f'{rest},"\\udfff":1}}'.encode(),
        "a byte that is no UTF-8": f'{rest},"zz":"'.encode() + b'\xff"}',
        "an overlong byte": f'{rest},"zz":"'.encode() + b'\xc0\xaf"}',
        "a surrogate in UTF-8": f'{rest},"zz":"'.encode() + b'\xed\xa0\x80"}',
        "a raw control character": f'{rest},"zz":"\x01"}}'.encode(),
        "a BOM": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "UTF-16 without a BOM": text.encode("utf-16-le"),
        "UTF-32": text.encode("utf-32"),
        "nothing": b"",
        "spaces": b"  \r\n ",
        "NUL": b"\x00",
        "null": b"null",
        "an array": b"[]",
        "an array of it": f"[{text}]".encode(),
        "a text": b'"x"',
        "a number": b"1",
        "two": (text + text).encode(),
        "a rest": (text + "x").encode(),
        "a comma too many": f"{rest},}}".encode(),
        "half": text.encode()[:-2],
        "single quotes": text.replace('"', "'").encode(),
        "a comment": f"/**/{text}".encode(),
        "YAML": b"a: &a [*a]\n",
        "a form": b"a=b&c=d",
        "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "1,000,000 spaces": b" " * 1_000_000 + b"x",
        "60,000 names, one twice": f"{rest},".encode() + b",".join(b'"n%d":0' % n for n in range(60_000)) + b',"n0":0}',
    }  # fmt: skip


def readers(stack: Attacked) -> list[tuple[str, str, dict[str, Any]]]:
    """Layer, request line and a right body of every route that reads JSON."""
    found = []
    for layer in LAYERS:
        document = stack.json(layer, "GET /schema/openapi.json", None)
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                line = f"{method.upper()} {path}"
                if "requestBody" in operation:
                    found.append((layer, line, VALUES.get(line, {"a": "b"})))
    return found


def test_l6_no_json_brings_a_route_down_or_means_two_things(stack: Attacked) -> None:
    lines = readers(stack)
    assert {line for _, line, _ in lines} >= set(VALUES)
    wrong = []
    with stack.unharmed():
        for layer, line, value in lines:
            # The page's own name; the others answer to it as well.
            host = "nestor.localhost:PORT"
            target = line.replace("{task_id}", "x")
            for case, body in spoiled(value).items():
                talk = stack.ask(
                    layer,
                    target,
                    "Content-Type: application/json",
                    body=body,
                    host=host,
                )
                if talk.statuses not in ([400], [413], [401], [403]):
                    wrong.append(f"{line} {case}: {talk.raw[:300]!r}")
        assert not wrong, "\n".join(wrong)


def test_l6_the_control_the_bodies_are_right_until_they_are_spoiled(
    stack: Attacked,
) -> None:
    for layer, line, value in readers(stack):
        if line not in VALUES or line.startswith("POST /tasks"):
            continue
        talk = stack.ask(layer, line, body=json.dumps(value | _held(line)).encode())
        assert talk.status in {200, 201, 202}, (line, talk.raw[:300])
    for row in stack.effects()["document"]:
        if row[0] != stack.document:
            stack.ask("aidb", f"DELETE /documents/{row[0]}")


def _held(line: str) -> dict[str, Any]:
    """So that no command runs for this."""
    return {"require_approval": True} if line == "POST /submit" else {}


def test_l6_text_that_is_hard_to_write_is_written_or_refused(stack: Attacked) -> None:
    for text in (
        "\u202e",
        "\ufeff",
        "\U0010ffff",
        "\x7f\x85",
        "\u2028",
        "<script>",
        "a" * 60_000,
    ):
        body = json.dumps({"query": text, "context": []}).encode()
        assert stack.ask("coordinator", "POST /route", body=body).status < 500
        body = json.dumps({"name": text, "scopes": ["read"]}).encode()
        assert stack.ask("coordinator", "POST /keys", body=body).status < 500


def test_l7_a_loop_that_never_ends_is_cut_and_says_why(
    stack: Attacked, tmp_path: Path
) -> None:
    limits: dict[str, dict[str, Any]] = {
        "max_iterations": {"max_iterations": 2},
        "budget_tokens": {"max_iterations": 100, "budget": {"tokens": 60}},
        "budget_seconds": {"max_iterations": 100, "budget": {"seconds": 1.5}},
    }
    fails = ["python3", "-c", "import sys; sys.exit(1)"]
    for reason, limit in limits.items():
        repo = repository(tmp_path / reason)
        task = {
            "task_id": f"l7-{reason}", "backend": "builtin",
            "task": "This never ends, slowly." if reason == "budget_seconds" else "This never ends.",
            "workspace": {"repo": str(repo)}, "test_command": fails, **limit,
        }  # fmt: skip
        stack.json("ralph", "POST /submit", task)
    running = stack.child.stack()
    assert running is not None
    for reason in limits:
        ended = until_ended(running, f"l7-{reason}")
        assert (ended["status"], ended["success"]) == ("exhausted", False), ended
        assert ended["reason"] == reason
    asked = len(stack.model.chats)
    assert 0 < asked < 100
    time.sleep(1)
    assert len(stack.model.chats) == asked, "still asking after the end"
    assert stack.effects()["processes"] == []
