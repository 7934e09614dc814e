# ruff: noqa: SLF001 - it looks inside the index to ask the engine itself
"""What a search of AIDB's index costs beside the engine itself, Chroma and LanceDB.

    python -m bench.bench_knowledge [--chunks 100000] [--rounds 5] [--only nestor,chroma] [--json]

The same made-up chunks for everybody (384 numbers in 2,000 clusters, 60 words), the same
200 questions, asked in turn, round after round, another system first in each. ``nestor``
is ``QdrantEdgeIndex.search`` by vector; ``raw`` is one call of the engine on the same files
with the same parameters; ``raw-default`` is that call with the engine's own parameters.
``nestor-both`` asks by vector and by words at once, 100 hits of each, as AIDB does, and
``nestor-ranked`` ranks them, too; ``raw-both`` is two calls of the engine for these hits.
Chroma and LanceDB run in processes of their own, and the clock runs around their call
only. Recall is against looking at every vector with numpy. Written to
bench/results/knowledge.json.

The peers' environment is made by:

    .venv/bin/uv venv --python .venv/bin/python .cache/peers/vectors
    .venv/bin/uv pip install --python .cache/peers/vectors/bin/python chromadb lancedb numpy
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import qdrant_edge as qdrant
from bench.knowledge.corpus import ASKED, FILTERS, STAMP, MadeUp, where
from bench.measured import (
    PEERS,
    RESULTS,
    commit,
    machine,
    share,
    spread,
    version_in,
)

from nestor.aidb.ranking import rank
from nestor.aidb.service import Aidb
from nestor.backends.documents.children import DocumentChildren
from nestor.backends.files.event_log import FileEventLog
from nestor.backends.qdrant import shard
from nestor.backends.qdrant.edge import QdrantEdgeIndex
from nestor.backends.sql.database import Database
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.model.knowledge import ContextRequest, Hit, NewDocument, Where
from nestor.telemetry.learning_client import LearningClient

RESULT = RESULTS / "knowledge.json"
PYTHON = PEERS / "vectors/bin/python"
LIMIT, BOTH_LIMIT = 10, 100
BOTH = "raw-both"
CHUNKS_AT_ONCE = 500
AT_A_TIME = 50
"""Questions put to one system before the next one's turn."""
CACHED_CALLS = 5_000
Asked = tuple[list[float], list[list[int]]]


class System(Protocol):
    """Somebody who is asked."""

    name: str

    async def ask(
        self, numbers: Sequence[int], projects: list[str] | None
    ) -> Asked: ...


class Ours:
    """``QdrantEdgeIndex.search`` by vector, or by vector and words, perhaps ranked."""

    def __init__(self, index: QdrantEdgeIndex, made: MadeUp, name: str) -> None:
        self.name = name
        self._index, self._made = index, made

    async def ask(self, numbers: Sequence[int], projects: list[str] | None) -> Asked:
        ms, rows = [], []
        for number in numbers:
            vector = self._made.queries[number].tolist()
            began = time.perf_counter()
            hits = await self._hits(number, vector, where(projects))
            ms.append(1e3 * (time.perf_counter() - began))
            rows.append([self._made.row_of[hit.chunk_id] for hit in hits[:LIMIT]])
        return ms, rows

    async def _hits(self, number: int, vector: list[float], held: Where) -> list[Hit]:
        words = self._made.questions[number]
        if self.name == "nestor-ranked":
            return await rank(
                self._index, words, vector=vector, stamp=STAMP, limit=LIMIT, where=held
            )
        both = self.name == "nestor-both"
        legs = await self._index.search(
            vector=vector,
            query=words if both else None,
            stamp=STAMP,
            limit=BOTH_LIMIT if both else LIMIT,
            where=held,
            pairs=both,
        )
        return legs.dense or []


class Raw:
    """Calls of the engine, in this thread, on the files of our own index."""

    def __init__(self, index: QdrantEdgeIndex, made: MadeUp, name: str) -> None:
        self.name = name
        self._index, self._made = index, made

    async def ask(self, numbers: Sequence[int], projects: list[str] | None) -> Asked:
        ours = self._index._all.current
        engine = ours._engine
        held = shard._filter(where(projects))
        limit = BOTH_LIMIT if self.name == BOTH else LIMIT
        how = None
        if self.name != "raw-default":
            how = ours._how(engine, limit, held)
        ms, rows = [], []
        for number in numbers:
            vector = self._made.queries[number].tolist()
            asked = [(qdrant.Query.Nearest(vector, using="dense"), how)]
            if self.name == BOTH:
                text = self._made.questions[number]
                sparse = self._index._all.weights.query(text, pairs=True)
                words = qdrant.Query.Nearest(shard._sparse(sparse), using="bm25")
                asked.append((words, None))
            began = time.perf_counter()
            found = [_asked(engine, query, limit, held, way) for query, way in asked]
            ms.append(1e3 * (time.perf_counter() - began))
            rows.append([self._made.row_of[one] for one in found[0][:LIMIT]])
        return ms, rows


