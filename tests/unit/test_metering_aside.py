"""Calls that SQL does not take, and leases whose process went when SQL was away."""

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, text
from tests.contracts.test_call_journal import a_call, as_ended
from tests.unit.test_metering import Ledger, Rig, call, kill, rig_at, running

from nestor.backends.sql.budget_store import SqlBudgetStore
from nestor.backends.sql.schema import journal, lease
from nestor.coordinator.metering import Metering
from nestor.coordinator.pricing import MAX_COST_USD
from nestor.errors import Unavailable
from nestor.model.health import HealthStatus
from nestor.model.task import Usage
from nestor.ports.budget_store import Account, Slice
from nestor.ports.call_journal import Settled
from nestor.ports.call_ledger import SpendBy
from nestor.telemetry import metrics

ACCOUNT = Account(id="key:k", usd=Decimal(10), tokens=100_000)


class Forgetful(Ledger):
    """Away for all that the meter asks of it."""

    async def forget(self, journal_id: str) -> None:
        if self.down:
            raise Unavailable("the database does not answer: planted")
        await super().forget(journal_id)


class DiedError(BaseException):
    """The process ends here."""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_at(tmp_path) as rig:
        rig.ledger = Forgetful(rig.ledger._database)
        yield rig


async def refuse(rig: Rig, condition: str) -> None:
    """Let SQL refuse the calls that this is true of."""
    statement = (
        "CREATE TRIGGER refused BEFORE INSERT ON model_call"
        f" WHEN {condition} BEGIN SELECT RAISE(ABORT, 'planted'); END"
    )
    async with rig.ledger._database.write() as connection:
        await connection.execute(text(statement))


async def refuse_none(rig: Rig) -> None:
    async with rig.ledger._database.write() as connection:
        await connection.execute(text("DROP TRIGGER refused"))


POISON = "NEW.interaction_id LIKE 'poison%'"


def aside(rig: Rig) -> str:
    """All that was set aside, as it stands in the files."""
    paths = sorted((rig.home / "journal").glob("*.aside.bad"))
    return "".join(path.read_text() for path in paths)


def said(metering: Metering) -> str:
    (found,) = metering.dependencies()
    assert found.status is HealthStatus.DEGRADED
    return found.message


async def test_a_call_that_sql_does_not_take_holds_nobody_up(rig: Rig) -> None:
    names = [f"c{number:04}" for number in range(1300)]
    for at, name in ((0, "poison-1"), (700, "poison-2"), (701, "poison-3")):
        names.insert(at, name)
    good = [name for name in names if not name.startswith("poison")]
    await refuse(rig, POISON)
    counted = metrics.CALLS_ASIDE._value.get()
    metering = rig.process()
    call(metering, *names)
    await metering.fold_now()

    assert (await rig.ledger.meter("t1")).calls == 1300
    assert rig.told() == good
    assert metering._journal.waiting == 0
    assert metrics.CALLS_ASIDE._value.get() - counted == 3
    assert said(metering).startswith("3 calls are not counted")
    assert aside(rig).count('"poison-') == 3
    call(metering, "next")
    await metering.fold_now()
    assert rig.told()[-1] == "next"
    assert said(metering).startswith("3 calls are not counted")
    await metering.stop()
    (kept,) = (rig.home / "journal").iterdir()
    assert kept.name.endswith(".aside.bad")


async def test_what_was_set_aside_can_be_folded_once_it_is_mended(rig: Rig) -> None:
    await refuse(rig, POISON)
    metering = rig.process()
    call(metering, "poison")
    await metering.fold_now()
    await metering.stop()
    await refuse_none(rig)

    (kept,) = (rig.home / "journal").iterdir()
    name = kept.name.removesuffix(".aside.bad")
    kept.rename(kept.with_name(f"{name}.0.jsonl"))
    kept.with_name(f"{name}.lock").touch(mode=0o600)
    async with running(rig.process()) as metering:
        await metering.fold_now()
        assert rig.told() == ["poison"]
        assert (await rig.ledger.meter("t1")).usage.input_tokens == 10


