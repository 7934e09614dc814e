"""Faults in the measuring of retrieval, and in how several documents are taken in."""

from tools.faults.fault import Fault

_CLI, _UNIT = "tests/faces/test_cli_bench.py", "tests/unit/test_evaluation.py"
_STORE, _VECTORS = (
    "tests/contracts/test_knowledge_store.py",
    "tests/unit/test_aidb_vectors.py",
)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "aidb bench: an addition waits for the vectors of all others",
        (
            (
                "aidb/index_keeper.py",
                "            if moved:\n                await self._move()",
                "            if moved:\n                await self.drain()",
            ),
        ),
        (_VECTORS, "-k", "go_on_coming"),
    ),
    Fault(
        "aidb bench: two of one name are written at once",
        (
            (
                "backends/sql/knowledge_writes.py",
                "        if marks & seen:",
                "        if False:",
            ),
        ),
        (_STORE, "-k", "one_after_the_other"),
    ),
    Fault(
        "aidb bench: a name that another gives up is taken too early",
        (
            (
                "backends/sql/knowledge_writes.py",
                "    if len(items) > 1 and any(",
                "    if len(items) < 0 and any(",
            ),
        ),
        (_STORE, "-k", "one_after_the_other"),
    ),
    Fault(
        "aidb bench: each of several is a change of its own",
        (
            (
                "backends/sql/knowledge_store.py",
                "            gone = await knowledge_writes.write(connection, items)",
                """            gone = await knowledge_writes.write(connection, items[:1])
        async with self._database.write() as connection:
            gone += await knowledge_writes.write(connection, items[1:])""",
            ),
        ),
        (_STORE, "-k", "all_are_stored_or_none"),
    ),
    Fault(
        "aidb bench: the first place is discounted",
        (
            (
                "aidb/evaluation.py",
                "    return _discounted([gains.get(key, 0) for key in ranking[:at]]) / best",
                "    return _discounted([0, *(gains.get(key, 0) for key in ranking[:at])]) / best",
            ),
        ),
        (_UNIT,),
    ),
    Fault(
        "aidb bench: what is not relevant counts as found",
        (
            (
                "aidb/evaluation.py",
                "for key, gain in judged.items() if gain > 0}",
                "for key, gain in judged.items()}",
            ),
        ),
        (_UNIT,),
    ),
    Fault(
        "aidb bench: lines are counted from 0",
        (
            (
                "backends/files/judged_collection.py",
                "for number, raw in enumerate(file, 1):",
                "for number, raw in enumerate(file):",
            ),
        ),
        (_CLI, "-k", "no_utf_8"),
    ),
    Fault(
        "aidb bench: a document of many pieces fills the ranking",
        (
            (
                "wiring/evaluation.py",
                "or len(hits) < most or leg == FUSED:",
                "or True:",
            ),
        ),
        (_CLI, "-k", "many_pieces"),
    ),
    Fault(
        "aidb bench: a document is found by its number",
        (
            (
                "wiring/evaluation.py",
                'path = hashlib.sha256(document.id.encode(errors="replace")).hexdigest()[:24]',
                "path = hashlib.sha256(b'').hexdigest()[:0] + document.id",
            ),
        ),
        (_CLI, "-k", "by_its_id"),
    ),
)
