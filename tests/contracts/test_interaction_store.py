"""What ``ports.interaction_store.InteractionStore`` promises, on each database."""

import asyncio
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.contracts.outside import Outside

from nestor.backends.sql.database import Database
from nestor.backends.sql.interaction_store import SqlInteractionStore
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.errors import Unavailable
from nestor.model.event import FEEDBACK_RECEIVED, Event
from nestor.model.ids import derived_id, new_id
from nestor.model.interaction import (
    Feedback,
    Interaction,
    InteractionKind,
    NewFeedback,
    Outcome,
    standing,
)

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(database: Database) -> SqlInteractionStore:
    return SqlInteractionStore(database)


def asked(**more: Any) -> Interaction:
    given: dict[str, Any] = {
        "id": "i1",
        "at": AT,
        "kind": InteractionKind.TRACKED,
        "query": "why?",
    }
    return Interaction(**(given | more))


def said(outcome: Outcome | None, **more: Any) -> Feedback:
    given: dict[str, Any] = {
        "id": new_id(),
        "interaction_id": "i1",
        "at": AT,
        "outcome": outcome,
        "user_feedback": None,
        "source": "editor",
        "key_id": "k1",
        "label": None,
    }
    return Feedback(**(given | more))


def event(row: Feedback) -> Event:
    return Event(
        id=derived_id(FEEDBACK_RECEIVED, row.id),
        event_type=FEEDBACK_RECEIVED,
        timestamp=AT,
        source="coordinator",
        trace_id="0" * 32,
        data={"interaction_id": row.interaction_id},
    )


async def sent(database: Database) -> Sequence[str]:
    """Ids of the telemetry that waits to be sent."""
    return [one.id for one in await SqlTaskStore(database).unsent()]


async def test_an_interaction_comes_back_as_it_was_kept(
    store: SqlInteractionStore,
) -> None:
    whole = asked(
        kind=InteractionKind.ROUTED,
        response="because \U0001f984",
        cut=("query",),
        route="local",
        model="m",
        reason="asked for local",
        confidence=0.25,
        agent_type="editor",
        context_ids=("c1", "c2"),
        task_id="t1",
        iteration=3,
        key_id="k1",
        trace_id="f" * 32,
        replayed=True,
    )
    await store.keep(whole)
    assert await store.get("i1") == whole
    assert await store.get("i2") is None


async def test_a_repeat_changes_neither_the_row_nor_its_telemetry(
    store: SqlInteractionStore, database: Database
) -> None:
    first, again = event(said(None)), event(said(None))
    await store.keep(asked(), telemetry=[first])
    await store.keep(asked(query="another"), telemetry=[again])
    assert (await store.get("i1")) == asked()
    assert await sent(database) == [first.id]


async def test_nothing_that_was_said_is_replaced_and_all_is_read_in_order(
    store: SqlInteractionStore,
) -> None:
    rows = [
        said(Outcome.SUCCESS, user_feedback=0.5, label="thumbs"),
        # The clock went back: what was said later is later all the same.
        said(Outcome.FAILURE, at=AT - timedelta(hours=1)),
        said(None, user_feedback=-1.0, key_id="k2"),
    ]
    for row in rows:
        await store.say(row)
    await store.say(said(Outcome.PARTIAL, interaction_id="i2"))
    assert await store.said("i1") == rows
    assert await store.said("i3") == []
    assert standing(await store.said("i1")) == rows[1:]


async def test_telemetry_is_committed_with_its_row(
    store: SqlInteractionStore, database: Database
) -> None:
    row = said(Outcome.SUCCESS)
    await store.say(row, telemetry=[event(row)])
    assert await sent(database) == [event(row).id]
    # The same id again: neither a second row nor a second event.
    with pytest.raises(Exception, match=r"(?i)unique"):
        await store.say(row, telemetry=[event(said(None))])
    assert await store.said("i1") == [row]
    assert await sent(database) == [event(row).id]


async def test_a_row_whose_telemetry_cannot_be_committed_is_not_kept(
    store: SqlInteractionStore, outside: Outside
) -> None:
    await outside.run("DROP TABLE event_outbox")
    row = said(Outcome.SUCCESS)
    with pytest.raises(Exception, match="event_outbox"):
        await store.say(row, telemetry=[event(row)])
    with pytest.raises(Exception, match="event_outbox"):
        await store.keep(asked(), telemetry=[event(row)])
    assert await store.said("i1") == []
    assert await store.get("i1") is None


async def test_what_no_text_can_hold_becomes_a_question_mark(
    store: SqlInteractionStore,
) -> None:
    await store.keep(asked(query="a\ud800b"))
    kept = await store.get("i1")
    assert kept is not None
    assert kept.query == "a\ufffdb"


async def test_it_is_there_for_another_process(
    store: SqlInteractionStore, database_url: str
) -> None:
    await store.keep(asked())
    row = said(Outcome.PARTIAL)
    await store.say(row)
    async with Database.open(database_url) as other:
        again = SqlInteractionStore(other)
        assert await again.get("i1") == asked()
        assert await again.said("i1") == [row]


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    url = f"sqlite:///{folder / 'nestor.db'}"
    async with Database.open(url) as database:
        store = SqlInteractionStore(database)
        for file in folder.iterdir():
            file.unlink()
        (folder / "nestor.db").mkdir()
        # A connection that is open goes on with its file; a new one finds a folder.
        await database._engine.dispose()  # as a restart does
        with pytest.raises(Unavailable):
            await store.keep(asked())
        with pytest.raises(Unavailable):
            await store.said("i1")
    # Where nothing could be opened nobody waits for the driver's thread, which as its
    # last act calls an event loop that must still be there.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join)


def test_of_each_key_the_newest_counts() -> None:
    rows = [
        said(Outcome.SUCCESS, key_id="a"),
        said(Outcome.FAILURE, key_id="b"),
        said(Outcome.PARTIAL, key_id="a"),
    ]
    assert standing(rows) == [rows[1], rows[2]]
    assert standing([]) == []


@pytest.mark.parametrize("wrong", [1.5, -1.01, "1", True])
def test_feedback_is_a_number_from_minus_one_to_one(wrong: object) -> None:
    with pytest.raises(msgspec.ValidationError, match="user_feedback"):
        msgspec.convert({"interaction_id": "i", "user_feedback": wrong}, NewFeedback)
