"""The command line as a process: what it shows."""

import json
import re
from pathlib import Path

import pytest
from tests.faces.fake_stack import (
    ESCAPES,
    HOSTILE,
    KEY,
    Cli,
    FakeStack,
    Reply,
    events,
    refusal,
    task,
)

from nestor.cli.inert import inert, one_line

# Watch.


def test_watch_goes_on_after_a_cut_and_shows_each_event_once(
    stack: FakeStack, cli: Cli
) -> None:
    verdict = {
        "check": "tests",
        "phase": "after",
        "passed": False,
        "exit_code": 1,
        "duration_s": 0.5,
        "output_tail": "assert 1 == 2",
        "n": 1,
    }
    one = {
        "n": 1,
        "route": "local",
        "model": "m",
        "guidance": "look",
        "outcome": "changed",
        "claimed_done": True,
        "blocked_reason": "tests fails",
        "context_items": [{"source": "docs/a.md#b"}],
        "verdicts": [verdict],
    }
    stack.says(
        "GET",
        "/tasks/t1/events",
        events(("task", task("running")), ("verdict", verdict), ("iteration", one)),
        events(("iteration", one | {"n": 2}), ("end", task("verified")), first=4),
    )
    stack.says("GET", "/tasks/t1", Reply(200, task("verified", sandboxed=False)))
    done = cli("watch", "t1")
    assert done.returncode == 0, done.stderr
    streams = [a["last"] for a in stack.asked if a["path"].endswith("/events")]
    assert streams == [None, "3"]
    for said in (
        "iteration 1",
        "context: docs/a.md#b",
        "guidance (m, local): look",
        "changed, says it is done",
        "exit blocked: tests fails",
        "| assert 1 == 2",
        "iteration 2",
        "cost unknown [replayed model] [no sandbox]",
    ):
        assert said in done.stdout
    first, _, _ = done.stdout.partition("iteration 2")
    assert first.count("check tests after: failed") == 1


def test_watching_a_task_that_is_not_there_is_exit_2(
    stack: FakeStack, cli: Cli
) -> None:
    assert cli("watch", "t9").returncode == 2


# Every view says what a reader must know before trusting it.


def test_status_results_and_watch_say_the_same_of_a_task(
    stack: FakeStack, cli: Cli
) -> None:
    said = "[replayed model] [no sandbox] [nothing protected] [guard only]"
    bare = task("verified", sandboxed=False, protected=[], guard_only=True)
    default = task("verified", protected=None, replayed=False, guard_only=False)
    for given, expected in ((bare, True), (default, False)):
        stack.says("GET", "/status", Reply(200, {"tasks": [given], "counts": {}}))
        stack.says("GET", "/results", Reply(200, {"results": [given]}))
        stack.says("GET", "/tasks/t1", Reply(200, given))
        stack.says("GET", "/tasks/t1/events", events(("end", {"status": "verified"})))
        for args in (["status"], ["status", "t1"], ["results"], ["watch", "t1"]):
            shown = cli(*args).stdout
            assert (said in shown) is expected, (args, shown)
            assert ("[" in shown) is expected, (args, shown)


@pytest.mark.parametrize("view", ["status", "results"])
def test_a_list_that_leaves_some_out_says_so(
    stack: FakeStack, cli: Cli, view: str
) -> None:
    rows = {"tasks": [task("verified")], "results": [task("verified")]}
    stack.says("GET", f"/{view}", Reply(200, {**rows, "truncated": True}))
    assert "only the newest 3 are shown" in cli(view, "--limit", "3").stdout
    assert stack.asked[-1]["path"] == f"/{view}?limit=3"
    stack.says("GET", f"/{view}", Reply(200, {**rows, "truncated": False}))
    assert "newest" not in cli(view).stdout


# What others wrote is shown, never obeyed (attack B5 on a terminal).


def test_b5_foreign_text_is_inert_in_pipes_and_on_terminals(
    stack: FakeStack, cli: Cli
) -> None:
    rows = {"tasks": [task("running", name=HOSTILE, task_id=HOSTILE)], "counts": {}}
    stack.says("GET", "/status", Reply(200, rows))
    answer = {
        "response": HOSTILE,
        "model": HOSTILE,
        "route": "local",
        "sources": [HOSTILE],
    }
    stack.says("POST", "/route", Reply(200, answer))
    stack.says("GET", "/tasks/t1", refusal(404, HOSTILE, (HOSTILE, HOSTILE)))
    for args in (["status"], ["ask", "q"], ["status", "t1"], ["status", "--json"]):
        done = cli(*args)
        shown = done.stdout + done.stderr
        assert not ESCAPES.search(shown), args
        _, shown = cli.on_a_terminal(*args)
        # Only what rich writes itself: colour, spinner, cursor.
        ours = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown)
        assert not ESCAPES.search(ours), args
        assert "owned" in ours, "the text is shown, spelled out"
        assert "\x1b[2K[red]" not in shown
        assert "[red]" in ours, "rich markup is text"


def test_inert_spells_out_what_could_act_and_keeps_what_people_write() -> None:
    plain = "Grüße, 你好, नमस्ते, می‌خواهم 👩‍👩‍👧 ✓"
    assert inert(plain) == plain
    assert inert("a\x1b[0m\x00\x7f\u202e\ud800\nb") == (
        "a\\x1b[0m\\x00\\x7f\\u202e\\ud800\\nb"
    )
    assert inert("a\r\n\tb", multiline=True) == "a\n\tb"
    assert one_line("a\n b" + "c" * 200, 10) == "a bcccccc…"


