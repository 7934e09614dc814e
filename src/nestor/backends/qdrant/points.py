"""What a chunk looks like inside Qdrant: the same in process (Edge) and on a server.

A point carries two named vectors: ``dense`` (cosine) and ``bm25`` (sparse; the engine
multiplies by the words' rarity). Its payload is the whole chunk and its document, so that
the index can answer without SQL.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from nestor.errors import IndexDamaged, InvalidInput, OtherVectors
from nestor.model.knowledge import (
    Chunk,
    Document,
    EmbeddingStamp,
    Entry,
    Vectors,
    Where,
)

SCHEMA = 3
"""Raise it when points are made differently: an older index is then refilled."""
DENSE, BM25 = "dense", "bm25"
LENGTH = "length"
"""Payload: the chunk's words without stop words."""
PAIRS = "pairs"
"""Payload: the document's metadata, each pair as one text that can be matched whole."""
FOLDERS = "folders"
"""Payload: ``src/`` and ``src/a/`` of ``src/a/b.py``: a folder is found as fast as a project."""
_DEEPEST = 16
COLLECTION, PROJECT, PATH = "document.collection", "document.project", "document.path"
FIELDS = {
    COLLECTION: False,
    PROJECT: False,
    PATH: True,
    FOLDERS: False,
    PAIRS: False,
}
"""What is filtered by, each with an index of its own. True: by its beginning too."""
USUAL_LENGTH = 100.0
"""Mean words of a chunk, until there are enough to know it."""
ENOUGH = 256
"""So many chunks tell the mean length."""
SAMPLE = 4000
DRIFT = 2.0
"""The mean length may become so many times longer or shorter before it matters."""
_COUNTED_K = 1e6
_NEIGHBOURS = 2**31
"""The engine's numbers of words are below it, ours of pairs of neighbours above."""
_PAIR_WEIGHT = 0.15 / 0.85
"""Of a pair against a word. Metzler and Croft, "A Markov random field model for term
dependencies" (SIGIR 2005), give words 0.85 and nearness of words 0.15."""
_WORD = re.compile(r"[^\W_]+")
_WORDS_KNOWN = 2**16


class Bm25Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of BM25. Another set means another index.

    ``avg_len``: mean words of a chunk without stop words; None follows the collection.
    """

    k: float = 1.2
    b: float = 0.75
    avg_len: float | None = None
    language: str = "english"


class Made(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an index was made; kept beside its points."""

    schema: int = SCHEMA
    bm25: Bm25Parameters
    stamp: EmbeddingStamp | None = None
    avg_len: float | None = None
    """In force; None while there are too few chunks to know."""
    in_graph: int = 0
    """Edge: vectors of both kinds that the engine called indexed when its graph was built."""

    def fits(self, parameters: Bm25Parameters) -> bool:
        """Tell whether points made today could stand beside these."""
        return self.schema == SCHEMA and self.bm25 == parameters


class Sparse(NamedTuple):
    """A sparse vector: hashes of words and of pairs, and how much each weighs."""

    indices: list[int]
    values: list[float]


class Condition(NamedTuple):
    """One thing that a payload must fulfil: one of ``any_of``, or the beginning ``prefix``."""

    field: str
    any_of: list[str] | None = None
    prefix: str | None = None


