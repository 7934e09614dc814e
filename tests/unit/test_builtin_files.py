"""The builtin agent's tools for files: exact edits, bounded reads, bounded searches."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.servers.scripted_model import ScriptedModel
from tests.unit.builtin_rig import Ran, call, results, run, script


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


async def answers(work: Path, *calls: dict[str, Any]) -> tuple[list[str], Ran]:
    async with ScriptedModel(script(list(calls))) as model:
        ran = await run(work, model)
    return results(model), ran


async def test_an_edit_replaces_the_one_place_and_leaves_the_rest(work: Path) -> None:
    (work / "a.txt").write_bytes(b"one\r\n\ttwo \r\nthree")
    told, _ = await answers(work, call("edit_file", path="a.txt", old="two ", new="2"))
    assert told == ["edited at line 2"]
    assert (work / "a.txt").read_bytes() == b"one\r\n\t2\r\nthree"


async def test_an_edit_that_does_not_fit_exactly_changes_nothing(work: Path) -> None:
    text = "def add(a, b):\n    return a - b\n\ndef sub(a, b):\n    return a - b\n"
    (work / "calc.py").write_text(text)
    (work / "odd").write_bytes(b"\xff\xfe two")
    told, _ = await answers(
        work,
        call("edit_file", path="calc.py", old="return a - b", new="return 0"),
        call("edit_file", path="calc.py", old="def add(a,b):", new="def f():"),
        call("edit_file", path="calc.py", old="", new="x"),
        call("edit_file", path="odd", old="two", new="2"),
        call("edit_file", path="missing", old="a", new="b"),
    )
    assert "stands 2 times in the file (lines 2, 5)" in told[0]
    assert "1\tdef add(a, b):" in told[1]
    assert all(text.startswith("error: ") for text in told)
    assert (work / "calc.py").read_text() == text
    assert (work / "odd").read_bytes() == b"\xff\xfe two"


@pytest.mark.parametrize(
    ("name", "good", "bad", "said"),
    [
        ("a.py", "x = 1\n", "def f(:\n", "no valid Python: line 1"),
        ("a.json", "[1]", "[1,", "no valid JSON"),
        ("a.toml", "a = 1", "a = = 1", "no valid TOML"),
        ("a.txt", "x", "def f(:", ""),
    ],
)
async def test_what_cannot_be_parsed_after_an_edit_is_told(
    work: Path, name: str, good: str, bad: str, said: str
) -> None:
    told, _ = await answers(
        work,
        call("write_file", path=name, content=good),
        call("edit_file", path=name, old=good, new=bad),
        call("write_file", path=name, content=bad),
    )
    assert told[0] == f"wrote {len(good)} bytes"
    assert told[1].startswith("edited at line 1")
    assert said in told[1]
    assert said in told[2]
    assert ("but" in told[1]) == bool(said)
    assert (work / name).read_text() == bad


async def test_a_file_is_read_with_numbers_and_within_bounds(work: Path) -> None:
    (work / "long").write_text("".join(f"line {n}\n" for n in range(1, 5001)))
    (work / "wide").write_text("x" * 100_000)
    (work / "empty").write_text("")
    (work / "binary").write_bytes(b"a\0b")
    (work / "huge").write_bytes(b"a" * 2_000_000)
    os.mkfifo(work / "pipe")
    told, _ = await answers(
        work,
        call("read_file", path="long", start=100, lines=2),
        call("read_file", path="long"),
        call("read_file", path="long", start=1, lines=5000),
        call("read_file", path="long", start=5001),
        call("read_file", path="wide"),
        call("read_file", path="empty"),
        *[call("read_file", path=p) for p in ("binary", "huge", "pipe", ".")],
        call("read_file", path="long", start=0),
        call("read_file", path="long", start="1"),
    )
    assert told[0] == "100\tline 100\n101\tline 101\n[lines 100 to 101 of 5000]"
    assert told[1].endswith("[lines 1 to 200 of 5000]")
    assert all(len(text) < 9000 for text in told)
    assert "has 5000 lines" in told[3]
    assert told[4].endswith("[...]")
    assert told[5] == "the file is empty"
    assert [text.startswith("error: ") for text in told[6:]] == [
        *(True, True, False, True, True, True)
    ]


async def test_a_search_is_bounded_sorted_and_runs_no_shell(work: Path) -> None:
    (work / "b.py").write_text("needle 1\nother\nneedle 2\n")
    (work / "a").mkdir()
    (work / "a" / "x.py").write_text("a needle\n")
    (work / ".git").mkdir()
    (work / ".git" / "config").write_text("needle\n")
    (work / "-e").write_text("needle in a file with an odd name\n")
    (work / "many").write_text("row\n" * 5000)
    told, _ = await answers(
        work,
        call("search", pattern="needle [0-9]|a needle"),
        call("search", pattern="needle", path="a"),
        call("search", pattern="^row$"),
        call("search", pattern="$(touch made); `touch made`"),
        call("search", pattern="--help"),
        call("search", pattern="("),
        call("search", pattern="x", path="nowhere"),
    )
    assert told[0].splitlines() == [
        *("b.py:1:needle 1", "b.py:3:needle 2", "a/x.py:1:a needle")
    ]
    assert told[1] == "a/x.py:1:a needle"
    assert told[2].endswith("[more was found; narrow the pattern or the path]")
    assert len(told[2]) < 9000
    assert told[3:5] == ["nothing found", "nothing found"]
    assert all(text.startswith("error: ") for text in told[5:])
    assert not (work / "made").exists()


@pytest.mark.parametrize("tool", ["read_file", "edit_file", "write_file", "search"])
async def test_no_tool_takes_a_path_that_leads_out(
    work: Path, tmp_path: Path, tool: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("canary-7731")
    (work / "out").symlink_to(outside)
    (work / "link").symlink_to(outside / "secret")
    more: dict[str, str] = {
        "read_file": {},
        "edit_file": {"old": "canary", "new": "x"},
        "write_file": {"content": "x"},
        "search": {"pattern": "canary"},
    }[tool]
    paths = [
        *("../outside/secret", str(outside / "secret"), "out/secret", "link"),
        *("-rf", "nul\0", "~/x/../../outside/secret"),
    ]
    told, ran = await answers(work, *[call(tool, path=p, **more) for p in paths])
    assert all(text.startswith("error: ") for text in told), told
    assert "canary" not in json.dumps(told)
    assert len(ran.refused) == len(paths)
    assert [p.name for p in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "canary-7731"


@pytest.mark.parametrize("path", [".git/hooks/pre-commit", ".git/config", "sub/.git/x"])
async def test_gits_own_files_are_not_written(work: Path, path: str) -> None:
    (work / ".git" / "hooks").mkdir(parents=True)
    told, ran = await answers(work, call("write_file", path=path, content="#!/bin/sh"))
    assert told[0].startswith("error: git's own files")
    assert len(ran.refused) == 1
    assert not (work / path).exists()