async def test_what_a_dead_process_left_is_folded_without_what_sql_does_not_take(
    rig: Rig,
) -> None:
    await refuse(rig, POISON)
    for names in (("a", "poison-1", "b"), ("c",)):
        dead = rig.process()
        call(dead, *names)
        dead.begin(a_call(f"poison-open-{names[0]}"))
        kill(dead)
    async with running(rig.process()) as metering:
        call(metering, "own")
        await metering.fold_now()
        assert sorted(rig.told()) == ["a", "b", "c", "own"]
        assert said(metering).startswith("3 calls are not counted")
    assert aside(rig).count('"poison-') == 3
    left = {path.suffix for path in (rig.home / "journal").iterdir()}
    assert left == {".bad"}


async def test_a_database_that_takes_nothing_sets_nothing_aside(rig: Rig) -> None:
    await refuse(rig, "1")
    dead = rig.process()
    call(dead, "a", "b")
    kill(dead)
    metering = rig.process()
    call(metering, "c", "d")
    with pytest.raises(Unavailable, match="takes no calls: IntegrityError"):
        await metering.fold_now()
    assert (aside(rig), rig.told()) == ("", [])
    assert metering._journal.waiting == 2
    await refuse_none(rig)
    await metering.fold_now()
    assert sorted(rig.told()) == ["a", "b", "c", "d"]
    await metering.stop()
    assert list((rig.home / "journal").iterdir()) == []


async def test_what_cannot_be_kept_aside_is_not_let_go(rig: Rig) -> None:
    await refuse(rig, POISON)
    metering = rig.process()
    call(metering, "poison", "a")
    there = rig.home / "journal" / f"{metering._journal.id}.aside.bad"
    there.mkdir()
    with pytest.raises(Unavailable, match="cannot be written"):
        await metering.fold_now()
    assert metering._journal.waiting == 2
    there.rmdir()
    await metering.fold_now()
    assert (rig.told(), metering._journal.waiting) == (["a"], 0)
    assert '"poison"' in there.read_text()
    await metering.stop()