class Weights:
    """Makes sparse vectors with the words of Edge's own BM25.

    The engine's model is asked for plain counts (an immense ``k``), so that the length
    of a text is known and the mean may be chosen after reading it. The weights equal
    what the engine's model gives for the same parameters.

    Two words side by side (stop words between them are passed over) are a term of their
    own, weighed as a word is. It counts in no length, and only for queries that want it.
    """

    def __init__(self, parameters: Bm25Parameters) -> None:
        """Raises ``ValueError`` for parameters the engine does not know."""
        import qdrant_edge  # noqa: PLC0415 - heavy

        if not (parameters.k >= 0 and 0 <= parameters.b <= 1):
            raise ValueError("k must be 0 or more, b between 0 and 1")
        self._k, self._b = parameters.k, parameters.b
        config = qdrant_edge.Bm25Config(
            k=_COUNTED_K, b=0.0, avg_len=1.0, language=parameters.language
        )
        self._model: Any = qdrant_edge.Bm25(config)
        self._number = lru_cache(_WORDS_KNOWN)(self._asked)

    def query(self, text: str, *, pairs: bool = False) -> Sparse:
        """Every word once, with ``pairs`` every pair too; empty for stop words alone."""
        text = encodable(text)
        found = self._model.embed_query(text)
        indices, values = list(found.indices), list(found.values)
        if pairs:
            beside = list(dict.fromkeys(self._pairs(text)))
            indices += beside
            values += [_PAIR_WEIGHT] * len(beside)
        return Sparse(indices, values)

    def counts(self, chunk: Chunk, document: Document) -> dict[int, int]:
        """How often each word and pair stands in a chunk, its heading and its path."""
        parts = [encodable(p) for p in (document.path, chunk.heading, chunk.text)]
        found = self._model.embed_document("\n".join(parts))
        counts = {
            word: max(1, round(_COUNTED_K * value / (_COUNTED_K + 1 - value)))
            for word, value in zip(found.indices, found.values, strict=True)
        }
        for part in parts:
            for beside in self._pairs(part):
                counts[beside] = counts.get(beside, 0) + 1
        return counts

    def document(self, counts: Mapping[int, int], avg_len: float | None) -> Sparse:
        """Weigh the words and pairs of a chunk."""
        share = length_of(counts) / (avg_len or USUAL_LENGTH)
        rest = self._k * (1 - self._b + self._b * share)
        values = [n * (self._k + 1) / (n + rest) for n in counts.values()]
        return Sparse(list(counts), values)

    def _pairs(self, text: str) -> list[int]:
        numbers = [self._number(word) for word in _WORD.findall(text)]
        return [_pair_of(*two) for two in pairwise(n for n in numbers if n is not None)]

    def _asked(self, word: str) -> int | None:
        """Return the engine's number of a word; None for a stop word."""
        found = self._model.embed_query(word).indices
        return int(found[0]) if found else None


@lru_cache(2 * _WORDS_KNOWN)
def _pair_of(one: int, other: int) -> int:
    both = one.to_bytes(4, "little") + other.to_bytes(4, "little")
    found = int.from_bytes(blake2b(both, digest_size=4).digest(), "little")
    return _NEIGHBOURS + 1 + found % (_NEIGHBOURS - 1)


def length_of(counts: Mapping[int, int]) -> int:
    """How many words: pairs are not counted."""
    return sum(n for number, n in counts.items() if number <= _NEIGHBOURS)


def terms_of(query: Sparse | None) -> int:
    """How many different words a query has, without stop words."""
    return 0 if query is None else sum(n <= _NEIGHBOURS for n in query.indices)


def vectors_of(dense: Any, sparse: Any) -> Vectors:
    """Read what the engine holds of a point; ``sparse`` has indices and values, or is None."""
    words = {}
    if sparse is not None:
        weighed = zip(sparse.indices, sparse.values, strict=True)
        words = {number: value for number, value in weighed if number <= _NEIGHBOURS}
    return Vectors(dense=dense, words=words)


def settled(lengths: Sequence[int]) -> float | None:
    """Return the mean length; None when there are too few."""
    if len(lengths) < ENOUGH:
        return None
    return max(1.0, sum(lengths) / len(lengths))


def drifted(avg_len: float | None, lengths: Sequence[int]) -> str | None:
    """Say that the mean length in force is far from the true one; None when it is not."""
    mean = settled(lengths)
    if avg_len is None or mean is None:
        return None
    if avg_len / DRIFT <= mean <= avg_len * DRIFT:
        return None
    return (
        f"chunks have {mean:.0f} words on average, and are weighed as if it were"
        f" {avg_len:.0f}"
    )


def payload_of(entry: Entry, length: int) -> dict[str, Any]:
    """Return everything that ``read_payload`` and filters need."""
    document = entry.document
    found: dict[str, Any] = _encodable_in(
        {
            "chunk": msgspec.to_builtins(entry.chunk),
            "document": msgspec.to_builtins(document),
            FOLDERS: folders(document.path),
            PAIRS: [pair(*item) for item in sorted(document.metadata.items())],
        }
    )
    return found | {LENGTH: length}


