"""The builtin agent's conversation stays within what the model takes."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.unit.builtin_rig import call, results, run, script

from nestor.model.knowledge import ContextItem
from nestor.model.task import TaskSpec, Verdict
from nestor.ralph.brief import brief

TASK = "the task: make x three"
WINDOW = 8192


def loud(n: int) -> list[dict[str, Any]]:
    return [
        call("bash", command=f"echo begin {n}; head -c 5000 /dev/zero | tr '\\0' x")
    ]


def uncounted(*turns: list[dict[str, Any]]) -> list[Rule]:
    """The script of a server that counts no tokens."""
    return [msgspec.structs.replace(rule, usage=None) for rule in script(*turns)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


def size(model: ScriptedModel, n: int) -> int:
    return len(json.dumps(model.chats[n].body["messages"]))


async def test_the_oldest_results_go_first_and_the_task_never(work: Path) -> None:
    rules = uncounted(*[loud(n) for n in range(12)])
    async with ScriptedModel(rules) as model:
        ran = await run(work, model, TASK, limits={"window_tokens": WINDOW})
    assert ran.end["claims_done"]
    for chat in model.chats:
        assert chat.body["messages"][1]["content"] == TASK
        # Three bytes a token, and a quarter of the window left for the answer.
        assert len(json.dumps(chat.body["messages"])) < WINDOW * 0.75 * 3
    newest = results(model)[-1]
    assert "begin 11" in newest
    assert newest.endswith("x")
    assert any("[older output dropped]" in text for text in results(model))


async def test_every_call_that_is_still_told_has_its_answer(work: Path) -> None:
    big = "y" * 9000
    rules = uncounted(
        *[[call("write_file", path=f"f{n}", content=big)] for n in range(9)]
    )
    async with ScriptedModel(rules) as model:
        ran = await run(work, model, TASK, limits={"window_tokens": WINDOW})
    assert ran.end["claims_done"]
    assert (work / "f8").read_text() == big
    for chat in model.chats:
        told = chat.body["messages"]
        asked = [c["id"] for m in told for c in m.get("tool_calls") or []]
        assert asked == [m["tool_call_id"] for m in told if m["role"] == "tool"]
        for message in told:
            for one in message.get("tool_calls") or []:
                json.loads(one["function"]["arguments"])
        assert len(json.dumps(told)) < WINDOW * 0.75 * 3


@pytest.mark.parametrize("counted", [None, 6000])
async def test_the_servers_count_corrects_the_estimate(
    work: Path, counted: int | None
) -> None:
    turns = [loud(n) for n in range(2)]
    usage = {"prompt_tokens": counted} if counted else None
    rules = [msgspec.structs.replace(r, usage=usage) for r in script(*turns)]
    async with ScriptedModel(rules) as model:
        await run(work, model, TASK, limits={"window_tokens": WINDOW})
    # By the bytes alone both results fit; by the count they do not.
    kept = json.dumps(model.chats[2].body["messages"]).count("x" * 1000)
    assert (kept >= 9) == (counted is None)


async def test_what_does_not_fit_is_trimmed_and_asked_once_more(work: Path) -> None:
    said = "This model's maximum context length is 4096 tokens, you asked for 9000"
    rules = [
        *[Rule(nth=n, tool_calls=loud(n)) for n in (1, 2, 3)],
        Rule(nth=4, status=400, reply=said),
        *script(),
    ]
    async with ScriptedModel(rules) as model:
        ran = await run(work, model, TASK)
    assert (ran.end["claims_done"], len(model.chats)) == (True, 5)
    assert size(model, 4) < size(model, 3) // 2
    assert model.chats[4].body["messages"][1]["content"] == TASK


async def test_what_never_fits_is_an_error_after_the_second_try(work: Path) -> None:
    said = "context_length_exceeded: the context window is full"
    async with ScriptedModel([Rule(status=400, reply=said)]) as model:
        ran = await run(work, model, TASK)
    assert (ran.end["error"], len(model.chats)) == ("agent_error", 2)
    assert "context window" in ran.end["summary"]


async def test_the_window_is_asked_of_the_server(work: Path) -> None:
    async with ScriptedModel(script()) as model:
        await run(work, model)
    assert model.requests[0].path == "/v1/models"


def words(n: int, word: str) -> str:
    return f"{word} begins " + f"{word} " * n + f"{word} ends"


@pytest.mark.parametrize(("room", "short"), [(6000, "context"), (2600, "failing")])
async def test_what_comes_with_the_task_is_shortened_by_its_rank(
    work: Path, room: int, short: str
) -> None:
    """What can be spared first goes first, and nothing goes before it has to."""
    item = ContextItem(
        id="1",
        kind="document",
        source="a.md",
        text="# What a title\n" + words(190, "context"),
        score=1,
    )
    failed = Verdict(
        check="c1",
        phase="after",
        passed=False,
        exit_code=1,
        duration_s=1,
        output_tail=words(500, "failing"),
    )
    text = brief(
        TaskSpec(task=words(100, "goal")),
        context=[item] * 6,
        guidance=words(300, "guidance"),
        failing=[failed],
        restored=[],
    )
    async with ScriptedModel(uncounted()) as model:
        ran = await run(work, model, text, limits={"window_tokens": room * 4 // 3})
    assert ran.end["claims_done"]
    told = model.chats[0].body["messages"][1]["content"]
    assert words(100, "goal") in told
    assert "<context>" in told
    assert "</context>" in told
    assert told.count("context ends") < 6
    assert (words(500, "failing") in told) == (short == "context")


async def test_a_task_without_parts_loses_its_middle_only_where_it_must(
    work: Path,
) -> None:
    text = words(12_000, "goal")
    told = []
    for window in (WINDOW, 64 * 1024):
        async with ScriptedModel(uncounted()) as model:
            await run(work, model, text, limits={"window_tokens": window})
        told.append(model.chats[0].body["messages"])
    short, whole = (messages[1]["content"] for messages in told)
    assert len(json.dumps(told[0])) < WINDOW * 0.75 * 3
    assert (short[:11], short[-9:]) == ("goal begins", "goal ends")
    assert whole == text
