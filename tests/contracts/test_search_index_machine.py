"""Any order of writes, removals, rebuilds and restarts, against a plain dict."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from qdrant_client import AsyncQdrantClient
from tests.contracts.search_indexes import OTHER, STAMP, entry

from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.qdrant.server import QdrantServerIndex
from nestor.model.knowledge import Collection, EmbeddingStamp, Entry, Where
from nestor.ports.search_index import Rebuild, SearchIndex

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]
_WORDS = ("walrus", "otter", "lynx", "beaver")
_PATHS = ("src/a.py", "src/b.py", "doc/a.md", "s")
_METADATA: tuple[dict[str, str], ...] = ({}, {"lang": "py"}, {"lang": "md", "x": "y"})
_VECTORS = (None, [1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0])
entries = st.lists(
    st.builds(
        lambda key, words, path, collection, project, metadata, vector: entry(
            " ".join(words),
            collection,
            key=key,
            path=path,
            project=project,
            metadata=metadata,
            vector=vector,
        ),
        st.sampled_from("abcdefgh"),
        st.lists(st.sampled_from(_WORDS), max_size=5),
        st.sampled_from(_PATHS),
        st.sampled_from(list(Collection)[:2]),
        st.sampled_from("pq"),
        st.sampled_from(_METADATA),
        st.sampled_from(_VECTORS),
    ),
    max_size=5,
)
wheres = st.builds(
    Where,
    collections=st.none() | st.lists(st.sampled_from(list(Collection)[:2]), max_size=2),
    projects=st.none() | st.lists(st.sampled_from("pqr"), max_size=2),
    path_prefix=st.none() | st.sampled_from(["", "s", "src/", "src/a.py", "x"]),
    metadata=st.none() | st.sampled_from([{}, {"lang": "py"}, {"x": "y"}]),
)


def _holds(one: Entry, where: Where) -> bool:
    document = one.document
    return (
        (where.collections is None or document.collection in where.collections)
        and (where.projects is None or document.project in where.projects)
        and document.path.startswith(where.path_prefix or "")
        and (where.metadata or {}).items() <= document.metadata.items()
    )


class _Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.held: dict[str, Entry] = {}
        self.stamp: EmbeddingStamp | None = None
        self.next: dict[str, Entry] | None = None
        self.next_stamp: EmbeddingStamp | None = None
        self.rebuild: Rebuild | None = None

    async def opened(self) -> SearchIndex:
        raise NotImplementedError

    def run(self, awaitable: Any) -> Any:
        return self.runner.run(awaitable)

    @initialize()
    def start(self) -> None:
        self.index = self.run(self.opened())

    @rule(some=entries)
    def upsert(self, some: list[Entry]) -> None:
        some = self._fit(some, self.stamp)
        self.run(self.index.upsert(some))
        self.held |= {one.chunk.id: one for one in some}

    @rule(some=entries)
    def remove(self, some: list[Entry]) -> None:
        ids = [one.chunk.id for one in some]
        self.run(self.index.remove(ids))
        for one in ids:
            self.held.pop(one, None)

    @rule(stamp=st.sampled_from([None, STAMP, OTHER]))
    def clear(self, stamp: EmbeddingStamp | None) -> None:
        self.run(self.index.clear(stamp))
        self.held, self.stamp = {}, stamp
        self.rebuild = None

    @rule(stamp=st.sampled_from([None, STAMP, OTHER]))
    def begin_rebuild(self, stamp: EmbeddingStamp | None) -> None:
        self.rebuild = self.run(self.index.rebuild(stamp))
        self.next, self.next_stamp = {}, stamp

    @precondition(lambda self: self.rebuild is not None)
    @rule(some=entries, gone=entries)
    def fill(self, some: list[Entry], gone: list[Entry]) -> None:
        assert self.rebuild is not None
        assert self.next is not None
        some = self._fit(some, self.next_stamp)
        self.run(self.rebuild.upsert(some))
        self.next |= {one.chunk.id: one for one in some}
        self.run(self.rebuild.remove([one.chunk.id for one in gone]))
        for one in gone:
            self.next.pop(one.chunk.id, None)

    @precondition(lambda self: self.rebuild is not None)
    @rule(keep=st.booleans())
    def finish(self, keep: bool) -> None:
        assert self.rebuild is not None
        assert self.next is not None
        if keep:
            self.run(self.rebuild.swap())
            self.held, self.stamp = self.next, self.next_stamp
        else:
            self.run(self.rebuild.discard())
        self.rebuild = None

    @precondition(lambda self: self.held)
    @rule(
        words=st.lists(st.sampled_from([*_WORDS, "giraffe", "the"]), max_size=3),
        where=wheres,
    )
    def search_by_words(self, words: list[str], where: Where) -> None:
        legs = self.run(self.index.search(query=" ".join(words), limit=50, where=where))
        wanted = {
            one.chunk.id
            for one in self.held.values()
            if _holds(one, where) and set(words) & set(one.chunk.text.split())
        }
        assert {hit.chunk_id for hit in legs.bm25} == wanted
        assert len(legs.bm25) == len(wanted)

    @precondition(lambda self: self.stamp is not None)
    @rule(vector=st.sampled_from(_VECTORS[1:]), where=wheres)
    def search_by_nearness(self, vector: list[float], where: Where) -> None:
        legs = self.run(
            self.index.search(vector=vector, stamp=self.stamp, limit=50, where=where)
        )
        wanted = {
            one.chunk.id: sum(a * b for a, b in zip(one.vector, vector, strict=True))
            for one in self.held.values()
            if one.vector is not None and _holds(one, where)
        }
        got = {hit.chunk_id: hit.score for hit in legs.dense}
        assert got == pytest.approx(wanted, abs=1e-5)
        assert [h.score for h in legs.dense] == sorted(got.values(), reverse=True)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "index"):
            return
        assert self.run(self.index.count()) == len(self.held)
        assert self.run(self.index.ids()) == sorted(self.held)
        assert self.run(self.index.stamp()) == self.stamp
        assert self.run(self.index.entries(list(self.held))) == {
            key: (one.chunk, one.document) for key, one in self.held.items()
        }

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.run(self.index.close())
        self.runner.close()

    @staticmethod
    def _fit(some: list[Entry], stamp: EmbeddingStamp | None) -> list[Entry]:
        if stamp is not None:
            return some
        return [Entry(chunk=one.chunk, document=one.document) for one in some]


class _EdgeMachine(_Machine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="nestor-machine-"))

    async def opened(self) -> SearchIndex:
        return await QdrantEdgeIndex.open(self.folder / "qdrant")

    @rule()
    def reopen(self) -> None:
        self.run(self.index.close())
        self.index = self.run(self.opened())
        self.rebuild = None

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


class _MemoryMachine(_Machine):
    def __init__(self) -> None:
        super().__init__()
        self.client = AsyncQdrantClient(location=":memory:")

    async def opened(self) -> SearchIndex:
        return QdrantServerIndex(self.client)

    @rule()
    def reopen(self) -> None:
        """Another process: the server keeps what it has."""
        self.index = self.run(self.opened())


@pytest.mark.parametrize(
    ("machine", "sample", "full", "steps"),
    [(_EdgeMachine, 2, 60, 12), (_MemoryMachine, 20, 300, 25)],
    ids=["edge", "memory"],
)
def test_any_order_of_calls_agrees_with_a_dict(
    request: pytest.FixtureRequest,
    machine: type[_Machine],
    sample: int,
    full: int,
    steps: int,
) -> None:
    count = full if request.config.getoption("--prove") else sample
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