@pytest.mark.parametrize("dies_after", range(1, 7))
async def test_a_taker_that_dies_between_halves_loses_and_repeats_no_event(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    monkeypatch.setattr("nestor.coordinator.folding.BATCH", 8)
    await refuse(rig, POISON)
    good = [f"c{number}" for number in range(20)]
    dead = rig.process()
    call(dead, *good[:5], "poison", *good[5:])
    kill(dead)
    taker = rig.process()
    real, folds = rig.ledger.fold, 0

    async def fold(settled: Settled) -> int:
        nonlocal folds
        new = await real(settled)
        folds += 1
        if folds == dies_after:
            raise DiedError
        return new

    monkeypatch.setattr(rig.ledger, "fold", fold)
    with pytest.raises(DiedError):
        await taker.fold_now()
    monkeypatch.setattr(rig.ledger, "fold", real)
    for left in taker._left:
        left.close()
    kill(taker)

    last = rig.process()
    await last.fold_now()
    assert rig.told() == good
    assert (await rig.ledger.meter("t1")).calls == 20
    await last.stop()


async def test_a_journal_that_breaks_its_taker_is_set_aside_until_the_next_start(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken", "whole"):
        dead = rig.process()
        call(dead, name)
        kill(dead)
    metering = rig.process()
    metering._left += metering._journal.abandoned()
    (broken,) = (one for one in metering._left if "broken" in str(one.settled(limit=1)))

    def breaks(*, limit: int) -> None:
        raise RecursionError(f"planted, {limit}")

    monkeypatch.setattr(broken, "settled", breaks)
    call(metering, "own")
    await metering.fold_now()
    assert sorted(rig.told()) == ["own", "whole"]
    assert said(metering).startswith("1 calls are not counted")
    await metering.fold_now()  # nobody tries again
    await metering.stop()
    async with running(rig.process()) as metering:
        await metering.fold_now()
    assert sorted(rig.told()) == ["broken", "own", "whole"]


async def test_a_journal_that_breaks_its_reader_keeps_no_other_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "nestor.backends.files.abandoned_journal.lines.read_line"
    dead = rig.process()
    call(dead, "broken")
    kill(dead)
    metering = rig.process()
    with monkeypatch.context() as patch:

        def breaks(_: bytes) -> None:
            raise MemoryError

        patch.setattr(name, breaks)
        call(metering, "own")
        await metering.fold_now()
    assert rig.told() == ["own"]
    await metering.stop()
    async with running(rig.process()):
        pass
    assert rig.told() == ["own", "broken"]


async def test_costs_up_to_what_is_believed_stop_no_batch(rig: Rig) -> None:
    """1000 of them in one batch are more than a column holds."""
    metering = rig.process()
    usage = Usage(input_tokens=1, output_tokens=1)
    for start in (0, 1000):
        names = [f"{number}" for number in range(start, start + 1000)]
        call(metering, *names, usage=usage, cost_usd=MAX_COST_USD)
    await metering.fold_now()
    assert metering.dependencies()[0].status is HealthStatus.HEALTHY
    (row,) = await rig.ledger.spend(SpendBy.TASK)
    assert (row["calls"], row["unpriced"]) == (2000, 0)
    assert row["cost_usd"] == Decimal(2**62 - 1).scaleb(-12)
    await metering.stop()


# Leases


async def leases(rig: Rig) -> list[Any]:
    async with rig.ledger._database.read() as connection:
        return list((await connection.execute(select(lease.c.holder))).scalars())


async def a_lease(rig: Rig, metering: Metering) -> None:
    store = SqlBudgetStore(rig.ledger._database)
    want = Slice(usd=Decimal(1), tokens=10)
    holder = metering._journal.id
    assert await store.lease(ACCOUNT, holder=holder, want=want) == want


@pytest.mark.parametrize("calls", [(), ("a", "b")])
async def test_leases_of_an_end_without_a_database_end_with_the_next_start(
    rig: Rig, calls: tuple[str, ...]
) -> None:
    metering = rig.process()
    await metering.start()
    await a_lease(rig, metering)
    call(metering, *calls, charges=())
    await metering.fold_now()
    rig.ledger.down = True
    await metering.stop()
    assert await leases(rig) == [metering._journal.id]

    # Not while the database stays away, and not by who went before it came back.
    between = rig.process()
    await between.start()
    await between.stop()
    assert await leases(rig) == [metering._journal.id]

    rig.ledger.down = False
    async with running(rig.process()) as last:
        await last.fold_now()
        assert await leases(rig) == []
    assert rig.told() == list(calls)
    assert list((rig.home / "journal").iterdir()) == []
    async with rig.ledger._database.read() as connection:
        assert (await connection.execute(select(journal))).all() == []


async def test_a_journal_without_a_file_of_calls_ends_its_leases_too(rig: Rig) -> None:
    dead = rig.process()
    await a_lease(rig, dead)
    kill(dead)
    (path,) = (rig.home / "journal").glob("*.jsonl")
    path.unlink()
    async with running(rig.process()) as metering:
        await metering.fold_now()
        assert await leases(rig) == []
    assert list((rig.home / "journal").iterdir()) == []


async def test_an_error_that_nobody_knows_does_not_stop_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    metering = rig.process()
    await metering.start()
    await a_lease(rig, metering)

    async def breaks(journal_id: str) -> None:
        raise ValueError(journal_id)

    monkeypatch.setattr(rig.ledger, "forget", breaks)
    await metering.stop()
    monkeypatch.undo()
    assert await leases(rig) == [metering._journal.id]
    async with running(rig.process()) as last:
        await last.fold_now()
        assert await leases(rig) == []


async def test_a_call_is_charged_no_more_than_any_call_can_cost(rig: Rig) -> None:
    """What an earlier version believed, or anybody wrote there, adds up within columns."""
    dead = rig.process()
    begun = a_call("huge")
    charge = msgspec.structs.replace(
        begun.charges[0], usd=Decimal("1E+30"), tokens=2**62
    )
    dead.begin(begun)
    for name in ("huge", "again"):
        ended = msgspec.structs.replace(
            as_ended(begun), interaction_id=name, cost_usd=Decimal("1E+30")
        )
        dead._journal.end(msgspec.structs.replace(ended, charges=(charge, charge)))
    kill(dead)
    async with running(rig.process()) as metering:
        await metering.fold_now()
        assert sorted(rig.told()) == ["again", "huge"]
        spent = await SqlBudgetStore(rig.ledger._database).spent("key:k")
        most = 2**62 - 1
        assert (spent.usd, spent.tokens) == (Decimal(most).scaleb(-12), most)
