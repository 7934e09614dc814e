"""What is told live of an agent's output: all of it, or its newest lines and a count."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nestor.backends.sandbox.output import Output
from nestor.model.task import Task
from nestor.ralph.parts import Parts
from nestor.ralph.tailing import EVENT_BYTES, ITERATION_BYTES, Tail, told_live
from nestor.telemetry.redact import REDACTED

LIMIT = 256 * 1024


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """What the guardian writes with."""
    return Output(str(tmp_path), LIMIT)


@pytest.fixture
def tail(tmp_path: Path) -> Tail:
    return Tail(tmp_path)


def told(tail: Tail, *, last: bool = False) -> dict[str, Any]:
    piece = tail.piece(last=last)
    assert piece is not None
    return piece


def test_each_line_is_told_once_when_it_is_whole(output: Output, tail: Tail) -> None:
    assert tail.piece(last=False) is None
    output.write(b"one\ntwo\nthr")
    assert told(tail) == {"text": "one\ntwo\n", "left_out_bytes": 0}
    assert tail.piece(last=False) is None
    output.write(b"ee\n")
    assert told(tail)["text"] == "three\n"
    output.write(b"no end")
    assert tail.piece(last=False) is None
    assert told(tail, last=True)["text"] == "no end"
    assert tail.piece(last=True) is None


def test_without_a_run_there_is_nothing(tmp_path: Path) -> None:
    assert Tail(tmp_path / "nowhere").piece(last=True) is None


def test_the_change_of_the_file_loses_no_line(output: Output, tail: Tail) -> None:
    lines = [f"{n:07}\n".encode() for n in range(3 * LIMIT // 8)]
    seen = ""
    tail.piece(last=False)
    for start in range(0, len(lines), 100):
        output.write(b"".join(lines[start : start + 100]))
        piece = told(tail)
        seen += piece["text"]
        if len(seen) + EVENT_BYTES > ITERATION_BYTES:
            break
        assert piece["left_out_bytes"] == 0
    assert len(seen) > LIMIT / 2, "the file was changed for another meanwhile"
    assert seen == "".join(line.decode() for line in lines)[: len(seen)]


def test_of_much_the_newest_lines_are_told_and_the_rest_is_counted(
    output: Output, tail: Tail
) -> None:
    text = "".join(f"line {n}\n" for n in range(20_000))
    output.write(text.encode())
    piece = told(tail)
    assert len(piece["text"]) <= EVENT_BYTES
    assert piece["text"].startswith("line ")
    assert text.endswith(piece["text"])
    assert piece["left_out_bytes"] == len(text) - len(piece["text"])


def test_an_iteration_tells_so_much_and_no_more(output: Output, tail: Tail) -> None:
    sizes = 0
    for _ in range(100):
        output.write((b"x " * 49 + b".\n") * 40)
        if (piece := tail.piece(last=False)) is None:
            break
        sizes += len(piece["text"])
    assert ITERATION_BYTES - EVENT_BYTES < sizes <= ITERATION_BYTES
    output.write(b"the end " * 100 + b"\n")
    end = told(tail, last=True)
    assert end["text"] == "", "the iteration's record has the end"
    assert end["left_out_bytes"] > 800


def test_no_secret_is_told_whole_or_in_parts(output: Output, tail: Tail) -> None:
    secret = "sk-" + "Ab3" * 16
    output.write(f"key: {secret[:20]}".encode())
    assert tail.piece(last=False) is None
    output.write(f"{secret[20:]}\n".encode())
    assert secret[:12] not in told(tail)["text"]
    # A line that is too long to be told whole is not told in part.
    output.write(b"y" * EVENT_BYTES + f" {secret} ".encode() + b"z" * 100 + b"\n")
    assert tail.piece(last=False) is None
    # A key whose block began in what was left out.
    body = ("QUJDRA" * 11)[:64]
    output.write(f"-----BEGIN PRIVATE KEY-----\n{body}\n".encode())
    assert body not in told(tail)["text"]
    output.write(f"{body}\nafter\n".encode())
    assert told(tail)["text"] == f"{REDACTED}\nafter\n"


@pytest.mark.parametrize("limit", [LIMIT, 16 * LIMIT])
def test_half_of_a_line_that_was_skipped_is_not_told(
    tmp_path: Path, tail: Tail, limit: int
) -> None:
    output = Output(str(tmp_path), limit)
    output.write(b"first\npassword is ")
    assert told(tail)["text"] == "first\n"
    # With the smaller limit its last 1,000 bytes stand in the next file.
    output.write((b"hunter2" * LIMIT)[: LIMIT // 2 - 18 + 1000] + b"\nlast\n")
    piece = told(tail)
    assert piece["text"] == "last\n"
    assert piece["left_out_bytes"] == LIMIT // 2 - 6 + 1001


def test_progress_is_its_last_state_and_bad_bytes_are_marked(
    output: Output, tail: Tail
) -> None:
    output.write(b"10 %\r50 %\r100 %\r\n\xff\xfe\r\n")
    assert told(tail)["text"] == "100 %\n\ufffd\ufffd\n"


def test_a_link_or_a_pipe_in_its_place_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "output").symlink_to(tmp_path / "secret")
    assert Tail(tmp_path).piece(last=True) is None
    (tmp_path / "output").unlink()
    os.mkfifo(tmp_path / "output")
    assert Tail(tmp_path).piece(last=True) is None


async def test_what_is_being_told_as_the_agent_ends_is_not_lost(tmp_path: Path) -> None:
    told_texts: list[str] = []
    begun = asyncio.Event()

    async def tell(_task_id: str, _kind: str, data: dict[str, Any]) -> None:
        begun.set()
        await asyncio.sleep(0.2)
        told_texts.append(data["text"])

    p = cast("Parts", SimpleNamespace(store=SimpleNamespace(tell=tell)))
    task = cast("Task", SimpleNamespace(task_id="t"))
    async with told_live(p, task, 1, tmp_path), asyncio.timeout(30):
        output = Output(str(tmp_path), LIMIT)
        output.write(b"first\n")
        await begun.wait()
        output.write(b"second\n")
    assert told_texts == ["first\n", "second\n"]
