"""What models cost, over HTTP: by model, task, key and day."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.faces.spoken import ASK, asked, fields, get, post
from tests.faces.whole import Whole, whole
from tests.servers.scripted_model import Rule, ScriptedModel


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel([Rule(reply="42")]) as one:
        yield one


@pytest.fixture
async def face(tmp_path: Path, model: ScriptedModel) -> AsyncIterator[Whole]:
    async with whole(
        tmp_path / "home", local_base_url=model.base_url, local_model="tiny"
    ) as found:
        yield found


async def test_spend_is_added_up_and_what_is_unknown_is_said(
    tmp_path: Path, model: ScriptedModel
) -> None:
    where: dict[str, Any] = {
        "local_base_url": model.base_url,
        "local_model": "free",
        "remote_base_url": model.base_url,
        "remote_model": "unpriced",
    }
    async with whole(tmp_path / "home", **where) as face:
        nothing = (await get(face, "/spend")).json
        assert (nothing["rows"], nothing["total"]["cost_usd"]) == ([], "0")
        key = await face.key("model")
        await asked(face, key=key)
        remote = {**ASK, "model": "remote"}
        for _ in range(2):
            assert (await post(face, "/v1/chat/completions", remote)).status == 200
        found = (await get(face, "/spend")).json
        rows = {row["by"]: row for row in found["rows"]}
        assert rows["unpriced"]["cost_usd"] is None, "unknown is not 0"
        assert (rows["unpriced"]["calls"], rows["unpriced"]["unpriced"]) == (2, 2)
        assert (rows["free"]["cost_usd"], rows["free"]["unpriced"]) == ("0", 0)
        assert found["total"]["calls"] == 3
        assert found["total"]["unpriced"] == 2
        assert found["total"]["input_tokens"] == 3 * rows["free"]["input_tokens"]
        by_key = (await get(face, "/spend?by=key")).json["rows"]
        assert {row["name"]: row["calls"] for row in by_key} == {"model": 1, "admin": 2}
        today = datetime.now(UTC).date().isoformat()
        days = (await get(face, f"/spend?by=day&since={today}")).json
        assert [row["by"] for row in days["rows"]] == [today]
        later = (await get(face, "/spend?since=2999-01-01")).json
        assert (later["rows"], later["total"]["calls"]) == ([], 0)
        first = (await get(face, "/spend?limit=1")).json
        assert (len(first["rows"]), first["truncated"]) == (1, True)
        assert first["total"] == found["total"], "of all rows, shown or not"
        assert found["truncated"] is False
        assert (await get(face, "/spend?by=task")).json["rows"][0]["by"] is None
        stats = (await get(face, "/stats")).json
        assert stats["spend"]["total"] == found["total"]
        for by in ("model", "task", "key", "day"):
            listed = (await get(face, f"/spend?by={by}")).json["rows"]
            same = stats["spend"][f"by_{by}"]
            assert same.keys() == {row["by"] for row in listed if row["by"]}
            for row in listed:
                if row["by"] is not None:
                    assert same[row["by"]].items() < row.items()
        assert stats["spend"]["by_task"] == {}, "no task has called a model"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("by=colour", "by"),
        ("since=yesterday", "since"),
        ("since=2026-02-30", "since"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("day=1", "day"),
    ],
)
async def test_a_wrong_question_about_spend_names_the_parameter(
    face: Whole, query: str, named: str
) -> None:
    reply = await get(face, f"/spend?{query}")
    assert (reply.status, fields(reply)) == (400, [named])


async def test_money_of_tasks_and_small_amounts_is_text_without_an_exponent(
    tmp_path: Path, model: ScriptedModel
) -> None:
    where: dict[str, Any] = {
        "remote_base_url": model.base_url,
        "remote_model": "dear",
        "remote_price_input": "0.000001",
        "remote_price_output": "0",
    }
    async with whole(tmp_path / "home", **where) as face:
        routed = await post(face, "/route", {"query": "q", "task_id": "t1"})
        cost = routed.json["cost_usd"]
        assert cost.startswith("0.0000000000")
        (row,) = (await get(face, "/spend?by=task")).json["rows"]
        assert (row["by"], row["cost_usd"]) == ("t1", cost)
        spent = (await get(face, "/stats")).json["spend"]
        assert spent["by_task"]["t1"]["cost_usd"] == cost
