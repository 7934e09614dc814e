"""``nestor logs``: all that is kept of what was printed, with a mark where some is not."""

import json
from typing import Any

from tests.faces.fake_stack import ESCAPES, HOSTILE, Cli, FakeStack, Reply, events, task

from nestor.cli import logs
from nestor.ralph import acting, verdicts

FAILED = {"check": "tests", "phase": "after", "passed": False, "exit_code": 1}
PASSED = {**FAILED, "check": "lint", "passed": True, "output_tail": "unseen"}
COUNTED = "".join(f"{n}\n" for n in range(1, 61))
FULL = {**FAILED, "output_tail": "a" * logs.KEPT_CHARS}
RECORDED: dict[str, Any] = {
    "base": [{**FAILED, "phase": "base", "output_tail": "not yet\n"}],
    "iterations": [
        {
            "n": 1,
            "outcome": "changed",
            "output_tail": "60",
            "verdicts": [
                PASSED,
                {**FAILED, "output_tail": f"assert 1 == 2\n{HOSTILE}\n"},
            ],
        },
        {"n": 2, "outcome": "agent_error", "output_tail": "x" * 30, "verdicts": [FULL]},
    ],
    "model_calls": [],
}
TOLD = events(
    ("iteration", {"n": 1, "step": "agent"}),
    ("output", {"n": 1, "text": "of a run that was killed\n", "left_out_bytes": 0}),
    ("iteration", {"n": 1, "step": "agent"}),
    ("output", {"n": 1, "text": COUNTED[:20], "left_out_bytes": 0}),
    ("output", {"n": 1, "text": COUNTED[20:], "left_out_bytes": 0}),
    ("output", {"n": 1, "text": f"{HOSTILE}\n", "left_out_bytes": 77}),
    ("output", {"n": 2, "text": "short\n", "left_out_bytes": 9}),
    ("output", {"n": 3, "text": "goes on\n", "left_out_bytes": 0}),
    ("end", {"status": "exhausted"}),
)


def ready(stack: FakeStack, status: str = "exhausted") -> None:
    stack.says("GET", "/tasks/t1", Reply(200, task(status)))
    stack.says("GET", "/tasks/t1/iterations", Reply(200, RECORDED))
    stack.says("GET", "/tasks/t1/events", TOLD)


def test_every_line_is_shown_and_what_is_not_kept_is_marked(
    stack: FakeStack, cli: Cli
) -> None:
    ready(stack)

    done = cli("logs", "t1")

    lines = [line.strip() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    at = lines.index("iteration 1: changed")
    assert lines[at + 2 : at + 62] == [f"| {n}" for n in range(1, 61)]
    assert lines[at + 62] == "… 77 bytes are not kept"
    assert "owned" in lines[at + 63]
    assert lines[at + 64 : at + 66] == [
        "check tests failed (exit 1)",
        "| assert 1 == 2",
    ]
    second = lines.index("iteration 2: agent_error")
    cut = "… what came before is not kept"
    assert lines[second + 2 : second + 4] == [cut, f"| {'x' * 30}"]
    assert lines[second + 5 : second + 7] == [cut, f"| {'a' * logs.KEPT_CHARS}"]
    assert lines[-3:] == ["iteration 3", "the agent printed", "| goes on"]
    assert "unseen" not in done.stdout
    assert "killed" not in done.stdout
    assert "not yet" not in done.stdout
    assert not ESCAPES.search(done.stdout.replace("\n", ""))


def test_one_iteration_or_the_base_alone_also_as_json(
    stack: FakeStack, cli: Cli
) -> None:
    ready(stack)
    base = cli("logs", "t1", "--iteration", "0").stdout
    assert base.splitlines() == [
        "on the base",
        "  check tests failed (exit 1)",
        "    | not yet",
    ]
    told = json.loads(cli("logs", "t1", "--iteration", "2", "--json").stdout)
    (second,) = told["iterations"]
    assert (told["task_id"], told["status"]) == ("t1", "exhausted")
    assert second["printed"] == [{"left_out_bytes": None, "text": "x" * 30}]
    (check,) = second["checks"]
    assert (check["check"], check["cut"]) == ("tests", True)
    missing = cli("logs", "t1", "--iteration", "9")
    assert missing.returncode == 2
    assert "has no iteration 9, but 0, 1, 2, 3" in missing.stderr


def test_of_a_task_that_goes_on_it_shows_what_there_is(
    stack: FakeStack, cli: Cli
) -> None:
    ready(stack, "running")
    # The stream ends here without its last event; nobody waits for more.
    told = ("output", {"n": 1, "text": "so far\n", "left_out_bytes": 0})
    stack.says("GET", "/tasks/t1/events", events(told))

    done = cli("logs", "t1")

    assert "    | so far" in done.stdout.splitlines()
    assert "task t1 goes on: nestor watch t1" in done.stdout
    streams = [one for one in stack.asked if one["path"].endswith("/events")]
    assert len(streams) == 1


def test_watch_marks_lines_that_it_leaves_out(stack: FakeStack, cli: Cli) -> None:
    ready(stack)
    counted = ("output", {"n": 1, "text": COUNTED, "left_out_bytes": 0})
    end = ("end", {"status": "exhausted"})
    stack.says("GET", "/tasks/t1/events", events(counted, end))

    rows = [line for line in cli("watch", "t1").stdout.splitlines() if "> " in line]

    mark = "  > … 48 lines before these: nestor logs"
    assert rows == [mark, *(f"  > {n}" for n in range(49, 61))]


def test_what_counts_as_cut_is_what_the_loop_keeps() -> None:
    assert {verdicts._TAIL_CHARS, acting._OUTPUT_CHARS} == {logs.KEPT_CHARS}
