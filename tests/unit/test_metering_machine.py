"""Any order of calls, folds, crashes and recoveries: each call is kept exactly once."""

from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.contracts.test_call_journal import a_call, as_ended, die

from nestor.backends.files.call_journal import FileCallJournal
from nestor.model.routing import ModelCall
from nestor.ports.call_journal import Settled

WHICH = st.integers(0, 1)


class Sql:
    """What ``CallLedger.fold`` promises, and the event log, in a few lines."""

    def __init__(self) -> None:
        self.rows: dict[str, ModelCall] = {}
        self.places: dict[str, int] = {}

    def fold(self, settled: Settled) -> None:
        if settled.position <= self.places.get(settled.journal, 0):
            return
        self.places[settled.journal] = settled.position
        for call in settled.calls:
            self.rows.setdefault(call.interaction_id, call)


class Calls(RuleBasedStateMachine):
    """Two processes on one folder; ``ended`` and ``open`` say what the truth is."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.sql = Sql()
        self.sizes = cycle((100_000, 1500))
        self.journals = [self.process(), self.process()]
        self.taken: list[tuple[int, Any]] = []
        self.began: dict[str, int] = {}
        """Calls that are open, and in which process."""
        self.ended: set[str] = set()
        self.orphans: set[str] = set()
        self.number = 0

    def process(self) -> FileCallJournal:
        return FileCallJournal(
            self.folder,
            segment_bytes=next(self.sizes),
            kept_calls=2,
            fsync_interval_s=0.001,
        )

    @rule(which=WHICH, count=st.integers(1, 4))
    def begin(self, which: int, count: int) -> None:
        for _ in range(count):
            self.number += 1
            name = f"{self.number}"
            self.journals[which].begin(a_call(name))
            self.began[name] = which

    @rule(pick=st.integers(0, 9))
    def begin_again(self, pick: int) -> None:
        """Another deployment is asked."""
        if self.began:
            name = list(self.began)[pick % len(self.began)]
            self.journals[self.began[name]].begin(a_call(name))

    @rule(picks=st.lists(st.integers(0, 9), min_size=1, max_size=6))
    def end(self, picks: list[int]) -> None:
        for pick in picks:
            if self.began:
                name = list(self.began)[pick % len(self.began)]
                self.journals[self.began.pop(name)].end(as_ended(a_call(name)))
                self.ended.add(name)

    @rule(which=WHICH, limit=st.integers(1, 4), noted=st.booleans())
    def fold(self, which: int, limit: int, noted: bool) -> None:
        journal = self.journals[which]
        before = journal.waiting
        settled = journal.settled(limit=limit)
        assert (settled is None) == (before == 0)
        if settled is None:
            return
        assert len(settled.calls) == min(limit, before)
        self.sql.fold(settled)
        if noted:  # else its process was interrupted between commit and note
            journal.folded(settled)
            assert journal.waiting == before - len(settled.calls)

    @rule(which=WHICH, clean=st.booleans())
    def restart(self, which: int, clean: bool) -> None:
        if clean:
            self.journals[which].close()
        else:
            die(self.journals[which])
        gone = {name for name, owner in self.began.items() if owner == which}
        self.orphans |= gone
        for name in gone:
            del self.began[name]
        self.journals[which] = self.process()

    @rule(which=WHICH)
    def take(self, which: int) -> None:
        living = {journal.id for journal in self.journals}
        found = self.journals[which].abandoned()
        assert not living & {left.id for left in found}
        self.taken += [(which, left) for left in found]

    @rule(limit=st.integers(1, 4), noted=st.booleans())
    def recover(self, limit: int, noted: bool) -> None:
        for _, left in self.taken:
            if settled := left.settled(limit=limit):
                self.sql.fold(settled)
                if noted:
                    left.folded(settled)

    @rule(which=WHICH)
    def let_go(self, which: int) -> None:
        for owner, left in self.taken:
            if owner == which:
                left.close()
        self.taken = [pair for pair in self.taken if pair[0] != which]

    @invariant()
    def nothing_is_in_sql_that_was_not_so(self) -> None:
        for name, call in self.sql.rows.items():
            if name in self.ended:
                assert call == as_ended(a_call(name))
            else:
                assert name in self.orphans
                assert call.unsettled

    def teardown(self) -> None:
        for which in (0, 1):
            self.let_go(which)
        for journal in self.journals:
            die(journal)
        last = self.process()
        for left in last.abandoned():
            while settled := left.settled(limit=3):
                self.sql.fold(settled)
                left.folded(settled)
            left.close()
        last.close()
        whole = {f"{number}" for number in range(1, self.number + 1)}
        settled_ones = {n for n, call in self.sql.rows.items() if not call.unsettled}
        assert set(self.sql.rows) == whole
        assert settled_ones == self.ended
        assert list(self.folder.iterdir()) == []


def test_any_order_keeps_each_call_exactly_once(tmp_path: Path) -> None:
    number = Counter[str]()

    class InAFolder(Calls):
        def __init__(self) -> None:
            number["runs"] += 1
            super().__init__(tmp_path / f"{number['runs']}")

    run_state_machine_as_test(
        InAFolder,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
