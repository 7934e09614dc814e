"""The command line as a process: what it sends, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faces.fake_stack import (
    KEY,
    Cli,
    FakeStack,
    Reply,
    events,
    refusal,
    task,
)

from nestor.cli.main import EXIT_CODES, exit_code
from nestor.errors import Forbidden, NotFound, UpstreamError

# Start-up.


def test_the_version_needs_no_settings_no_http_server_and_no_driver(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\nsys.argv = ['nestor', '--version']\n"
        "from nestor.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'aiohttp', 'litestar', 'pydantic', 'sqlalchemy', 'rich', 'dbos',\n"
        "         'msgspec', 'uvicorn', 'yaml', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    env = {"NESTOR_TYPO": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    assert re.fullmatch(r"nestor \d+\.\d+\.\d+\n\[\]\n", done.stdout)


@pytest.mark.parametrize(
    "command",
    [
        *(
            "up",
            "submit",
            "status",
            "watch",
            "results",
            "diff",
            "cancel",
            "ask",
            "approve",
        ),
        *("doctor", "demo", "kb", "kb add", "kb search", "kb list", "kb rm"),
        *(
            "kb verify",
            "kb reindex",
            "mcp",
            "key",
            "key create",
            "key list",
            "key revoke",
        ),
    ],
)
def test_every_help_page_ends_with_an_example(cli: Cli, command: str) -> None:
    done = cli(*command.split(), "--help")
    assert done.returncode == 0
    assert re.search(rf"Examples?:(.|\n)*nestor {command}", done.stdout), done.stdout


# Errors and exit codes.


def test_the_nearest_class_in_the_table_decides_the_exit_code() -> None:
    assert exit_code(NotFound("x")) == 2
    assert exit_code(Forbidden("x")) == 4
    assert exit_code(UpstreamError("x")) == 3
    assert set(EXIT_CODES.values()) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((400, 2), (401, 4), (402, 4), (403, 4), (404, 2), (409, 1)),
        *((413, 2), (429, 4), (500, 1), (502, 3), (503, 3)),
    ],
)
def test_a_refusal_of_the_stack_becomes_one_line_and_its_exit_code(
    stack: FakeStack, cli: Cli, status: int, code: int
) -> None:
    stack.says("GET", "/status", refusal(status, "because of this"))
    done = cli("status")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: because of this")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_fields_are_named_below_the_error(stack: FakeStack, cli: Cli) -> None:
    wrong = ("checks.0.run", "must not be empty"), ("budgets", "unknown field")
    stack.says("POST", "/submit", refusal(400, "2 fields are wrong", *wrong))
    done = cli("submit", "x")
    assert done.returncode == 2
    assert done.stderr == (
        "error: 2 fields are wrong\n"
        "  checks.0.run: must not be empty\n  budgets: unknown field\n"
    )


def test_no_stack_is_exit_3_and_says_how_to_start_one(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "none", tmp_path, {"NESTOR_RALPH_PORT": "1"})
    done = cli("status")
    assert done.returncode == 3
    assert "127.0.0.1:1 (ralph)" in done.stderr
    assert "nestor up" in done.stderr
    nowhere = Cli(tmp_path / "none", tmp_path, {"NESTOR_RALPH_PORT": "0"})("status")
    assert nowhere.returncode == 3
    assert "nestor up" in nowhere.stderr


def test_another_program_on_the_port_is_not_taken_for_nestor(
    stack: FakeStack, cli: Cli
) -> None:
    stack.says("GET", "/status", Reply(404, "<h1>Not here</h1>", "text/html"))
    done = cli("status")
    assert done.returncode == 3
    assert "another program" in done.stderr


def test_a_misspelt_setting_is_exit_2_and_named(cli: Cli) -> None:
    cli.extra["NESTOR_RALPH_PROT"] = "1"
    done = cli("status")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown setting: NESTOR_RALPH_PROT")


def test_a_run_file_of_a_dead_process_is_not_believed(
    stack: FakeStack, cli: Cli
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    run = {"pid": dead.pid, "ports": {"ralph": stack.port}}
    (cli.home / "run.json").write_text(json.dumps(run))
    cli.extra["NESTOR_RALPH_PORT"] = "1"
    assert cli("status").returncode == 3
    assert stack.asked == []


def test_ctrl_c_is_exit_130_without_a_trace(stack: FakeStack, cli: Cli) -> None:
    stack.says("GET", "/tasks/t1/events", Reply(200, "", "text/event-stream"))
    stack.says("GET", "/tasks/t1/events", events(("task", task("running"))))
    process = subprocess.Popen(
        [sys.executable, "-m", "nestor.cli", "watch", "t1"],
        cwd=cli.cwd,
        env=cli.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(  # noqa: PLW1509 - one call, no lock
            signal.SIGINT, signal.SIG_DFL
        ),
    )
    assert process.stdout is not None
    assert "running" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert stderr == (
        "task t1 goes on — see it again with: nestor watch t1,"
        " end it with: nestor cancel t1\n"
    )


# Submit.


def test_submit_sends_what_the_options_say(stack: FakeStack, cli: Cli) -> None:
    reply = {"task_id": "t1", "status": "queued", "position": 1, "url": "/tasks/t1"}
    stack.says("POST", "/submit", Reply(202, reply))
    options = "--repo . --check a --check b --backend command --command go --setup s"
    more = "--max-iterations 2 --budget-usd 0.50 --priority P1 --id t1 --guard-only"
    done = cli("submit", "fix it", *options.split(), *more.split(), "--include-dirty")
    assert done.returncode == 0, done.stderr
    assert "nestor watch t1" in done.stdout
    (asked,) = stack.asked
    assert asked["key"] == f"Bearer {KEY}"
    assert asked["body"] == {
        "task": "fix it",
        "task_id": "t1",
        "backend": "command",
        "command": "go",
        "priority": "P1",
        "max_iterations": 2,
        "setup": ["s"],
        "checks": [{"run": "a"}, {"run": "b"}],
        "guard_only": True,
        "include_dirty": True,
        "workspace": {"repo": str(cli.cwd.resolve())},
        "budget": {"usd": "0.50"},
    }


def test_a_task_file_is_sent_whole_with_its_repository_made_absolute(
    stack: FakeStack, cli: Cli
) -> None:
    stack.says("POST", "/submit", Reply(202, {"task_id": "a", "status": "queued"}))
    folder = cli.cwd / "tasks"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        "task_id: a\ntask: go\nunheard_of: 1\nworkspace: {repo: ../code}\n"
    )
    assert cli("submit", "--file", "tasks/a.yaml", "--id", "b").returncode == 0
    assert stack.asked[0]["body"] == {
        "task_id": "b",
        "task": "go",
        "unheard_of": 1,  # refused by the stack, which knows the fields
        "workspace": {"repo": str(cli.cwd / "code")},
    }


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 8)}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.yaml", "task: a\ntask: b\n", "task: given twice"),
        ("t.json", '{"task": "a", "task": "b"}', "task: given twice"),
        ("t.yaml", "task: !!python/object/apply:os.system ['touch pwned']", "python"),
        ("t.yaml", "- a\n", "a mapping is needed"),
        ("t.yaml", "task: [", "t.yaml"),
        ("t.json", "{", "t.json"),
        ("t.json", '{"max_iterations": NaN, "task": "a"}', "JSON"),
        ("t.json", '{"a":' + "[" * 200_000, "deep"),
        ("t.yaml", BOMB, "larger than 1 MiB"),
        ("t.yaml", "task: " + "x" * 1_100_000, "larger than 1 MiB"),
    ],
)
def test_a_task_file_that_is_not_one_is_refused_before_anything_is_sent(
    stack: FakeStack, cli: Cli, name: str, content: str, said: str
) -> None:
    (cli.cwd / name).write_text(content)
    done = cli("submit", "--file", name)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert stack.asked == []
    assert not (cli.cwd / "pwned").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["submit"],
        ["submit", "x", "--budget-usd", "much"],
        ["submit", "x", "--budget-usd", "-1"],
        ["submit", "x", "--max-iterations", "0"],
        ["submit", "--file", "absent.yaml"],
        ["watch", ".."],
        ["kb", "add", "absent"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_exit_2_and_reaches_nobody(
    stack: FakeStack, cli: Cli, args: list[str]
) -> None:
    done = cli(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert stack.asked == []


@pytest.mark.parametrize("status", ["verified", "unverified", "judged", "exhausted"])
def test_waiting_ends_with_0_for_verified_alone(
    stack: FakeStack, cli: Cli, status: str
) -> None:
    stack.says("POST", "/submit", Reply(202, {"task_id": "t1", "status": "queued"}))
    stack.says("GET", "/tasks/t1/events", events(("end", task(status))))
    stack.says("GET", "/tasks/t1", Reply(200, task(status)))
    done = cli("submit", "x", "--wait", "--json")
    assert done.returncode == (0 if status == "verified" else 1)
    assert json.loads(done.stdout)["status"] == status
