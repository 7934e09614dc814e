"""``nestor status TASK``: what was sealed, every verdict run by run, a judge apart."""

from tests.faces.fake_stack import ESCAPES, HOSTILE, Cli, FakeStack, Reply

RUNS = [
    {"passed": passed, "exit_code": int(not passed), "duration_s": 0.5, "note": ""}
    for passed in (True, False, True)
]
BASE = {"check": "tests", "phase": "base", "passed": False, "exit_code": 1}
FLAKY = {
    "check": "net",
    "phase": "after",
    "passed": True,
    "exit_code": 0,
    "duration_s": 0.5,
    "flaky": True,
    "runs": 3,
    "each_run": RUNS,
    "note": "flaky: it passed 2 of 3 runs on the same tree",
}
JUDGED = [
    {
        "criterion": f"it is plain {HOSTILE}",
        "met": True,
        "why": "seen",
        "evidence": [{"path": "a.py", "text": f"plain = {HOSTILE}"}],
    },
    {"criterion": "it is fast", "met": None, "why": "no answer", "evidence": []},
]


def test_every_run_of_every_check_is_shown_and_a_judge_is_no_check(
    stack: FakeStack, cli: Cli
) -> None:
    shown = {"task_id": "t1", "status": "verified", "checks_digest": "f" * 64}
    recorded = {
        "base": [{**BASE, "duration_s": 1.0, "tests": 2}],
        "iterations": [
            {"n": 1, "verdicts": [FLAKY]},
            {"n": 2, "verdicts": [], "judgements": JUDGED, "judge_model": "m"},
        ],
        "model_calls": [],
    }
    stack.says("GET", "/tasks/t1", Reply(200, shown))
    stack.says("GET", "/tasks/t1/iterations", Reply(200, recorded))

    done = cli("status", "t1")

    lines = [line.strip() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert f"sealed: {'f' * 64}" in lines
    at = lines.index("checks on the base")
    assert lines[at + 1].startswith("tests: failed (exit 1, ")
    assert lines[at + 1].endswith("2 tests)")
    net = lines.index("iteration 1") + 1
    assert lines[net].startswith("net: passed, flaky (exit 0, ")
    assert lines[net].endswith("by its exit code alone)")
    words = [line.split(" (")[0] for line in lines[net + 2 : net + 5]]
    assert words == ["run 1: passed", "run 2: failed", "run 3: passed"]
    judge = lines.index("iteration 2") + 1
    assert lines[judge].startswith("judge m: met: it is plain")
    assert any(line.startswith("judge m: not judged: it is fast") for line in lines)
    assert not ESCAPES.search(done.stdout.replace("\n", ""))
