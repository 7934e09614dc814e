"""Cancelling waits for the end of what runs, and only a request cancels."""

import asyncio
from typing import Any, cast

import pytest

from nestor.errors import SandboxError, Unavailable
from nestor.ralph.parts import Parts, until_cancelled


class Store:
    """Answers ``get`` from a list, the last answer again and again."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)

    async def get(self, _: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return _Task(cancel_requested=answer)


class _Task:
    task_id = "t"

    def __init__(self, *, cancel_requested: bool) -> None:
        self.cancel_requested = cancel_requested


async def run(store: Store, work: Any) -> Any:
    parts = cast("Parts", type("P", (), {"store": store}))
    return await until_cancelled(
        parts, cast("Any", _Task(cancel_requested=False)), work
    )


async def test_a_request_ends_the_work_and_waits_until_it_is_gone() -> None:
    gone = False

    async def work() -> str:
        nonlocal gone
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)  # killing takes a while
            gone = True
        return "never"

    assert await run(Store(False, True), work()) is None
    assert gone


async def test_of_a_task_that_is_cancelled_already_nothing_begins() -> None:
    begun = False

    async def work() -> str:
        nonlocal begun
        begun = True
        return "done"

    assert await run(Store(True), work()) is None
    assert not begun


async def test_work_that_ends_is_not_cancelled() -> None:
    async def work() -> str:
        return "done"

    assert await run(Store(False), work()) == "done"


async def test_an_outage_of_the_store_is_no_request() -> None:
    async def work() -> str:
        await asyncio.sleep(1.2)
        return "done"

    assert await run(Store(Unavailable("down")), work()) == "done"


async def test_an_error_of_the_work_comes_through() -> None:
    async def work() -> str:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run(Store(False), work())


async def test_an_error_while_cancelling_is_told() -> None:
    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise SandboxError("processes are still alive") from None
        return "never"

    with pytest.raises(SandboxError):
        await run(Store(False, True), work())


async def test_an_end_of_its_own_while_cancelling_is_told() -> None:
    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "the sandbox broke"
        return "never"

    assert await run(Store(False, True), work()) == "the sandbox broke"