# Ask and keys.


def test_ask_says_unknown_cost_and_quotes_when_no_model_is_configured(
    stack: FakeStack, cli: Cli
) -> None:
    answer = {
        "response": "It says so.",
        "route": "extract",
        "model": None,
        "reason": "no model",
        "sources": ["docs/a.md#b"],
        "cost_usd": None,
        "degraded": ["index: full-text search in SQL used"],
    }
    stack.says("POST", "/route", Reply(200, answer))
    done = cli("ask", "why?")
    assert done.returncode == 0
    assert "no model configured: quoted from the knowledge base" in done.stdout
    assert "cost: unknown" in done.stdout
    assert "docs/a.md#b" in done.stdout
    assert "degraded: index" in done.stdout
    quoted = answer | {"response": "It says so. [1]\n\nSources:\n[1] docs/a.md#b"}
    stack.says("POST", "/route", Reply(200, quoted))
    assert cli("ask", "why?").stdout.count("docs/a.md#b") == 1
    nothing = answer | {"response": "Nothing is known.", "sources": []}
    stack.says("POST", "/route", Reply(200, nothing))
    done = cli("ask", "why?")
    assert "quoted" not in done.stdout
    assert "no model configured: nothing to quote" in done.stdout


def test_key_prints_the_admin_key_and_says_when_there_is_none(
    cli: Cli, tmp_path: Path
) -> None:
    assert cli("key").stdout == f"{KEY}\n"
    none = Cli(tmp_path / "elsewhere", tmp_path)("key")
    assert none.returncode == 2
    assert "nestor up" in none.stderr


def test_diff_reaches_git_apply_byte_for_byte(stack: FakeStack, cli: Cli) -> None:
    text = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\x1b[0m\n+b\u202e\n"
    stack.says("GET", "/tasks/t1/diff", Reply(200, {"diff": text}))
    assert cli("diff", "t1").stdout == text


@pytest.mark.parametrize("args", [[], ["--reject", "--note", "no"]])
def test_approve_sends_an_answer_and_never_a_default(
    stack: FakeStack, cli: Cli, args: list[str]
) -> None:
    asks = {"id": "host-1", "what": "May it reach a.b:1?", "kind": "host"}
    asks |= {"subject": "a.b:1"}
    stack.says("GET", "/tasks/t1", Reply(200, task("running", questions=[asks])))
    stack.says("POST", "/tasks/t1/approve", Reply(202, {"status": "queued"}))
    done = cli("approve", "t1", *args)
    assert done.returncode == 0
    assert "asks: May it reach a.b:1?" in done.stdout
    body = {"approved": not args, "note": "no" if args else None}
    # What was shown is what is answered, whatever else is asked meanwhile.
    assert stack.asked[-1]["body"] == {**body, "action": "host-1"}
    assert cli("approve", "t1", "--json", *args).returncode == 0
    assert stack.asked[-1]["body"] == body


# Doctor.


def test_doctor_names_a_taken_port_and_ends_with_1(
    stack: FakeStack, tmp_path: Path
) -> None:
    free = {
        f"NESTOR_{n}_PORT": "0"
        for n in ("DASHBOARD", "AIDB", "COORDINATOR", "LEARNING")
    }
    cli = Cli(
        tmp_path / "home", tmp_path, free | {"NESTOR_RALPH_PORT": str(stack.port)}
    )
    done = cli("doctor", "--json")
    found = {f["what"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert found["port ralph"]["state"] == "fail"
    assert "NESTOR_RALPH_PORT" in found["port ralph"]["remedy"]
    assert found["port aidb"]["state"] == "ok"
    assert found["model"]["state"] == "warn"
    assert not (tmp_path / "home").exists(), "looking makes nothing"


def test_doctor_config_tells_where_each_value_comes_from_and_no_secret(
    cli: Cli,
) -> None:
    (cli.cwd / "nestor.toml").write_text("workers = 3\n")
    cli.extra |= {"NESTOR_MAX_ITERATIONS": "7", "NESTOR_API_KEY": "very-secret-value"}
    done = cli("doctor", "--config", "--json")
    found = {s["setting"]: s for s in json.loads(done.stdout)["settings"]}
    assert found["workers"] == {
        "setting": "workers",
        "value": "3",
        "from": "nestor.toml",
    }
    assert found["max_iterations"]["from"] == "NESTOR_MAX_ITERATIONS"
    assert found["host"]["from"] == "default"
    assert "very-secret-value" not in done.stdout


def test_watch_says_what_was_not_had_and_what_was_left_out(
    stack: FakeStack, cli: Cli
) -> None:
    iteration = {
        "n": 1,
        "step": "decide",
        "outcome": "changed",
        "notes": ["guidance: no model answers"],
        "left_out": ["pipe: not a file"],
    }
    end = {"status": "exhausted", "reason": "max_iterations", "success": False}
    told = events(("iteration", iteration), ("end", end))
    stack.says("GET", "/tasks/t1/events", told)
    stack.says("GET", "/tasks/t1", Reply(200, task("exhausted")))

    shown = cli("watch", "t1").stdout

    assert "not had: guidance: no model answers" in shown
    assert "left out: pipe: not a file" in shown
