"""Judged collections in BEIR's layout: documents, queries, and who is relevant to what.

A folder with ``corpus.jsonl`` (``_id``, ``title``, ``text``), ``queries.jsonl`` (``_id``,
``text``) and ``qrels/test.tsv`` (``query-id``, ``corpus-id``, ``score``, under a line of
names), each perhaps gzipped (``.gz``).
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from nestor.errors import InvalidInput

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
_SPLITS = ("test", "dev")
_DATA = "--data"
_COLUMNS = 3


class JudgedDocument(msgspec.Struct, frozen=True):
    """A document of the collection."""

    id: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title and text, as BEIR's own baselines read them."""
        return f"{self.title}\n{self.text}".strip()


class _Line(msgspec.Struct):
    id: str | int = msgspec.field(name="_id")
    text: str | None = ""
    title: str | None = ""


class JudgedCollection:
    """One collection. Queries and judgments are in memory, documents are read as they come.

    Errors are ``InvalidInput`` and name the file and the line.
    """

    def __init__(
        self,
        name: str,
        corpus: Path,
        queries: dict[str, str],
        judged: dict[str, dict[str, int]],
        left_out: int,
    ) -> None:
        """Use ``read``."""
        self.name = name
        self.queries = queries
        """The judged ones: id → text."""
        self.judged = judged
        """Query → document → how relevant; 0 and less: not. Something is, for each."""
        self.left_out = left_out
        """Judged queries that the file of queries lacks."""
        self._corpus = corpus

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read queries and judgments."""
        root = folder.expanduser()
        if not root.is_dir():
            raise _wrong(folder, "is no folder")
        corpus, queries = _file(root, CORPUS), _file(root, QUERIES)
        qrels = _qrels(root)
        judged = _judgments(qrels)
        asked: dict[str, str] = {}
        for number, line in _objects(queries):
            key = str(line.id)
            if key in asked:
                raise _wrong(queries, f"the query {key!r} stands here twice", number)
            asked[key] = line.text or ""
        relevant = {key: found for key, found in judged.items() if _any(found)}
        if not relevant:
            raise _wrong(qrels, "no document is relevant to any query")
        known = {key: found for key, found in relevant.items() if key in asked}
        if not known:
            one = next(iter(relevant))
            raise _wrong(queries, f"has none of the judged queries, such as {one!r}")
        texts = {key: asked[key] for key in known}
        root_name = root.resolve().name
        return cls(root_name, corpus, texts, known, len(relevant) - len(known))

    def documents(self) -> Iterator[JudgedDocument]:
        """Read the documents in the file's order."""
        seen: set[str] = set()
        for number, line in _objects(self._corpus):
            key = str(line.id)
            if key in seen:
                message = f"the document {key!r} stands here twice"
                raise _wrong(self._corpus, message, number)
            seen.add(key)
            yield JudgedDocument(key, line.title or "", line.text or "")
        if not seen:
            raise _wrong(self._corpus, "holds no document")


def _any(judged: dict[str, int]) -> bool:
    return any(gain > 0 for gain in judged.values())


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise _wrong(folder, f"has no {name} (nor {name}.gz)")


def _qrels(root: Path) -> Path:
    folder = root / QRELS
    for split in _SPLITS:
        for path in (folder / f"{split}.tsv", folder / f"{split}.tsv.gz"):
            if path.is_file():
                return path
    found = sorted([*folder.glob("*.tsv"), *folder.glob("*.tsv.gz")])
    if not found:
        raise _wrong(root, f"has no {QRELS}/test.tsv (nor another .tsv or .tsv.gz)")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise _wrong(folder, f"has {names} and no test.tsv: leave one of them")
    return found[0]


def _judgments(path: Path) -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) != _COLUMNS:
            message = f"{len(columns)} columns, where query, document and score belong"
            raise _wrong(path, message, number)
        query, document, score = columns
        try:
            gain = int(score)
        except ValueError:
            if number == 1:  # the names of the columns
                continue
            message = f"the score {score[:40]!r} is no whole number"
            raise _wrong(path, message, number) from None
        if judged.setdefault(query, {}).setdefault(document, gain) != gain:
            message = f"{document!r} was judged otherwise for {query!r} before"
            raise _wrong(path, message, number)
    if not judged:
        raise _wrong(path, "holds no judgment")
    return judged


def _objects(path: Path) -> Iterator[tuple[int, _Line]]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in _lines(path):
        try:
            yield number, decoder.decode(line)
        except msgspec.DecodeError as error:
            yield number, _half_pairs(path, number, line, error)


def _half_pairs(
    path: Path, number: int, line: str, wrong: msgspec.DecodeError
) -> _Line:
    """Read a line with half a surrogate pair, which Python's own library writes."""
    if "\\u" in line and not isinstance(wrong, msgspec.ValidationError):
        with suppress(ValueError, msgspec.ValidationError):
            return msgspec.convert(json.loads(line), _Line)
    raise _wrong(path, str(wrong), number) from wrong


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read lines that say something, numbered from 1."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        message = f"not UTF-8 at byte {error.start + 1} ({error.reason})"
        raise _wrong(path, message, number) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _wrong(path, f"cannot be read on: {reason}", number + 1) from error


def _wrong(path: Path, message: str, line: int | None = None) -> InvalidInput:
    where = f"{path}" if line is None else f"{path}:{line}"
    return InvalidInput.at(_DATA, f"{where}: {message}")