def _asked(engine: Any, query: Any, limit: int, held: Any, how: Any) -> list[str]:
    request = qdrant.QueryRequest(
        limit=limit, query=query, filter=held, params=how, with_payload=False
    )
    return [str(point.id) for point in engine.query(request)]


class Peer:
    """Another store in a process and an environment of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        script = Path(__file__).parent / "knowledge/vector_peers.py"
        self._process = subprocess.Popen(
            [str(PYTHON), str(script), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LANCE_LOG": "error", "RUST_LOG": "error"},
        )
        self.built_s: float = self._read()["built_s"]

    async def ask(self, numbers: Sequence[int], projects: list[str] | None) -> Asked:
        asked = {"queries": list(numbers), "projects": projects, "limit": LIMIT}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        found = await asyncio.to_thread(self._read)
        return found["ms"], found["rows"]

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


class Seen(NamedTuple):
    """One system, one filter, one round."""

    p50_ms: float
    p95_ms: float
    recall: float


async def main(options: argparse.Namespace) -> dict[str, Any]:
    made = MadeUp(options.chunks)
    only = options.only.split(",") if options.only else None
    with tempfile.TemporaryDirectory(prefix="nestor-bench-") as folder:
        async with await QdrantEdgeIndex.open(Path(folder) / "qdrant") as index:
            built = await _filled(index, made)
            systems: list[System] = [
                Ours(index, made, "nestor"),
                Raw(index, made, "raw"),
                Raw(index, made, "raw-default"),
                Ours(index, made, "nestor-both"),
                Ours(index, made, "nestor-ranked"),
                Raw(index, made, BOTH),
            ]
            peers = []
            made.write(Path(folder))
            for name in ("chroma", "lancedb"):
                if PYTHON.exists() and (only is None or name in only):
                    _say(f"filling {name}")
                    peers.append(Peer(name, Path(folder)))
                    built[name] = {"built_s": peers[-1].built_s}
            try:
                seen = await _rounds([*systems, *peers], made, options.rounds)
            finally:
                for peer in peers:
                    peer.stop()
        home = Path(folder) / "aidb"
        await asyncio.to_thread(home.mkdir)
        context = await _cached(home)
    return {
        "command": f"python -m bench.bench_knowledge {' '.join(sys.argv[1:])}".strip(),
        "at": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": _versions([peer.name for peer in peers]),
        "chunks": options.chunks,
        "dimension": made.vectors.shape[1],
        "questions": ASKED,
        "limit": LIMIT,
        "rounds": options.rounds,
        "built": built,
        "searches": _summary(seen),
        "cached_context": context,
    }


async def _filled(index: QdrantEdgeIndex, made: MadeUp) -> dict[str, Any]:
    _say("filling the index")
    await index.clear(STAMP)
    began = time.perf_counter()
    for at in range(0, made.size, CHUNKS_AT_ONCE):
        last = min(made.size, at + CHUNKS_AT_ONCE)
        await index.upsert([made.entry(number) for number in range(at, last)])
    inserted = time.perf_counter() - began
    began = time.perf_counter()
    while (task := index._graph) is not None:
        _say(f"the graph is being built, {time.perf_counter() - began:.0f} s")
        await asyncio.wait([task], timeout=30)
    return {
        "nestor": {
            "insert_s": round(inserted, 1),
            "graph_s": round(time.perf_counter() - began, 1),
            "in_graph": index._all.current.made.in_graph,
        }
    }


async def _rounds(
    systems: Sequence[System], made: MadeUp, rounds: int
) -> dict[str, dict[str, list[Seen]]]:
    right = {name: made.nearest(projects, LIMIT) for name, projects in FILTERS.items()}
    seen: dict[str, dict[str, list[Seen]]] = {name: {} for name in FILTERS}
    for system in systems:  # what is read for the first time is nobody's
        await system.ask(range(10), None)
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        turn = number % len(systems)
        order = [*systems[turn:], *systems[:turn]]
        for name, projects in FILTERS.items():
            ms: dict[str, list[float]] = {system.name: [] for system in systems}
            hits = dict.fromkeys(ms, 0)
            for first in range(0, ASKED, AT_A_TIME):
                asked = range(first, first + AT_A_TIME)
                for system in order:
                    took, rows = await system.ask(asked, projects)
                    ms[system.name] += took
                    hits[system.name] += sum(
                        len(right[name][question] & set(found))
                        for question, found in zip(asked, rows, strict=True)
                    )
            for system in systems:
                took = ms[system.name]
                recall = hits[system.name] / (ASKED * LIMIT)
                one = Seen(share(took, 0.5), share(took, 0.95), recall)
                seen[name].setdefault(system.name, []).append(one)
    return seen


def _summary(seen: dict[str, dict[str, list[Seen]]]) -> dict[str, Any]:
    """Medians over rounds; ratios are formed within a round, where all were as disturbed.

    ``times_raw``: a p50 of AIDB's by that of the engine, called directly for the same.
    ``nestor_by_this_p50``: that of a search by vector, by another's.
    """
    found: dict[str, Any] = {}
    for name, systems in seen.items():
        found[name] = {}
        for system, rounds in systems.items():
            told: dict[str, Any] = {
                "p50_ms": spread((one.p50_ms for one in rounds), 3),
                "p95_ms": spread((one.p95_ms for one in rounds), 3),
            }
            if system == "nestor":
                told["times_raw"] = _times(rounds, systems["raw"])
            elif system in {"nestor-both", "nestor-ranked"}:
                told["times_raw"] = _times(rounds, systems[BOTH])
            elif system != BOTH:
                told["nestor_by_this_p50"] = _times(systems["nestor"], rounds)
            if system != "nestor-ranked":  # which is no order by nearness
                told["recall@10"] = round(min(one.recall for one in rounds), 4)
            found[name][system] = told
    return found


def _times(these: Sequence[Seen], those: Sequence[Seen]) -> dict[str, float]:
    return spread((a.p50_ms / b.p50_ms for a, b in zip(these, those, strict=True)), 3)


async def _cached(home: Path) -> dict[str, Any]:
    """Ask AIDB for the same context again and again, in this process."""
    log = FileEventLog(home / "telemetry")
    try:
        async with (
            Database.open(f"sqlite:///{home / 'nestor.db'}") as database,
            await QdrantEdgeIndex.open(home / "qdrant") as index,
            DocumentChildren() as reader,
        ):
            learning = LearningClient(log, "aidb")
            store = SqlKnowledgeStore(database)
            aidb = Aidb(store, index, learning, reader=reader)
            await aidb.start()
            try:
                await aidb.add_all(_notes())
                return await _asked_again(lambda: aidb.get_context(_REQUEST))
            finally:
                await aidb.stop()
    finally:
        log.close()


_REQUEST = ContextRequest(query="which washer does a dripping tap want", limit=5)


def _notes() -> list[NewDocument]:
    return [
        NewDocument(
            project="notes",
            path=f"note-{number}.md",
            content=f"# Tap {number}\n\nA dripping tap of make {number} wants a washer.",
        )
        for number in range(100)
    ]


async def _asked_again(ask: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    await ask()
    took = []
    cpu, cached = time.process_time(), 0
    for _ in range(CACHED_CALLS):
        began = time.perf_counter()
        found = await ask()
        took.append(1e6 * (time.perf_counter() - began))
        cached += found.cached
    cpu = 1e6 * (time.process_time() - cpu) / CACHED_CALLS
    return {
        "calls": CACHED_CALLS,
        "cached": cached,
        "p50_us": round(share(took, 0.5), 1),
        "p95_us": round(share(took, 0.95), 1),
        "cpu_us": round(cpu, 1),
    }


def _versions(peers: Sequence[str]) -> dict[str, str]:
    found = {"qdrant-edge-py": version_in(Path(sys.executable), "qdrant-edge-py")}
    packages = {"chroma": "chromadb", "lancedb": "lancedb"}
    found |= {packages[name]: version_in(PYTHON, packages[name]) for name in peers}
    return {**found, "commit": commit()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="peers, by comma; none: leave them all out")
    parser.add_argument("--json", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    result = json.dumps(asyncio.run(main(given)), indent=1)
    if given.json:
        print(result)
    else:
        RESULT.write_text(result + "\n")