def read_payload(payload: Mapping[str, Any] | None) -> tuple[Chunk, Document]:
    """Read a chunk and its document back. Raises ``IndexDamaged``."""
    try:
        found = dict(payload or {})
        return (
            msgspec.convert(found["chunk"], Chunk),
            msgspec.convert(found["document"], Document),
        )
    except (KeyError, msgspec.ValidationError) as error:
        message = f"the search index holds a chunk that cannot be read: {error}"
        raise IndexDamaged(message) from error


def length_in(payload: Mapping[str, Any] | None) -> int:
    """Return the length that ``payload_of`` was given."""
    found = (payload or {}).get(LENGTH)
    return found if isinstance(found, int) else 0


def pair(key: str, value: str) -> str:
    """Write one pair of metadata so that no other pair looks the same."""
    return msgspec.json.encode([encodable(key), encodable(value)]).decode()


def folders(path: str) -> list[str]:
    """Return the folders that a path is in, each with its last ``/``; the upper ones."""
    ends = [at + 1 for at, sign in enumerate(path) if sign == "/"]
    return [path[:end] for end in ends[:_DEEPEST]]


def conditions(where: Where) -> list[Condition]:
    """Return what must hold, all of it."""
    found = []
    if where.collections is not None:
        found.append(Condition(COLLECTION, any_of=[str(c) for c in where.collections]))
    if where.projects is not None:
        found.append(Condition(PROJECT, any_of=[encodable(p) for p in where.projects]))
    if prefix := encodable(where.path_prefix or ""):
        # Of a whole folder, the engine would join what it knows of each file in it.
        if folders(prefix)[-1:] == [prefix]:
            found.append(Condition(FOLDERS, any_of=[prefix]))
        else:
            found.append(Condition(PATH, prefix=prefix))
    pairs = sorted((where.metadata or {}).items())
    found.extend(Condition(PAIRS, any_of=[pair(*one)]) for one in pairs)
    return found


def refuse_entries(entries: Sequence[Entry], stamp: EmbeddingStamp | None) -> None:
    """Raise ``InvalidInput`` for ids and vectors that this index cannot hold."""
    for at, entry in enumerate(entries):
        if as_uuid(entry.chunk.id) != entry.chunk.id:
            message = f"{entry.chunk.id!r} is not a UUID in its usual form"
            raise InvalidInput.at(f"entries.{at}.chunk.id", message)
        if entry.vector is not None:
            if stamp is None:
                message = "this index takes no vectors"
                raise InvalidInput.at(f"entries.{at}.vector", message)
            _refuse_vector(f"entries.{at}.vector", entry.vector, stamp.dimension)


def refuse_query(
    vector: Sequence[float], stamp: EmbeddingStamp | None, own: EmbeddingStamp | None
) -> None:
    """Raise ``OtherVectors`` for a vector that another model made, ``InvalidInput`` for none."""
    _refuse_vector("vector", vector, refuse_stamp(stamp, own).dimension)


def refuse_stamp(
    stamp: EmbeddingStamp | None, own: EmbeddingStamp | None
) -> EmbeddingStamp:
    """Return the index's own stamp when it is ``stamp``; else raise ``OtherVectors``."""
    if own is None or stamp != own:
        holds = f"those of {own.id}" if own else "none"
        asked = stamp.id if stamp else "an unknown model"
        raise OtherVectors(
            f"the query's vector was made by {asked}, the index holds {holds};"
            " it is searched by words until it was filled again"
        )
    return own


def known_ids(ids: Iterable[str]) -> list[str]:
    """Return those that could be in an index, in its spelling."""
    return [found for one in ids if (found := as_uuid(one)) is not None]


def as_uuid(text: str) -> str | None:
    """Return a UUID's usual spelling; None for anything else."""
    try:
        return str(UUID(text))
    except ValueError:
        return None


def encodable(text: str) -> str:
    """Replace lone surrogates: the engine takes UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _encodable_in(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(key): _encodable_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable_in(item) for item in value]
    return value


def _refuse_vector(field: str, vector: Sequence[float], dimension: int) -> None:
    if len(vector) != dimension:
        message = f"has {len(vector)} numbers, the index takes {dimension}"
        raise InvalidInput.at(field, message)
    norm = math.fsum(x * x for x in vector)
    # The engine would take both, and then answer with them.
    if not math.isfinite(norm) or norm == 0.0:
        raise InvalidInput.at(field, "is zero, or holds what is no number")
