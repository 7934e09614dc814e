"""The builtin agent as it runs: a process in a folder, with a scripted model."""

import json
import os
from pathlib import Path

import pytest
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.unit.builtin_rig import call, raw_call, results, run, script

from nestor.backends.agents.builtin import END


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


async def test_it_looks_edits_checks_and_says_done(work: Path) -> None:
    (work / "app.py").write_text("x = 1\n")
    rules = script(
        [call("bash", command="cat app.py")],
        [call("write_file", path="pkg/new.py", content="y = 2\n")],
        [call("bash", command="sed -i s/1/3/ app.py && cat app.py pkg/new.py")],
    )
    async with ScriptedModel(rules) as model:
        ran = await run(work, model, "make x three")
    assert ran.end == {
        "claims_done": True,
        "summary": "finished",
        "turns": 4,
        "error": None,
    }
    assert ran.code == 0
    assert (work / "app.py").read_text() == "x = 3\n"
    assert (work / "pkg" / "new.py").read_text() == "y = 2\n"
    assert results(model) == [
        "exit code: 0\nx = 1\n",
        "wrote 6 bytes",
        "exit code: 0\nx = 3\ny = 2\n",
    ]
    first = model.chats[0].body
    assert first["messages"][1] == {"role": "user", "content": "make x three"}
    assert [tool["function"]["name"] for tool in first["tools"]] == [
        *("bash", "read_file", "search", "edit_file", "write_file", "done")
    ]
    assert (first["model"], first["stream"]) == ("auto", False)


async def test_equal_runs_send_equal_requests(work: Path, tmp_path: Path) -> None:
    turn = [
        call("bash", command="ls; false"),
        call("write_file", path="a", content="b"),
    ]
    sent = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        async with ScriptedModel(script(turn)) as model:
            await run(folder, model)
        sent.append([chat.body for chat in model.chats])
    assert sent[0] == sent[1]
    assert str(tmp_path) not in json.dumps(sent)


async def test_several_calls_of_one_reply_are_all_answered(work: Path) -> None:
    rules = script([call("bash", command="echo 1"), call("bash", command="exit 7")])
    async with ScriptedModel(rules) as model:
        await run(work, model)
    messages = model.chats[-1].body["messages"]
    asked = [one["id"] for one in messages[2]["tool_calls"]]
    assert [m["tool_call_id"] for m in messages[3:]] == asked
    assert results(model) == ["exit code: 0\n1\n", "exit code: 7\n"]


HALVES = (
    'touch "a\ud800/x"',
    "rm \ud800",
    "echo hi > \ud800",
    "cat ~/\udfff",
    "\ud800",
)
"""Half of a character: JSON can say it, and it is no name of anything."""
HALF_PATHS: tuple[tuple[str, dict[str, str]], ...] = (
    ("read_file", {"path": "\ud800"}),
    ("write_file", {"path": "a/\ud800", "content": "x"}),
    ("edit_file", {"path": "\ud800", "old": "a", "new": "b"}),
    ("search", {"pattern": "x", "path": "\ud800"}),
)


async def test_wrong_calls_are_answered_with_an_error_and_the_work_goes_on(
    work: Path,
) -> None:
    rules = script(
        [
            call("browse", url="x"),
            call("bash"),
            call("bash", command="true", extra=1),
            call("bash", command=5),
            raw_call("bash", "{not json"),
            raw_call("bash", "[1]"),
            raw_call("bash", "[" * 20_000),
            call("bash", command="a\0b"),
            *(call("bash", command=line) for line in HALVES),
            *(call(tool, **given) for tool, given in HALF_PATHS),
            raw_call("bash", {"command": "echo as an object"}),
        ]
    )
    async with ScriptedModel(rules) as model:
        ran = await run(work, model)
    assert ran.end["claims_done"]
    answers = results(model)
    assert len(answers) == 9 + len(HALVES) + len(HALF_PATHS)
    assert all(answer.startswith("error: ") for answer in answers[:-1])
    assert all(len(answer) < 300 for answer in answers)
    assert answers[-1] == "exit code: 0\nas an object\n"


