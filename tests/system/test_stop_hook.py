"""``nestor hook stop`` as Claude Code calls it: JSON in, JSON out, and exit codes."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.system.workbench import BUGGY, FIXED, TESTS, git, repository

pytestmark = pytest.mark.timeout(180)
CHECK = "python3 -m unittest -v test_calc"
CLAUDE = ROOT / ".cache" / "agents" / "claude" / "bin" / "claude"
"""Where ``make setup`` installs it."""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


def environment(tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
    return clean | {"NESTOR_HOME": str(tmp_path / "home")}


def hook(
    tmp_path: Path, *options: str, told: Any = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run it as Claude Code does."""
    given = told if isinstance(told, str) else json.dumps(told)
    return subprocess.run(
        [sys.executable, "-m", "nestor.cli", "hook", "stop", *options],
        input=given,
        cwd=tmp_path,
        env=environment(tmp_path) | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def asked(repo: Path, *, active: bool = True, session: str = "s") -> dict[str, Any]:
    return {
        "session_id": session,
        "transcript_path": "/nowhere/transcript.jsonl",
        "cwd": str(repo),
        "hook_event_name": "Stop",
        "stop_hook_active": active,
    }


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return found


def test_a_session_is_held_until_the_checks_pass_on_what_it_left(
    repo: Path, tmp_path: Path
) -> None:
    first = said(hook(tmp_path, "--check", CHECK, told=asked(repo, active=False)))
    assert first["decision"] == "block"
    assert CHECK in first["reason"]
    assert "-4 != 4" in first["reason"] or "0 != 4" in first["reason"]
    # Tests made to pass do not count, and it is told so.
    (repo / "test_calc.py").write_text("import unittest\n")
    second = said(hook(tmp_path, "--check", CHECK, told=asked(repo)))
    assert second["decision"] == "block"
    assert "test_calc.py" in second["reason"]
    # The third time the same fails it is let go, and the person is told.
    third = said(hook(tmp_path, "--check", CHECK, told=asked(repo)))
    assert "decision" not in third
    assert "checks still fail" in third["systemMessage"]
    # A person spoke: it is held anew.
    fresh = said(hook(tmp_path, "--check", CHECK, told=asked(repo, active=False)))
    assert fresh["decision"] == "block"
    # Only the tree counts, committed or not; nothing in the repository was changed.
    (repo / "calc.py").write_text(FIXED)
    done = hook(tmp_path, "--check", CHECK, told=asked(repo))
    assert (done.returncode, done.stdout) == (0, "")
    assert git(repo, "status", "--short").split() == [
        "M",
        "calc.py",
        "M",
        "test_calc.py",
    ]
    assert not list((tmp_path / "home" / "hook" / "tasks").iterdir())


def test_a_session_is_held_so_often_and_no_more(repo: Path, tmp_path: Path) -> None:
    for number, expected in enumerate(["block", None, None]):
        (repo / "calc.py").write_text(f"{BUGGY}\nassert {number} > 9, 'n{number}'\n")
        options = ("--check", CHECK, "--max-blocks", "1")
        answer = said(hook(tmp_path, *options, told=asked(repo, active=False)))
        assert answer.get("decision") == expected
        assert ("systemMessage" in answer) is (expected is None)
    other = asked(repo, session="another")
    assert said(hook(tmp_path, "--check", CHECK, told=other))["decision"] == "block"


def test_what_is_committed_says_what_is_checked(repo: Path, tmp_path: Path) -> None:
    # A project without checks holds nobody, and the person is told.
    bare = said(hook(tmp_path, told=asked(repo)))
    assert list(bare) == ["systemMessage"]
    assert "not checked: no checks are given" in bare["systemMessage"]
    task = repo / ".nestor" / "task.json"
    task.parent.mkdir()
    task.write_text(json.dumps({"checks": [{"name": "tests", "run": CHECK}]}))
    answer = said(hook(tmp_path, told=asked(repo)))
    assert "not in the commit" in answer["systemMessage"]
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "checks")
    task.write_text(json.dumps({"checks": [{"name": "tests", "run": "true"}]}))
    answer = said(hook(tmp_path, told=asked(repo)))
    assert (answer["decision"], "check tests" in answer["reason"]) == ("block", True)


