"""Faults in the search index in process, and in what both kinds share."""

from tools.faults.fault import Fault

_CONTRACT = "tests/contracts/test_search_index.py"
_REBUILD = "tests/contracts/test_search_index_rebuild.py"
_EDGE = "tests/contracts/test_search_index_edge.py"
_BESIDE = "tests/contracts/test_search_index_beside.py"
_KILL = "tests/system/test_index_kill.py"

FAULTS = (
    Fault(
        "aidb index: vectors of any model are compared",
        (
            (
                "backends/qdrant/points.py",
                "if own is None or stamp != own:",
                "if own is None:",
            ),
        ),
        (_CONTRACT, "-k", "another_model"),
    ),
    Fault(
        "aidb index: zero is a vector",
        (
            (
                "backends/qdrant/points.py",
                "if not math.isfinite(norm) or norm == 0.0:",
                "if not math.isfinite(norm):",
            ),
        ),
        (_CONTRACT, "-k", "no_vector_of_its_dimension"),
    ),
    Fault(
        "aidb index: the dimension is the engine's business",
        (
            (
                "backends/qdrant/points.py",
                "if len(vector) != dimension:",
                "if len(vector) < dimension:",
            ),
        ),
        (_CONTRACT, "-k", "no_vector_of_its_dimension"),
    ),
    Fault(
        "aidb index: metadata is joined with a sign",
        (
            (
                "backends/qdrant/points.py",
                "return msgspec.json.encode([encodable(key), encodable(value)]).decode()",
                'return f"{encodable(key)}={encodable(value)}"',
            ),
        ),
        (_CONTRACT, "-k", "every_field_of_where"),
    ),
    Fault(
        "aidb index: a prefix means the whole path",
        (
            (
                "backends/qdrant/shard.py",
                'match=qdrant.MatchPrefix(one.prefix or "")',
                'match=qdrant.MatchValue(one.prefix or "")',
            ),
        ),
        (_CONTRACT, "-k", "every_field_of_where and edge"),
    ),
    Fault(
        "aidb index: a page begins with the last one's end",
        (
            (
                "backends/qdrant/shard.py",
                "if (found := str(r.id)) != after][:limit]",
                "if (found := str(r.id))][:limit]",
            ),
        ),
        (_CONTRACT, "-k", "in_pages and edge"),
    ),
    Fault(
        "aidb index: what was weighed by a guess stays so",
        (
            (
                "backends/qdrant/generations.py",
                "        shard.weigh_again()",
                "        del shard",
            ),
        ),
        (_REBUILD, "-k", "weight_of_words and edge"),
    ),
    Fault(
        "aidb index: what was weighed by a guess on a server stays so",
        (
            (
                "backends/qdrant/server_collection.py",
                "for part in _sliced(changed):",
                "for part in _sliced(changed[:0]):",
            ),
        ),
        (_REBUILD, "-k", "weight_of_words and (memory or http)"),
    ),
    Fault(
        "aidb index: longer chunks do not matter",
        (("backends/qdrant/points.py", "DRIFT = 2.0", "DRIFT = 200.0"),),
        (_REBUILD, "-k", "much_longer"),
    ),
    Fault(
        "aidb index: words are weighed without their length",
        (
            (
                "backends/qdrant/points.py",
                "rest = self._k * (1 - self._b + self._b * share)",
                "rest = self._k",
            ),
        ),
        (_EDGE, "-k", "engines_own_model"),
    ),
    Fault(
        "aidb index: numbers of generations are used again",
        (
            (
                "backends/qdrant/folder.py",
                "current[0] if current else 0, self._last]",
                "current[0] if current else 0]",
            ),
        ),
        (_REBUILD, "-k", "second_rebuild and edge"),
    ),
    Fault(
        "aidb index: names of collections are used again",
        (
            (
                "backends/qdrant/server_requests.py",
                "self._last = max(self._last, *numbers, 0) + 1",
                "self._last = max([0, *numbers]) + 1",
            ),
        ),
        (_REBUILD, "-k", "second_rebuild and (memory or http)"),
    ),
    Fault(
        "aidb index: stop words ask nobody",
        (
            (
                "backends/qdrant/shard.py",
                "        return self.call(ask)\n",
                "        if by_words is by_dense:\n            return Legs(bm25=[])\n        return self.call(ask)\n",
            ),
        ),
        (_EDGE, "-k", "damaged_folder"),
    ),
    Fault(
        "aidb index: nobody else is kept out",
        (
            (
                "backends/qdrant/folder.py",
                "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)",
                "fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)",
            ),
        ),
        (_EDGE, "-k", "second_process"),
    ),
    Fault(
        "aidb index: a broken flush is the end",
        (
            (
                "backends/qdrant/shard.py",
                "for last in (False, True):",
                "for last in (True,):",
            ),
        ),
        (_EDGE, "-k", "ignores_the_lock"),
    ),
    Fault(
        "aidb index: files in use are taken for damaged ones",
        (("backends/qdrant/shard.py", '"WouldBlock" in str(error)', '"?" in ""'),),
        (_EDGE, "-k", "stranger"),
    ),
    Fault(
        "aidb index: a batch is one call of the engine",
        (("backends/qdrant/shard.py", "_SLICE = 64", "_SLICE = 64_000"),),
        (_BESIDE, "-k", "while_a_batch"),
    ),
    Fault(
        "aidb index: what is written beside the graph is forgotten",
        (
            (
                "backends/qdrant/generations.py",
                "            self._changed.update(chunk_ids)",
                "            self._changed.clear()",
            ),
        ),
        (_BESIDE, "-k", "misses_no_write"),
    ),
    Fault(
        "aidb index: what is removed beside the graph comes back",
        (
            (
                "backends/qdrant/generations.py",
                "new.remove(sorted(set(changed) - {str(one.id) for one in kept}))",
                "new.remove([])",
            ),
        ),
        (_BESIDE, "-k", "misses_no_write"),
    ),
    Fault(
        "aidb index: the graph goes on after the index was emptied",
        (
            (
                "backends/qdrant/edge.py",
                "            self._builder.stop()\n            await asyncio.wait([task])\n",
                "            return\n",
            ),
        ),
        (_BESIDE, "-k", "goes_when_the_index_is_emptied"),
    ),
    Fault(
        "aidb index: a new generation counts until the restart only",
        (
            (
                "backends/qdrant/generations.py",
                "        self._point_at(number, shard.made)\n        with self.turn:",
                "        with self.turn:",
            ),
        ),
        (_EDGE, "-k", "reopening"),
    ),
    Fault(
        "aidb index: a new generation counts before it is filled",
        (
            (
                "backends/qdrant/generations.py",
                "        self._next = number, shard\n",
                "        self._next = number, shard\n        if self._shard is not None:\n            self._point_at(number, shard.made)\n",
            ),
        ),
        (_KILL, "-k", "rebuild"),
    ),
    Fault(
        "aidb index: what a crash left stays",
        (
            (
                "backends/qdrant/generations.py",
                "        self._folder.remove_others(self._number)\n        self._shard =",
                "        self._shard =",
            ),
        ),
        (_KILL, "-k", "rebuild"),
    ),
    Fault(
        "aidb index: the last chunks wait for the next call",
        (
            (
                "backends/qdrant/generations.py",
                "        shard.upsert(entries)\n",
                "        late = [*getattr(self, 'late', []), *entries]\n        self.late = late[-2:]\n        shard.upsert(late[:-2])\n",
            ),
        ),
        (_KILL, "-k", "acknowledged"),
    ),
    Fault(
        "aidb index: a folder is any beginning",
        (
            (
                "backends/qdrant/points.py",
                "for end in ends[:_DEEPEST]]",
                "for end in ends[: _DEEPEST - 1]]",
            ),
            (
                "backends/qdrant/points.py",
                "if folders(prefix)[-1:] == [prefix]:",
                'if prefix.endswith("/"):',
            ),
        ),
        (_CONTRACT, "-k", "deepest_folder"),
    ),
)
