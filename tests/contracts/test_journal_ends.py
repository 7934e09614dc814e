"""How a call journal ends: kept, set aside, taken though it holds nothing."""

import fcntl
import threading
from pathlib import Path

import pytest
from tests.contracts.test_call_journal import (
    a_call,
    as_ended,
    die,
    do,
    fold,
    folder,
    names_of,
    opened,
)

from nestor.backends.files.abandoned_journal import AbandonedJournal
from nestor.backends.files.call_journal import FileCallJournal

__all__ = ["folder"]


def test_a_journal_that_is_kept_waits_for_a_taker_and_is_gone_after_it(
    folder: Path,
) -> None:
    journal = FileCallJournal(folder)
    do(journal, "a")
    fold(journal)
    journal.close(keep=True)
    with opened(folder) as taker:
        (left,) = taker.abandoned()
        assert (left.id, left.settled()) == (journal.id, None)
        left.close(keep=True)
        (left,) = taker.abandoned()
        assert left.id == journal.id
        left.close()
        assert taker.abandoned() == []
    assert list(folder.iterdir()) == []


def test_a_lock_alone_is_a_journal_as_well(folder: Path) -> None:
    journal = FileCallJournal(folder)
    die(journal)
    (path,) = folder.glob("*.jsonl")
    path.unlink()
    with opened(folder) as taker:
        (left,) = taker.abandoned()
        assert (left.id, left.waiting, left.settled()) == (journal.id, 0, None)
        # Held by one, whatever it does with it.
        with opened(folder) as other:
            assert other.abandoned() == []
        left.close()
    assert list(folder.iterdir()) == []


def test_a_lock_has_its_name_only_once_it_is_locked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = fcntl.flock, []

    def flock(fd: int, how: int) -> None:
        seen.append(list(folder.glob("*.lock")))
        real(fd, how)

    with opened(folder) as taker:
        monkeypatch.setattr(fcntl, "flock", flock)
        with opened(folder) as journal:
            assert len(seen) == 1
            assert [path.stem for path in seen[0]] == [taker.id]
            assert (folder / f"{journal.id}.lock").exists()
            monkeypatch.undo()
            assert taker.abandoned() == []
    assert list(folder.iterdir()) == []


def test_journals_that_begin_are_taken_by_nobody(folder: Path) -> None:
    stop = threading.Event()
    taken: list[AbandonedJournal] = []

    with opened(folder) as taker:

        def take() -> None:
            while not stop.is_set():
                taken.extend(taker.abandoned())

        thread = threading.Thread(target=take)
        thread.start()
        try:
            for _ in range(100):
                with opened(folder) as one:
                    do(one, "a")
                    fold(one)
        finally:
            stop.set()
            thread.join()
        # One that is about to be removed may be found; none that is in use.
        for left in taken:
            assert left.waiting == 0
            left.close()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("living", [True, False])
def test_what_is_set_aside_is_kept_and_its_place_let_go(
    folder: Path, living: bool
) -> None:
    journal = FileCallJournal(folder)
    do(journal, "a", "b", "c")
    taker = FileCallJournal(folder)
    if not living:
        die(journal)
    one = journal if living else taker.abandoned()[0]
    first = one.settled(limit=1)
    assert first
    one.set_aside(first, "planted")
    assert one.waiting == 2
    assert names_of(fold(one)) == ["b", "c"]
    one.close()
    taker.close()
    (kept,) = folder.iterdir()
    assert kept.name == f"{journal.id}.aside.bad"
    assert kept.stat().st_mode & 0o777 == 0o600

    # As a journal it holds the call as it ended.
    kept.rename(folder / f"{journal.id}.0.jsonl")
    (folder / f"{journal.id}.lock").touch(mode=0o600)
    with opened(folder) as last:
        (left,) = last.abandoned()
        assert fold(left) == [as_ended(a_call("a"))]
        left.close()
    assert list(folder.iterdir()) == []


def test_set_aside_twice_both_stand_there(folder: Path) -> None:
    with opened(folder) as journal:
        do(journal, "a", "b")
        while settled := journal.settled(limit=1):
            journal.set_aside(settled, "planted")
    (kept,) = folder.iterdir()
    lines = kept.read_text().splitlines()
    assert [line[:4] for line in lines] == ['["h"', '["e"', '["h"', '["e"']