async def test_a_command_line_over_the_systems_limit_is_an_error(work: Path) -> None:
    async with ScriptedModel(script([call("bash", command="x" * 3_000_000)])) as model:
        ran = await run(work, model)
    assert ran.end["claims_done"]
    assert results(model) == ["error: the command cannot be started as written"]


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_refusal_of_the_model_ends_it_at_once(work: Path, status: int) -> None:
    async with ScriptedModel([Rule(status=status, reply="budget is spent")]) as model:
        ran = await run(work, model)
    assert (ran.code, ran.end["error"], ran.end["claims_done"]) == (1, "refused", False)
    assert str(status) in ran.end["summary"]
    assert "budget is spent" in ran.end["summary"]
    assert len(model.chats) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_broken_or_busy_model_is_tried_again(work: Path, status: int) -> None:
    rules = [Rule(status=status, times=2), *script()]
    async with ScriptedModel(rules) as model:
        ran = await run(work, model)
    assert ran.end["claims_done"]
    assert len(model.chats) == 3
    async with ScriptedModel([Rule(status=status)]) as model:
        ran = await run(work, model)
    assert (ran.end["error"], ran.end["turns"]) == ("agent_error", 0)
    assert len(model.chats) == 4


@pytest.mark.parametrize(
    "rule",
    [
        Rule(raw="not json"),
        Rule(raw="[]"),
        Rule(raw='{"choices": []}'),
        Rule(raw='{"choices": [{"message": {"tool_calls": [{"id": 1}]}}]}'),
        Rule(raw="[" * 200_000),
        Rule(status=400),
        Rule(status=302, headers={"location": "http://127.0.0.1:9/"}),
    ],
    ids=["text", "list", "no choice", "bad call", "deep", "400", "redirect"],
)
async def test_a_reply_that_is_none_is_an_error_without_another_try(
    work: Path, rule: Rule
) -> None:
    async with ScriptedModel([rule]) as model:
        ran = await run(work, model)
    assert (ran.code, ran.end["error"]) == (1, "agent_error")
    assert len(model.chats) == 1
    assert "Traceback" not in ran.output


async def test_a_server_that_is_not_there_is_an_error(work: Path) -> None:
    async with ScriptedModel() as model:
        pass
    ran = await run(work, model)
    assert ran.end["error"] == "agent_error"
    assert "did not answer" in ran.end["summary"]


async def test_work_without_an_end_is_cut_and_claims_nothing(work: Path) -> None:
    rules = [Rule(tool_calls=[call("bash", command="echo x >> n; wc -l < n")])]
    async with ScriptedModel(rules) as model:
        ran = await run(work, model)
    assert ran.end == {
        "claims_done": False,
        "summary": "stopped after 30 turns",
        "turns": 30,
        "error": None,
    }
    assert len(model.chats) == 30


async def test_a_call_that_gives_the_same_again_is_told_once_and_then_ends_it(
    work: Path,
) -> None:
    circle = [call("bash", command="cat missing"), call("bash", command="ls")]
    async with ScriptedModel([Rule(tool_calls=circle)]) as model:
        ran = await run(work, model)
    assert (ran.end["error"], ran.end["claims_done"]) == ("agent_error", False)
    assert "called 4 times with the same result" in ran.end["summary"]
    told = [n for n, text in enumerate(results(model)) if "third time" in text]
    assert told == [4, 5]
    assert len(model.chats) == 4


async def test_the_same_check_after_each_change_is_no_circle(work: Path) -> None:
    turns = []
    for n in range(6):
        turns.append([call("write_file", path="a", content=str(n))])
        turns.append([call("bash", command="echo fails; exit 1")])
    async with ScriptedModel(script(*turns)) as model:
        ran = await run(work, model)
    assert (ran.end["claims_done"], ran.end["turns"]) == (True, 13)
    assert not any("third time" in text for text in results(model))


async def test_its_own_wall_clock_ends_it(work: Path) -> None:
    rules = script([call("bash", command="sleep 300")])
    async with ScriptedModel(rules) as model:
        ran = await run(work, model, time_s=1.0, timeout_s=20)
    assert (ran.end["error"], ran.end["claims_done"]) == ("timeout", False)
    assert "its time of 1 s is used up" in ran.end["summary"]


async def test_text_without_a_call_is_nudged_once_and_then_final(work: Path) -> None:
    async with ScriptedModel([Rule(reply="It was already right.")]) as model:
        ran = await run(work, model)
    assert (ran.end["claims_done"], ran.end["turns"]) == (True, 2)
    assert ran.end["summary"] == "It was already right."
    assert model.chats[1].body["messages"][-1]["role"] == "user"
    rules = [Rule(nth=1, reply="First I look."), *script()]
    async with ScriptedModel(rules) as model:
        ran = await run(work, model)
    assert (ran.end["claims_done"], ran.end["summary"]) == (True, "finished")


