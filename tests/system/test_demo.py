"""`nestor demo` as a process: the whole stack, once, with a replayed model."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faces.fake_stack import ESCAPES

from nestor.cli.demo_sample import data_file

pytestmark = pytest.mark.heavy


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path holds 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def demo(temporary: Path, **settings: str) -> "subprocess.Popen[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
    env = clean | settings | {"TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-m", "nestor.cli", "demo"],
        cwd=temporary,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(temporary: Path) -> list[str]:
    """Name what still stands in the temporary folder, and what still runs there."""
    found = [str(path) for path in temporary.glob("nestor-demo-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (
                process / "cmdline"
            ).read_bytes()
        except OSError:  # it has just ended
            continue
        if str(temporary).encode() in told:
            found.append(f"process {process.name}")
    return found


def test_the_demo_ends_verified_says_replayed_and_leaves_nothing(
    temporary: Path,
) -> None:
    process = demo(temporary)
    shown, _ = process.communicate(timeout=170)
    assert process.returncode == 0, shown
    assert not ESCAPES.search(shown), "plain lines where there is no terminal"
    for said in (
        "replayed model",
        "sources:",
        "exit blocked: failing: tests",
        "demo-local (replayed)",
        "demo-remote (replayed)",
        "+    share, rest = divmod(total, people)",
        "verified: checks_passed after 2 iteration(s), cost $0 [replayed model]",
    ):
        assert said in shown, said
    _, _, events = shown.partition("9 What all layers said")
    for layer, event in (
        ("ralph", "task_started"),
        ("aidb", "context_retrieved"),
        ("coordinator", "query_routed"),
        ("coordinator", "model_called"),
        ("ralph", "exit_blocked"),
        ("ralph", "task_completed"),
    ):
        assert re.search(rf"{layer} +{event}", events), event
    assert left_behind(temporary) == []


def test_the_demo_ends_with_1_when_its_task_is_not_verified(
    temporary: Path, tmp_path: Path
) -> None:
    whole = json.loads(data_file("cassette.json").read_text())
    wrong = [e for e in whole["entries"] if "divmod" not in json.dumps(e["response"])]
    assert len(wrong) == len(whole["entries"]) - 1
    cassette = tmp_path / "without-the-fix.json"
    cassette.write_text(json.dumps(whole | {"entries": wrong}))
    process = demo(
        temporary,
        NESTOR_REPLAY_CASSETTE=str(cassette),
        NESTOR_LOCAL_MODEL="demo-local",
        NESTOR_REMOTE_MODEL="demo-remote",
    )
    shown, _ = process.communicate(timeout=170)
    assert process.returncode == 1, shown
    assert "exhausted: repeated_error" in shown
    assert left_behind(temporary) == []


def test_a_demo_that_is_stopped_takes_its_stack_and_its_folder_with_it(
    temporary: Path,
) -> None:
    process = demo(temporary)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("task: running"):
            break
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert left_behind(temporary) == []
