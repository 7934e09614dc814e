"""``nestor spend``, ``ask``, ``route`` and ``feedback``, as processes."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.faces.fake_stack import ESCAPES, HOSTILE, Cli, FakeStack, Reply, refusal
from tests.faces.whole import ADMIN_KEY, Whole, whole
from tests.servers.scripted_model import Rule, ScriptedModel

NO_TOKENS = {
    "cached_tokens": None,
    "cache_write_tokens": None,
    "reasoning_tokens": None,
}


def row(by: str | None, **more: Any) -> dict[str, Any]:
    return {
        "by": by,
        "name": by,
        "calls": 1,
        "failed": 0,
        "unsettled": 0,
        "cached": 0,
        "unpriced": 0,
        "input_tokens": 10,
        "output_tokens": 2,
        "cost_usd": "0.5",
        **NO_TOKENS,
        **more,
    }


def spent(*rows: dict[str, Any], by: str = "model", **total: Any) -> Reply:
    found = {
        "by": by,
        "since": None,
        "rows": list(rows),
        "total": row(None, **total),
        "truncated": False,
    }
    return Reply(200, found)


# What is shown, beside a stack that answers as told.


def test_what_is_not_known_of_spend_is_said_and_never_0(
    stack: FakeStack, cli: Cli
) -> None:
    rows = (
        row("dear", calls=5, failed=1),
        row("mixed", calls=4, cost_usd="0.01", unpriced=3),
        row("one", calls=2, cost_usd="0.01", unpriced=1),
        row("dark", cost_usd=None, unpriced=1, input_tokens=None, output_tokens=None),
    )
    total: dict[str, Any] = {
        "calls": 12,
        "unpriced": 5,
        "cost_usd": "0.52",
        "unsettled": 2,
        "cached": 4,
    }
    stack.says("GET", "/spend", spent(*rows, **total))
    done = cli("spend")
    assert done.returncode == 0, done.stderr
    head, dear, mixed, one, dark, said, unseen = done.stdout.splitlines()
    assert head.split() == ["model", "calls", "failed", "input", "output", "cost"]
    assert dear.split() == ["dear", "5", "1", "10", "2", "$0.5"]
    assert mixed.endswith("$0.01 + 3 calls of unknown price")
    assert one.endswith("$0.01 + 1 call of unknown price")
    assert dark.split() == ["dark", "1", "0", "unknown", "unknown", "unknown"]
    assert said.startswith("total: 12 calls (0 failed, 4 answered from the cache), ")
    assert said.endswith("$0.52 + 5 calls of unknown price")
    assert unseen.startswith("2 calls whose end nobody saw")
    assert json.loads(cli("spend", "--json").stdout)["total"]["calls"] == 12


def test_rows_have_names_and_the_question_is_passed_on(
    stack: FakeStack, cli: Cli
) -> None:
    rows = (row("k1", name="editor"), row("gone", name="gone"), row(None, name=None))
    stack.says("GET", "/spend", spent(*rows, by="key"))
    done = cli("spend", "--by", "key", "--since", "2026-01-02", "--limit", "7")
    shown = done.stdout.splitlines()[1:4]
    assert [line.split("  ")[0] for line in shown] == ["editor (k1)", "gone", "no key"]
    assert stack.asked[-1]["path"] == "/spend?by=key&since=2026-01-02&limit=7"
    stack.says("GET", "/spend", spent(calls=0, cost_usd="0"))
    assert cli("spend").stdout == "no calls\n"


@pytest.mark.parametrize(
    "wrong", [["--by", "colour"], ["--limit", "0"], ["--limit", "1001"]]
)
def test_a_wrong_question_asks_nobody(
    stack: FakeStack, cli: Cli, wrong: list[str]
) -> None:
    assert cli("spend", *wrong).returncode == 2
    assert stack.asked == []


def test_b5_names_in_spend_and_words_of_an_answer_are_inert(
    stack: FakeStack, cli: Cli
) -> None:
    stack.says("GET", "/spend", spent(row(HOSTILE, name=HOSTILE)))
    stack.says("GET", "/v1/models", Reply(200, {"data": [{"id": HOSTILE}]}))
    given = {"augmented_prompt": "q", "sources": [HOSTILE], "degraded": [HOSTILE]}
    stack.says("POST", "/augment_query", Reply(200, given))
    pieces = [
        {"choices": [{"delta": {"content": one}}]} for one in (HOSTILE, "\x1b[2K")
    ]
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in pieces)
    events = Reply(200, f"{text}data: [DONE]\n\n", "text/event-stream")
    stack.says("POST", "/v1/chat/completions", events)
    for arguments in (["spend"], ["ask", "q", "--stream"]):
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr
        assert "owned" in done.stdout
        assert not ESCAPES.search(done.stdout + done.stderr), arguments
        _, shown = cli.on_a_terminal(*arguments)
        ours = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown)
        assert not ESCAPES.search(ours), arguments


def test_feedback_says_what_was_kept_and_by_whom(stack: FakeStack, cli: Cli) -> None:
    kept = {"outcome": "failure", "user_feedback": -0.5, "source": "admin"}
    stack.says("POST", "/feedback", Reply(201, kept))
    done = cli("feedback", "i1", "failure", "--score", "-0.5")
    assert done.stdout == "kept: failure, -0.5, said by the key admin\n"
    assert stack.asked[-1]["body"] == {
        "interaction_id": "i1",
        "outcome": "failure",
        "user_feedback": -0.5,
        "source": "nestor feedback",
    }
    assert json.loads(cli("feedback", "i1", "failure", "--json").stdout) == kept
    asked = len(stack.asked)
    for wrong in (["great"], [], ["success", "--score", "2"]):
        assert cli("feedback", "i1", *wrong).returncode == 2
    assert len(stack.asked) == asked
    unknown = refusal(404, "nobody knows", ("interaction_id", "nobody knows 'i1'"))
    stack.says("POST", "/feedback", unknown)
    done = cli("feedback", "i1", "success")
    assert (done.returncode, "interaction_id" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [(402, 4, "spent"), (429, 4, "too many"), (400, 2, "max_tokens"), (503, 3, "away")],
)
def test_a_refusal_in_a_dialects_own_shape_is_told(
    stack: FakeStack, cli: Cli, status: int, code: int, word: str
) -> None:
    stack.says("GET", "/v1/models", Reply(200, {"data": [{"id": "m"}]}))
    given = {"augmented_prompt": "q", "sources": [], "degraded": []}
    stack.says("POST", "/augment_query", Reply(200, given))
    said = {"error": {"message": f"it is {word}", "type": "x", "param": None}}
    stack.says("POST", "/v1/chat/completions", Reply(status, said))
    done = cli("ask", "q", "--stream")
    assert done.returncode == code
    assert f"error: it is {word}" in done.stderr


@pytest.mark.parametrize(
    "tail",
    [
        "",
        'data: {"error": {"message": "it broke"}}\n\n',
        "data: [1]\n\n",
        "data: {\n\n",
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(
    stack: FakeStack, cli: Cli, tail: str
) -> None:
    stack.says("GET", "/v1/models", Reply(200, {"data": [{"id": "m"}]}))
    given = {"augmented_prompt": "q", "sources": [], "degraded": []}
    stack.says("POST", "/augment_query", Reply(200, given))
    begun = 'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    stack.says(
        "POST", "/v1/chat/completions", Reply(200, begun + tail, "text/event-stream")
    )
    done = cli("ask", "q", "--stream")
    assert (done.returncode, done.stdout.strip()) == (3, "half")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_line_end_in_two_pieces_is_one(stack: FakeStack, cli: Cli) -> None:
    stack.says("GET", "/v1/models", Reply(200, {"data": [{"id": "m"}]}))
    given = {"augmented_prompt": "q", "sources": [], "degraded": []}
    stack.says("POST", "/augment_query", Reply(200, given))
    pieces = ("a\r", "\nb", None, "\r\n", "c")
    text = "".join(
        f"data: {json.dumps({'choices': [{'delta': {'content': one}}]})}\n\n"
        for one in pieces
    )
    events = Reply(200, f": hi\n\n{text}data: [DONE]\n\n", "text/event-stream")
    stack.says("POST", "/v1/chat/completions", events)
    assert cli("ask", "q", "--stream").stdout.startswith("a\nb\nc\n")


# Beside the real Coordinator.


@dataclass
class Both:
    """A stack in this process, and the command line in others."""

    face: Whole
    cli: Cli
    model: ScriptedModel

    async def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self.cli, *arguments)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    slow = Rule(when="slowly", reply="first second third", chunk_delay_s=1.0)
    cut = Rule(when="cut", reply="first second third", cut_after_chunks=2)
    async with ScriptedModel([slow, cut, Rule(reply="42")]) as model:
        where: dict[str, Any] = {
            "local_base_url": model.base_url,
            "local_model": "tiny",
            "remote_base_url": model.base_url,
            "remote_model": "dear",
            "remote_price_input": "2",
            "remote_price_output": "10",
        }
        async with whole(tmp_path / "stack", **where) as face:
            home = tmp_path / "home"
            home.mkdir()
            extra = {
                "NESTOR_API_KEY": ADMIN_KEY,
                "NESTOR_COORDINATOR_PORT": str(face.ports["coordinator"]),
            }
            yield Both(face, Cli(home, tmp_path, extra), model)


async def test_a_route_is_shown_judged_and_paid_for(both: Both) -> None:
    done = await both("route", "what is it?", "--mode", "remote")
    assert done.returncode == 0, done.stderr
    shown = dict(
        line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line
    )
    assert (shown["route"], shown["model"]) == ("remote", "dear")
    assert (shown["confidence"], shown["cost"]) == ("no evidence", "$0.000092")
    assert shown["why"]
    assert done.stdout.rstrip().endswith("\n42")
    about = shown["interaction"]
    said = await both("feedback", about, "success")
    assert said.stdout == "kept: success, said by the key admin\n"
    whole_reply = json.loads((await both("route", "again?", "--json")).stdout)
    assert (whole_reply["response"], whole_reply["confidence"]) == ("42", None)
    spend = (await both("spend")).stdout
    assert "total: 2 calls (0 failed), 22 tokens in, 14 out, $0.000092" in spend


async def test_an_answer_is_shown_as_it_comes_and_then_what_it_cost(both: Both) -> None:
    command = [sys.executable, "-m", "nestor.cli", "ask", "say it slowly", "--stream"]
    process = await asyncio.create_subprocess_exec(
        *(*command, "--mode", "remote"),
        env=both.cli.env,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        begun = await process.stdout.read(1024)
        rest = (await process.stdout.read()).decode()
        assert await process.wait() == 0
    assert begun.decode().startswith("f")
    assert b"third" not in begun, "the rest was not there yet"
    whole_text = begun.decode() + rest
    assert whole_text.startswith("first second third\n")
    assert "route: remote, model: dear" in rest
    assert "cost: $0.000092" in rest
    assert "confidence: no evidence" in rest
    about = rest.rsplit("interaction: ", 1)[1].strip()
    found = await both.face.call("coordinator", "GET", f"/interactions/{about}")
    assert found.json["call"]["model"] == "dear"


async def test_an_answer_whose_model_dies_half_way_is_an_error(both: Both) -> None:
    done = await both("ask", "cut it", "--stream", "--mode", "local")
    assert done.returncode == 3
    assert done.stdout.startswith("first")
    assert done.stderr.startswith("error: ")


async def test_ask_has_context_streamed_or_not(both: Both) -> None:
    text = {"project": "p", "path": "a.md", "content": "The deploy is at noon."}
    assert (await both.face.call("aidb", "POST", "/documents", json=text)).status < 300
    for how in ("--stream", "--no-stream"):
        done = await both("ask", "when is the deploy?", how)
        assert done.returncode == 0, done.stderr
        assert "  p/a.md" in done.stdout
        asked = json.dumps(both.model.requests[-1].body)
        assert "The deploy is at noon." in asked
        assert asked.count("</context>") >= 1


async def test_without_a_model_a_stream_is_a_quote(tmp_path: Path) -> None:
    async with whole(tmp_path / "stack") as face:
        home = tmp_path / "home"
        home.mkdir()
        port = str(face.ports["coordinator"])
        extra = {"NESTOR_API_KEY": ADMIN_KEY, "NESTOR_COORDINATOR_PORT": port}
        cli = Cli(home, tmp_path, extra)
        done = await asyncio.to_thread(cli, "ask", "why?", "--stream")
    assert done.returncode == 0, done.stderr
    assert "no model configured" in done.stdout