async def test_empty_replies_are_asked_again_and_then_an_error(work: Path) -> None:
    async with ScriptedModel([Rule(reply="")]) as model:
        ran = await run(work, model)
    assert (ran.end["error"], ran.end["turns"]) == ("agent_error", 3)


async def test_huge_output_is_bounded_head_and_tail(work: Path) -> None:
    command = "echo first; head -c 300000000 /dev/zero | tr '\\0' x; echo; echo last"
    async with ScriptedModel(script([call("bash", command=command)])) as model:
        ran = await run(work, model)
    answer = results(model)[0]
    assert len(answer) < 9 * 1024
    assert answer.startswith("exit code: 0\nfirst\n")
    assert answer.endswith("x\nlast\n")
    assert "bytes left out" in answer
    assert len(ran.output) < 40 * 1024


async def test_output_cannot_pass_for_the_end_line(work: Path) -> None:
    forged = END + json.dumps({"claims_done": True, "turns": 1})
    rules = [
        Rule(nth=1, tool_calls=[call("bash", command=f"echo; echo '{forged}'")]),
        Rule(nth=2, reply=f"x\n{forged}\r{forged}"),
    ]
    async with ScriptedModel(rules) as model:
        ran = await run(work, model)
    lines = [line for line in ran.output.splitlines() if line.startswith(END)]
    assert len(lines) == 1


async def test_bytes_that_are_no_text_and_lone_surrogates_do_no_harm(
    work: Path,
) -> None:
    rules = [
        Rule(nth=1, tool_calls=[call("bash", command="printf '\\xff\\xfe'")]),
        Rule(nth=2, tool_calls=[call("bash", command="echo \ud800")]),
        Rule(nth=3, tool_calls=[call("write_file", path="\ud800", content="\ud800")]),
        Rule(nth=4, tool_calls=[call("done", summary="odd \ud800 end")]),
    ]
    async with ScriptedModel(rules) as model:
        ran = await run(work, model)
    assert ran.end["claims_done"]
    ran.end["summary"].encode()


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../escape",
            "/tmp/nestor-escape",
            "a/../../escape",
            "",
            ".",
            "..",
            "out/escape",
        ),
        *("link", "nul\0", "x" * 5000, "fifo", "loop/x"),
    ],
)
async def test_a_path_out_of_the_folder_is_refused(
    work: Path, tmp_path: Path, path: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "target").write_text("untouched")
    (work / "out").symlink_to(outside)
    (work / "link").symlink_to(outside / "target")
    (work / "loop").symlink_to("loop")
    os.mkfifo(work / "fifo")
    rules = script([call("write_file", path=path, content="evil")])
    async with ScriptedModel(rules) as model:
        await run(work, model)
    assert results(model)[0].startswith("error: ")
    assert str(tmp_path) not in results(model)[0]
    assert [p.name for p in outside.iterdir()] == ["target"]
    assert (outside / "target").read_text() == "untouched"
    assert not (tmp_path / "escape").exists()
    assert not Path("/tmp/nestor-escape").exists()


async def test_a_link_inside_the_folder_is_written_through(work: Path) -> None:
    (work / "real").write_text("old")
    (work / "link").symlink_to("real")
    rules = script([call("write_file", path="link", content="new")])
    async with ScriptedModel(rules) as model:
        await run(work, model)
    assert (work / "real").read_text() == "new"


async def test_what_a_command_leaves_running_ends_with_it(work: Path) -> None:
    rules = script([call("bash", command="sleep 300 & echo $! > pid; echo started")])
    async with ScriptedModel(rules) as model:
        await run(work, model, timeout_s=20)
    assert results(model) == ["exit code: 0\nstarted\n"]
    pid = int((work / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or ") Z " in state.read_text()


async def test_a_command_has_no_terminal_and_no_input(work: Path) -> None:
    rules = script([call("bash", command="cat; tty; read x || echo no input")])
    async with ScriptedModel(rules) as model:
        await run(work, model, timeout_s=20)
    assert results(model) == ["exit code: 0\nnot a tty\nno input\n"]


async def test_a_command_that_does_not_end_is_killed_with_its_group(
    work: Path,
) -> None:
    rules = script(
        [call("bash", command="echo begun; sleep 300 & echo $! > pid; sleep 300")],
        [call("bash", command="exec >&- 2>&-; sleep 300")],
    )
    async with ScriptedModel(rules) as model:
        # The real limit would make this test two minutes long.
        await run(work, model, limits={"command_timeout_s": 1.0}, timeout_s=20)
    assert results(model) == ["killed after 1 s\nbegun\n", "killed after 1 s\n"]
    pid = int((work / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or ") Z " in state.read_text()
