"""The command line as a process: what it says when something is wrong, empty or narrow."""

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.faces.fake_stack import (
    Cli,
    FakeStack,
    Reply,
    events,
    refusal,
    task,
)


def path_without(tmp_path: Path, *missing: str) -> str:
    """Make a PATH with what git and bubblewrap stand beside, but not those."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in {"git", "bwrap", "slirp4netns", "sh"} - set(missing):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


# What is missing on the machine.


def test_a_demo_without_git_says_to_install_it(cli: Cli, tmp_path: Path) -> None:
    cli.extra["PATH"] = path_without(tmp_path, "git")
    done = cli("demo")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "install git" in done.stderr


def test_a_folder_that_takes_no_files_is_not_ok_for_doctor(cli: Cli) -> None:
    cli.extra["NESTOR_HOME"] = "/proc/x"
    done = cli("doctor", "--json")
    found = {f["what"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert found["data folder"]["state"] == "fail"
    assert "NESTOR_HOME" in found["data folder"]["remedy"]


def test_doctor_says_when_landlock_isolates_and_why(cli: Cli, tmp_path: Path) -> None:
    cli.extra["PATH"] = path_without(tmp_path, "bwrap")
    cli.extra["NESTOR_SANDBOX"] = "landlock"
    done = cli("doctor", "--json")
    (found,) = (
        f for f in json.loads(done.stdout)["findings"] if f["what"] == "sandbox"
    )
    assert found["state"] == "warn"
    assert "Landlock" in found["detail"]
    assert "bubblewrap is not installed" in found["detail"]
    assert "install bubblewrap" in found["remedy"]


@pytest.mark.parametrize(
    ("missing", "settings", "said"),
    [
        (
            ("bwrap",),
            {"NESTOR_SANDBOX": "bubblewrap"},
            "tasks will fail: sandbox: bubblewrap is not installed",
        ),
        (("git",), {}, "tasks will fail: git: does not run; install git"),
        ((), {"NESTOR_SANDBOX": "none"}, "agents run WITHOUT isolation"),
    ],
)
def test_up_warns_of_what_is_missing_and_says_that_it_stops(
    tmp_path: Path, missing: tuple[str, ...], settings: dict[str, str], said: str
) -> None:
    layers = ("DASHBOARD", "RALPH", "AIDB", "COORDINATOR", "LEARNING")
    ports = {f"NESTOR_{layer}_PORT": "0" for layer in layers}
    path = {"PATH": path_without(tmp_path, *missing)} if missing else {}
    cli = Cli(tmp_path / "home", tmp_path, ports | path | settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "nestor.cli", "up"],
        cwd=tmp_path,
        env=cli.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    shown = ""
    late = threading.Timer(20, process.terminate)
    late.start()
    with process:
        for line in process.stdout:
            shown += line
            if "warning" in line:
                process.terminate()
    late.cancel()
    assert process.returncode == 0
    assert re.search(rf"ready — .*\nwarning: {re.escape(said)}", shown), shown
    assert shown.endswith("stopping: running tasks go on at the next start\n")


# What was typed.


@pytest.mark.parametrize(
    ("text", "field", "message", "said"),
    [
        (
            "task: x\nchekcs:\n- run: a\n",
            "chekcs",
            "unknown field",
            "t.yaml, line 2: chekcs: unknown field; did you mean checks?",
        ),
        (
            "task: x\nchecks:\n- name: a\n  rnu: a\n",
            "checks.0.rnu",
            "unknown field",
            "t.yaml, line 4: checks.0.rnu: unknown field; did you mean run?",
        ),
        ("task: x\n", "priority", "no", "error: priority: no"),
    ],
)
def test_a_refused_field_of_a_file_is_shown_where_it_stands(
    stack: FakeStack, cli: Cli, text: str, field: str, message: str, said: str
) -> None:
    (cli.cwd / "t.yaml").write_text(text)
    wrong = refusal(400, f"{field}: {message}", (field, message))
    stack.says("POST", "/submit", wrong)
    done = cli("submit", "--file", "t.yaml")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1, "said once"


def test_broken_yaml_is_shown_with_its_line(cli: Cli) -> None:
    (cli.cwd / "t.yaml").write_text("task: x\nchecks: [\n")
    assert "t.yaml, line 3: " in cli("submit", "--file", "t.yaml").stderr


def test_a_dirty_repository_names_the_option(stack: FakeStack, cli: Cli) -> None:
    why = "has uncommitted changes (a); commit them or set include_dirty: true"
    wrong = refusal(400, f"workspace.repo: {why}", ("workspace.repo", why))
    stack.says("POST", "/submit", wrong)
    said = cli("submit", "x", "--repo", ".").stderr
    assert "or use --include-dirty" in said
    assert "include_dirty:" not in said


def test_wrong_choices_and_absent_things_are_sentences(
    stack: FakeStack, cli: Cli
) -> None:
    stack.says("DELETE", "/documents/nosuch", refusal(404, "document nosuch"))
    assert "no document has the id nosuch" in cli("kb", "rm", "nosuch").stderr
    done = cli("ask", "x", "--mode", "wrong")
    assert (done.returncode, stack.asked[1:]) == (2, [])
    assert "auto, local, remote" in done.stderr
    stack.says("GET", "/status", Reply(200, {"tasks": [], "counts": {}}))
    stack.says("GET", "/results", Reply(200, {"results": []}))
    for command in ("status", "results"):
        shown = cli(command, "--status", "running").stdout
        assert shown == "no task is running\n"
    assert "no tasks yet" in cli("status").stdout


def test_every_option_of_submit_says_what_it_is(cli: Cli) -> None:
    cli.extra["COLUMNS"] = "200"
    shown = cli("submit", "--help").stdout
    rows = [row for row in shown.splitlines() if re.search(r"--[a-z]", row)]
    for name in ("--max-iterations", "--budget-tokens", "--budget-seconds"):
        (row,) = [row for row in rows if name in row]
        assert "Most " in row or "Longest " in row


def test_a_link_given_to_kb_add_is_refused(stack: FakeStack, cli: Cli) -> None:
    (cli.cwd / "link.md").symlink_to("/etc/passwd")
    done = cli("kb", "add", "link.md")
    assert (done.returncode, stack.asked) == (2, [])
    assert "is a link" in done.stderr


def test_submit_sends_the_phase_and_key_list_asks_for_all_when_told(
    stack: FakeStack, cli: Cli
) -> None:
    stack.says("POST", "/submit", Reply(202, {"task_id": "a", "status": "queued"}))
    stack.says("GET", "/keys", Reply(200, {"keys": []}))
    cli("submit", "x", "--phase", "3")
    cli("key", "list")
    cli("key", "list", "--all")
    assert stack.asked[0]["body"]["phase"] == 3
    assert [a["path"] for a in stack.asked[1:]] == ["/keys", "/keys?all=true"]


# Where a task stands.


def test_a_task_that_is_being_cancelled_says_so(stack: FakeStack, cli: Cli) -> None:
    going = task("running", cancel_requested=True, reason=None)
    stack.says("POST", "/tasks/t1/cancel", Reply(202, going))
    stack.says("GET", "/tasks/t1", Reply(200, going))
    stack.says("GET", "/status", Reply(200, {"tasks": [going], "counts": {}}))
    assert cli("cancel", "t1").stdout.startswith("task t1: cancelling")
    assert cli("status", "t1").stdout.startswith("task t1: cancelling")
    assert "cancelling" in cli("status").stdout


@pytest.mark.parametrize(
    ("base", "done", "said"),
    [
        (None, 0, "0 of 3, preparing the environment"),
        ("abc", 0, "1 of 3, running"),
        ("abc", 3, "3 of 3, running"),
    ],
)
def test_the_iteration_that_runs_is_counted(
    stack: FakeStack, cli: Cli, base: str | None, done: int, said: str
) -> None:
    shown = task("running", base=base, iteration=done)
    stack.says("GET", "/tasks/t1", Reply(200, shown))
    assert f"iteration: {said}\n" in cli("status", "t1").stdout


def test_a_failed_setup_shows_the_command_the_useful_lines_and_a_remedy(
    stack: FakeStack, cli: Cli
) -> None:
    noise = "\n".join(f"line {n}" for n in range(40))
    detail = (
        "setup.0: 'pip install nosuch' failed (exit 1): alf a line\n"
        f"ERROR: no matching distribution\n{noise}"
    )
    failed = task("failed", reason="workspace_error", detail=detail)
    stack.says("GET", "/tasks/t1", Reply(200, failed))
    shown = cli("status", "t1").stdout
    assert "  setup.0: 'pip install nosuch' failed (exit 1)\n" in shown
    assert "alf a line" not in shown
    assert "| ERROR: no matching distribution\n" in shown
    assert "| line 39\n" in shown
    assert "| line 20\n" not in shown
    assert "mend that command" in shown
    assert "under another --id" in shown


def test_what_went_on_is_shown_in_its_order_and_a_failed_agent_with_its_output(
    stack: FakeStack, cli: Cli
) -> None:
    verdict = {"check": "tests", "passed": False, "exit_code": 1, "duration_s": 0.5}
    one = {
        "n": 1,
        "step": "decide",
        "outcome": "usage_error",
        "context_items": [{"source": "docs/a.md#b"}],
        "output_tail": "exit code 127\nnosuchcmd: not found",
        "diff_stat": {"files": 2, "insertions": 5, "deletions": 1},
        "verdicts": [verdict],
    }
    stream = events(
        ("task", {"status": "running", "step": "prepare", "n": 1}),
        ("iteration", {"n": 1, "step": "agent"}),
        ("iteration", {"n": 1, "step": "verify"}),
        ("iteration", one),
        ("end", {"status": "exhausted", "reason": "repeated_error"}),
    )
    stack.says("GET", "/tasks/t1/events", stream)
    stack.says("GET", "/tasks/t1", Reply(200, task("exhausted")))
    shown = cli("watch", "t1").stdout
    wanted = (
        "… preparing the environment",
        "… iteration 1: the agent is working",
        "… iteration 1: checking",
        "\niteration 1\n",
        "context: docs/a.md#b",
        "agent: usage_error, in total 2 file(s) +5 -1",
        "| nosuchcmd: not found",
        "check tests after: failed",
    )
    places = [shown.index(said) for said in wanted]
    assert places == sorted(places), shown


# A narrow terminal.


def test_ids_stay_whole_and_lines_keep_their_indent_at_80_columns(
    stack: FakeStack, cli: Cli
) -> None:
    name = "a-long-name-of-a-task-that-somebody-gave-to-it-himself"
    row = task("running", task_id=name, backend="command", name="word " * 30)
    stack.says("GET", "/status", Reply(200, {"tasks": [row], "counts": {}}))
    long = task("failed", detail="somebody said " * 12, base=None)
    stack.says("GET", "/tasks/t1", Reply(200, long))
    for columns in (80, 160):
        _, shown = cli.on_a_terminal("status", columns=columns)
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown).splitlines()
        assert any(name in line for line in lines), shown
        assert max(map(len, lines)) <= columns
    _, shown = cli.on_a_terminal("status", "t1", columns=80)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown).splitlines()
    told = [line for line in plain if "somebody said" in line]
    assert len(told) > 1
    assert all(line.startswith(("  somebody", "  said")) for line in told)


def test_an_output_that_takes_no_more_is_one_line_and_no_trace() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nestor.cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["error: No space left on device"]
