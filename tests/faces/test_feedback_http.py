"""Feedback over HTTP: who says it, what of it counts, and that it is kept."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.faces.spoken import ASK, asked, events, fields, get, post
from tests.faces.whole import Whole, whole
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.model.ids import derived_id

MESSAGES = {"model": "auto", "max_tokens": 16, **ASK}
RESPONSES = {"model": "auto", "input": "hi"}
EMBEDDINGS = {"model": "vectors", "input": "hi"}
CALLS = [
    ("/v1/chat/completions", ASK, "openai", "tiny"),
    ("/v1/chat/completions", {**ASK, "stream": True}, "openai", "tiny"),
    ("/v1/messages", MESSAGES, "anthropic", "tiny"),
    ("/v1/messages", {**MESSAGES, "stream": True}, "anthropic", "tiny"),
    ("/v1/responses", RESPONSES, "responses", "tiny"),
    ("/v1/responses", {**RESPONSES, "stream": True}, "responses", "tiny"),
    ("/v1/embeddings", EMBEDDINGS, "openai", "vectors"),
    ("/route", {"query": "hi"}, "openai", "tiny"),
]


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel([Rule(reply="42")]) as one:
        yield one


def models(model: ScriptedModel) -> dict[str, Any]:
    """Settings for one local model and one for embeddings, on one server."""
    url = model.base_url
    local = {"local_base_url": url, "local_model": "tiny"}
    return {**local, "embeddings_base_url": url, "embeddings_model": "vectors"}


@pytest.fixture
async def face(tmp_path: Path, model: ScriptedModel) -> AsyncIterator[Whole]:
    async with whole(tmp_path / "home", **models(model)) as found:
        yield found


@pytest.mark.parametrize(("path", "body", "dialect", "by"), CALLS)
async def test_every_call_of_a_model_is_an_interaction_that_takes_feedback(
    face: Whole, path: str, body: dict[str, Any], dialect: str, by: str
) -> None:
    key = await face.key("model")
    reply = await post(face, path, body, key=key)
    assert reply.status == 200, reply.body
    about = reply.headers["x-nestor-interaction-id"]
    said = {"interaction_id": about, "outcome": "partial"}
    assert (await post(face, "/feedback", said, key=key)).status == 201
    found = (await get(face, f"/interactions/{about}")).json
    call = found["call"]
    assert (call["interaction_id"], call["dialect"]) == (about, dialect)
    assert (call["side"], call["model"], call["ok"]) == ("local", by, True)
    assert call["reason"], "why it went there"
    assert call["context_ids"] == [], "nothing is known here"
    assert call["key_id"] == found["feedback"][0]["key_id"] != "admin"


async def test_a_call_that_failed_is_an_interaction_too(
    face: Whole, model: ScriptedModel
) -> None:
    model.rules[:] = [Rule(status=400, reply="no")]
    assert (await post(face, "/v1/chat/completions", ASK)).status == 400
    async with asyncio.timeout(20):
        while not (told := events(face, "model_called")):
            await asyncio.sleep(0.05)
    about = told[0]["data"]["interaction_id"]
    call = (await get(face, f"/interactions/{about}")).json["call"]
    assert (call["ok"], call["side"]) == (False, "local")
    said = {"interaction_id": about, "outcome": "failure"}
    assert (await post(face, "/feedback", said)).status == 201


async def test_what_was_said_is_there_after_a_restart_and_was_told_once(
    tmp_path: Path, model: ScriptedModel
) -> None:
    home, where = tmp_path / "home", models(model)
    async with whole(home, **where) as face:  # nobody moves its events to the log
        about = await asked(face)
        body = {"interaction_id": about, "outcome": "success", "user_feedback": 0.5}
        said = (await post(face, "/feedback", body)).json
        before = (await get(face, f"/interactions/{about}")).json
        assert events(face, "feedback_received") == []
    for _ in range(2):
        async with whole(home, works=True, **where) as face:
            assert (await get(face, f"/interactions/{about}")).json == before
            async with asyncio.timeout(20):
                while not events(face, "feedback_received"):
                    await asyncio.sleep(0.05)
    assert before["feedback"] == [said]
    (told,) = events(face, "feedback_received")
    assert told["id"] == derived_id("feedback_received", said["id"])
    (call,) = events(face, "model_called")
    assert call["data"]["interaction_id"] == about


async def test_feedback_is_kept_under_the_key_that_gave_it(face: Whole) -> None:
    key = await face.key("model")
    about = await asked(face, key=key)
    said = {
        "interaction_id": about,
        "outcome": "partial",
        "user_feedback": -0.5,
        "source": "admin",
    }
    done = await post(face, "/feedback", said, key=key)
    assert done.status == 201
    listed = (await get(face, "/keys")).json["keys"]
    assert done.json["key_id"] == next(k["id"] for k in listed if k["name"] == "model")
    # Who says it is told by the key; what its holder says of itself is a label.
    expected = {**said, "source": "model", "label": "admin"}
    assert {name: done.json[name] for name in expected} == expected
    mine = await post(
        face, "/feedback", {"interaction_id": about, "outcome": "failure"}
    )
    assert (mine.json["key_id"], mine.json["source"]) == ("admin", "admin")
    assert (mine.json["user_feedback"], mine.json["label"]) == (None, None)
    found = (await get(face, f"/interactions/{about}")).json
    assert found["feedback"] == [done.json, mine.json]
    assert found["standing"] == found["feedback"], "each key has a word of its own"


async def test_of_one_key_the_newest_counts_and_nothing_is_lost(face: Whole) -> None:
    about = await asked(face)
    for outcome in ("success", "failure"):
        body = {"interaction_id": about, "outcome": outcome}
        assert (await post(face, "/feedback", body)).status == 201
    found = (await get(face, f"/interactions/{about}")).json
    assert [one["outcome"] for one in found["feedback"]] == ["success", "failure"]
    assert [one["outcome"] for one in found["standing"]] == ["failure"]


async def test_without_feedback_nothing_is_known(face: Whole) -> None:
    found = (await get(face, f"/interactions/{await asked(face)}")).json
    assert (found["feedback"], found["standing"]) == ([], [])
    assert found["call"]["ok"] is True
    assert found["interaction"] is None, "a call of /v1 needs no second row"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({}, ["outcome", "user_feedback"]),
        ({"outcome": None, "user_feedback": None}, ["outcome", "user_feedback"]),
        ({"outcome": "great"}, ["outcome"]),
        ({"user_feedback": 1.1}, ["user_feedback"]),
        ({"user_feedback": "1"}, ["user_feedback"]),
        ({"outcome": "success", "source": "a\nb"}, ["source"]),
        ({"outcome": "success", "source": "x" * 65}, ["source"]),
        ({"outcome": "success", "source": ""}, ["source"]),
        ({"outcome": "success", "key_id": "admin"}, ["key_id"]),
        ({"outcome": "success", "interaction_id": ""}, ["interaction_id"]),
        ({"outcome": "success", "interaction_id": "x" * 65}, ["interaction_id"]),
    ],
)
async def test_wrong_feedback_names_the_field(
    face: Whole, wrong: dict[str, Any], named: list[str]
) -> None:
    about = await asked(face)
    reply = await post(face, "/feedback", {"interaction_id": about, **wrong})
    assert (reply.status, fields(reply)) == (400, named)
    assert (await get(face, f"/interactions/{about}")).json["feedback"] == []


@pytest.mark.parametrize("unknown", ["nobody", "a'b", "\x00", "x\u202ey"])
async def test_feedback_on_what_nobody_knows_is_not_found(
    face: Whole, unknown: str
) -> None:
    body = json.dumps({"interaction_id": unknown, "outcome": "success"})
    reply = await face.call("coordinator", "POST", "/feedback", data=body)
    assert (reply.status, fields(reply)) == (404, ["interaction_id"])


async def test_a_key_judges_its_own_answers_only(face: Whole) -> None:
    mine, other = await face.key("model"), await face.key("model")
    service = await face.key("model", "service")
    about = await asked(face, key=mine)
    said = {"interaction_id": about, "outcome": "failure"}

    replies = [
        await post(face, "/feedback", said, key=key) for key in (other, service, mine)
    ]

    assert [reply.status for reply in replies] == [404, 201, 201]
    assert fields(replies[0]) == ["interaction_id"]


async def test_a_tasks_key_cannot_report_its_own_success(face: Whole) -> None:
    key = await face.key("model", "task:t1")
    about = await asked(face, key=key)
    for path, body in (
        ("/feedback", {"interaction_id": about, "outcome": "success"}),
        ("/augment_query", {"query": "q"}),
        ("/interactions", {"query": "q", "task_id": "t1"}),
    ):
        assert (await post(face, path, body, key=key)).status == 403, path
    for path in ("/spend", f"/interactions/{about}"):
        assert (await get(face, path, key=key)).status == 403, path
    assert (await get(face, f"/interactions/{about}")).json["feedback"] == []


@pytest.mark.parametrize("scope", ["read", "submit", "approve", "metrics"])
async def test_a_key_without_the_scope_says_nothing(face: Whole, scope: str) -> None:
    about, key = await asked(face), await face.key(scope)
    body = {"interaction_id": about, "outcome": "success"}
    assert (await post(face, "/feedback", body, key=key)).status == 403
    # Who may read sees what was said; who may call models does not see others' words.
    seen = await get(face, f"/interactions/{about}", key=key)
    assert seen.status == (200 if scope == "read" else 403)


async def test_feedback_and_tracked_answers_reach_telemetry_once(
    tmp_path: Path, model: ScriptedModel
) -> None:
    async with whole(tmp_path / "home", works=True, **models(model)) as face:
        about = await asked(face)
        body = {"interaction_id": about, "outcome": "success", "source": "thumbs"}
        said = (await post(face, "/feedback", body)).json
        answer = {"query": "q?", "response": "a!", "model": "m", "route": "elsewhere"}
        kept = (await post(face, "/interactions", answer)).json["interaction_id"]
        given = (await post(face, "/augment_query", {"query": "q?"})).json
        async with asyncio.timeout(20):
            while not events(face, "query_augmented"):
                await asyncio.sleep(0.05)
        (feedback,) = events(face, "feedback_received")
        assert feedback["data"] == {
            "interaction_id": about,
            "outcome": "success",
            "user_feedback": None,
            "source": "admin",
            "key_id": "admin",
            "label": "thumbs",
        }
        assert feedback["source"] == "coordinator"
        (tracked,) = events(face, "interaction_tracked")
        assert tracked["data"]["interaction_id"] == kept
        assert (tracked["data"]["query"], tracked["data"]["output"]) == ("q?", "a!")
        (told,) = events(face, "query_augmented")
        assert told["data"]["interaction_id"] == given["interaction_id"]
        # However often they are sent: one id for one row.
        assert feedback["id"] == derived_id("feedback_received", said["id"])
        assert tracked["id"] == derived_id("interaction_tracked", kept)
        about = given["interaction_id"]
        assert told["id"] == derived_id("query_augmented", about)
