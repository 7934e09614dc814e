"""LlamaIndex's ingestion of the same files with the same embedder, in its environment.

    PYTHONPATH=src .cache/peers/llamaindex/bin/python bench/knowledge/llamaindex_peer.py \
        FILES STORE MODEL

Of Nestor only the embedder is imported (``OnnxModel``, a text at a time in two threads,
as Nestor uses it). ``STORE`` is loaded if it is there, and kept. Prints one line of JSON.
Started anew for each ingest, as a command is.
"""

import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import MarkdownNodeParser
from llama_index.core.schema import Document
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import PrivateAttr

from nestor.backends.embeddings.onnx_model import OnnxModel

THREADS = 2


class Embedder(BaseEmbedding):
    """The same model."""

    _model: Any = PrivateAttr()
    _pool: Any = PrivateAttr()
    _spent: Any = PrivateAttr()

    def __init__(self, folder: Path) -> None:
        super().__init__(embed_batch_size=128)
        self._model = OnnxModel.load(folder)
        self._pool = ThreadPoolExecutor(THREADS)
        self._spent = {"texts": 0, "busy_s": 0.0, "cpu_s": 0.0}

    @property
    def spent(self) -> dict[str, float]:
        return self._spent

    def _one(self, text: str) -> tuple[list[float], float]:
        began = time.thread_time()
        return self._model.vector(text), time.thread_time() - began

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        began = time.monotonic()
        found = list(self._pool.map(self._one, texts))
        self._spent["busy_s"] += time.monotonic() - began
        self._spent["cpu_s"] += sum(cpu for _, cpu in found)
        self._spent["texts"] += len(texts)
        return [vector for vector, _ in found]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def main() -> None:
    files, store, model = (Path(one) for one in sys.argv[1:4])
    began = time.monotonic()
    embedder = Embedder(model)
    there = (store / "docstore.json").exists()
    docstore = (
        SimpleDocumentStore.from_persist_path(str(store / "docstore.json"))
        if there
        else SimpleDocumentStore()
    )
    vectors = (
        SimpleVectorStore.from_persist_path(str(store / "vectors.json"))
        if there
        else SimpleVectorStore(stores_text=False)
    )
    pipeline = IngestionPipeline(
        transformations=[MarkdownNodeParser(), embedder],
        docstore=docstore,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        vector_store=vectors,
        disable_cache=True,  # what is unchanged is known by its document's hash
    )
    loaded = time.monotonic()
    documents = [
        Document(
            text=path.read_text(), doc_id=str(path.relative_to(files)), metadata={}
        )
        for path in sorted(files.rglob("*.md"))
    ]
    nodes = pipeline.run(documents=documents)
    ran = time.monotonic()
    store.mkdir(parents=True, exist_ok=True)
    docstore.persist(str(store / "docstore.json"))
    vectors.persist(str(store / "vectors.json"))
    ended = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "wall_s": ended - began,
        "load_s": loaded - began,
        "run_s": ran - loaded,
        "persist_s": ended - ran,
        "cpu_s": used.ru_utime + used.ru_stime,
        "texts": len(nodes),
        "embedder": embedder.spent,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