def test_whatever_goes_wrong_lets_the_session_go(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    for place, options, env, why in (
        (tmp_path / "bare", [], {}, "in no git repository"),
        (empty, [], {}, "no commit yet"),
        (repo, ["--limit-s", "1", "--check", "sleep 60"], {}, "longer than 1 s"),
        (repo, ["--check", "no-such-program"], {}, "cannot start"),
        (repo, ["--base", "nowhere"], {}, "names no commit"),
        (repo, [], {"NESTOR_HOM": "x"}, "NESTOR_HOM"),
    ):
        given = ("--check", CHECK, *options)
        answer = said(hook(tmp_path, *given, told=asked(place), **env))
        assert "decision" not in answer, (options, answer)
        assert why in answer["systemMessage"], (options, answer)


def test_holds_that_cannot_be_counted_are_once_a_turn(
    repo: Path, tmp_path: Path
) -> None:
    (tmp_path / "home" / "hook").mkdir(parents=True)
    (tmp_path / "home" / "hook" / "sessions").write_text("in the way")
    held = said(hook(tmp_path, "--check", CHECK, told=asked(repo, active=False)))
    assert held["decision"] == "block"
    let_go = said(hook(tmp_path, "--check", CHECK, told=asked(repo, active=True)))
    assert "cannot be counted" in let_go["systemMessage"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no json"),
        ([], "[1]"),
        ([], "{}"),
        ([], ""),
        (["--chek", "x"], "{}"),
        (["--max-blocks", "no"], "{}"),
        (["--check"], "{}"),
    ],
)
def test_a_mistake_is_never_exit_2_which_would_hold_the_session(
    tmp_path: Path, options: list[str], told: str
) -> None:
    done = hook(tmp_path, *options, told=told)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr


def test_another_hook_than_stop_is_answered_with_nothing(
    repo: Path, tmp_path: Path
) -> None:
    other = asked(repo) | {"hook_event_name": "PreToolUse"}
    done = hook(tmp_path, "--check", CHECK, told=other)
    assert (done.returncode, done.stdout) == (1, "")
    assert "called as PreToolUse" in done.stderr


def test_a_hook_that_would_check_nothing_is_not_installed(
    repo: Path, tmp_path: Path
) -> None:
    def install(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nestor.cli", "hook", "install", *options],
            cwd=repo,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )

    settings = repo / ".claude" / "settings.json"
    assert install("--check", CHECK).returncode == 0
    working = settings.read_text()
    for options, why in (
        ([], "no checks are given"),
        (["--setup", "true"], "no checks are given"),
        (["--task", "nosuch.yaml"], "nosuch.yaml does not exist"),
    ):
        done = install(*options)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr
        assert settings.read_text() == working
    task = repo / ".nestor" / "task.json"
    task.parent.mkdir()
    task.write_text(json.dumps({"checks": [{"name": "tests", "run": CHECK}]}))
    assert install().returncode == 0
    assert "--check" not in settings.read_text()


@pytest.mark.heavy
async def test_claude_code_itself_is_held_and_goes_on(
    repo: Path, tmp_path: Path
) -> None:
    install = [sys.executable, "-m", "nestor.cli", "hook", "install"]
    subprocess.run(
        [*install, "--project", str(repo), "--check", CHECK],
        env=environment(tmp_path),
        check=True,
        capture_output=True,
    )
    write = {"file_path": str(repo / "calc.py"), "content": FIXED}
    read = {"file_path": str(repo / "calc.py")}
    rules = [
        Rule(when="0 != 4", tool_calls=[{"name": "Read", "arguments": read}], times=1),
        Rule(
            when="return a - b",
            tool_calls=[{"name": "Write", "arguments": write}],
            times=1,
        ),
        Rule(reply="All done."),
    ]
    async with ScriptedModel(rules) as model:
        env = environment(tmp_path) | {
            "HOME": str(tmp_path),
            "ANTHROPIC_BASE_URL": model.anthropic_url,
            "ANTHROPIC_API_KEY": "a-key-of-the-test",
            "ANTHROPIC_SMALL_FAST_MODEL": "scripted-model",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",
        }
        argv = [str(CLAUDE), "-p", "Make the tests pass.", "--output-format", "json"]
        argv += ["--model", "scripted-model", "--setting-sources", "project"]
        process = await asyncio.create_subprocess_exec(
            *argv,
            "--permission-mode",
            "bypassPermissions",
            cwd=repo,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(100):
            out, _ = await process.communicate()
        texts = [json.dumps(chat.body) for chat in model.chats]

    assert process.returncode == 0, out.decode()
    assert (repo / "calc.py").read_text() == FIXED, out.decode()
    assert (repo / "test_calc.py").read_text() == TESTS
    # The first "All done." was not taken: the model was told what fails.
    assert sum("these checks do not pass" in text for text in texts) >= 1
    (state,) = (tmp_path / "home" / "hook" / "sessions").glob("*.json")
    assert json.loads(state.read_text())["blocks"] == 1
