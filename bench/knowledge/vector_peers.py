"""Other vector stores in a process of their own, asked over stdin and stdout.

    .cache/peers/vectors/bin/python bench/knowledge/vector_peers.py chroma FOLDER

Runs in the peers' environment, so it imports nothing of Nestor. ``FOLDER`` holds
``vectors.npy``, ``queries.npy`` and ``corpus.jsonl`` (see ``corpus.py``). Each line of
stdin is a question ``{"queries": [0, 1, …], "projects": null | […], "limit": 10}``;
each line of stdout answers ``{"ms": […], "rows": [[…], …]}``. The clock runs around the
call of the library alone.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

M, EF_CONSTRUCT, EF = 16, 128, 256
"""Of the graph, wherever it can be chosen: the same for everybody."""
BATCH = 2000


class Chroma:
    """A persistent collection; its index is a graph (HNSW)."""

    def __init__(self, folder: Path, vectors: np.ndarray, rows: list[dict]) -> None:
        import chromadb  # noqa: PLC0415
        from chromadb.config import Settings  # noqa: PLC0415

        client = chromadb.PersistentClient(
            str(folder / "chroma"), settings=Settings(anonymized_telemetry=False)
        )
        self.collection = client.create_collection(
            "chunks",
            embedding_function=None,
            configuration={
                "hnsw": {
                    "space": "cosine",
                    "max_neighbors": M,
                    "ef_construction": EF_CONSTRUCT,
                    "ef_search": EF,
                }
            },
        )
        for at in range(0, len(rows), BATCH):
            part = rows[at : at + BATCH]
            self.collection.add(
                ids=[str(at + n) for n in range(len(part))],
                embeddings=vectors[at : at + BATCH],
                documents=[row["text"] for row in part],
                metadatas=[
                    {"project": row["project"], "path": row["path"]} for row in part
                ],
            )

    def ask(self, vector: np.ndarray, projects: list[str] | None, limit: int) -> list:
        where = {"project": {"$in": projects}} if projects else None
        return self.collection.query(
            query_embeddings=[vector], n_results=limit, where=where, include=[]
        )["ids"][0]


class LanceDb:
    """A table with an index of graphs over quantised vectors, and one of the projects."""

    def __init__(self, folder: Path, vectors: np.ndarray, rows: list[dict]) -> None:
        import lancedb  # noqa: PLC0415
        import pyarrow as pa  # noqa: PLC0415
        from lancedb.index import Bitmap, HnswSq  # noqa: PLC0415

        database = lancedb.connect(str(folder / "lancedb"))
        flat = pa.array(vectors.reshape(-1), pa.float32())
        columns = {
            "id": pa.array(range(len(rows)), pa.int64()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            **{
                name: pa.array([row[name] for row in rows])
                for name in ("project", "path", "text")
            },
        }
        self.table = database.create_table("chunks", pa.table(columns))
        if len(rows) >= 10_000:
            graph = HnswSq(
                distance_type="cosine",
                num_partitions=1,
                m=M,
                ef_construction=EF_CONSTRUCT,
            )
            self.table.create_index("vector", config=graph)
        self.table.create_index("project", config=Bitmap())

    def ask(self, vector: np.ndarray, projects: list[str] | None, limit: int) -> list:
        query = (
            self.table.search(vector)
            .distance_type("cosine")
            .ef(EF)
            .refine_factor(4)
            .select(["id", "_distance"])
            .limit(limit)
        )
        if projects:
            names = ", ".join(f"'{name}'" for name in projects)
            query = query.where(f"project IN ({names})", prefilter=True)
        return query.to_arrow()["id"].to_pylist()


def main() -> None:
    system = {"chroma": Chroma, "lancedb": LanceDb}[sys.argv[1]]
    folder = Path(sys.argv[2])
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
    began = time.perf_counter()
    store = system(folder, vectors, rows)
    tell({"built_s": round(time.perf_counter() - began, 1)})
    for line in sys.stdin:
        asked = json.loads(line)
        ms, found = [], []
        for number in asked["queries"]:
            began = time.perf_counter()
            ids = store.ask(queries[number], asked["projects"], asked["limit"])
            ms.append(1e3 * (time.perf_counter() - began))
            found.append([int(one) for one in ids])
        tell({"ms": ms, "rows": found})


def tell(answer: dict) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
