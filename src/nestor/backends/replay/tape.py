"""Recorded model traffic in one JSON file that people can read and edit."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from nestor.backends.replay.normalise import conversation, digest
from nestor.errors import Misconfigured, UpstreamError
from nestor.model.routing import Dialect
from nestor.model.task import Usage
from nestor.telemetry.redact import redact, redact_value

FORMAT = 2
_READS = {1, 2}
"""Entries of format 1 are all OpenAI's."""
_PREVIEW_CHARACTERS = 2000
"""Of one message; the middle of a longer one is left out."""
_SHOWN_LINES = 12
_SHOWN_CHARACTERS = 400


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer, and the digest of the conversation it answers."""

    match: str
    dialect: Dialect = Dialect.OPENAI
    """Of the request and its answer: a deployment is answered in its own."""
    request_preview: list[str]
    """Normalised messages, for people and for explaining what does not match."""
    response: dict[str, Any]
    """The whole answer: a ``chat.completion``, a ``message``, or a list of embeddings."""
    usage: Usage = Usage()
    recorded_from: str
    """The model's name, or ``scripted model`` when no model made the answer."""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int
    about: str = ""
    entries: list[Entry]


class Cassette:
    """Answers by content of the conversation, in whatever order they are asked for."""

    def __init__(self, entries: Sequence[Entry] = (), *, about: str = "") -> None:
        self.about = about
        self._entries = {(entry.dialect, entry.match): entry for entry in entries}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises ``Misconfigured`` that names it."""
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_File)
        except OSError as error:
            raise Misconfigured(f"cassette {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Misconfigured(f"cassette {path}: {error}") from error
        if content.format not in _READS:
            message = f"cassette {path}: format {content.format}, this reads 1 and 2"
            raise Misconfigured(message)
        for number, entry in enumerate(content.entries):
            if fault := _fault_of(entry):
                message = f"cassette {path}: entries.{number}.response {fault}"
                raise Misconfigured(message)
        return cls(content.entries, about=content.about)

    @property
    def entries(self) -> list[Entry]:
        """All entries, in the order they were recorded."""
        return list(self._entries.values())

    def add(
        self,
        request: dict[str, Any],
        response: dict[str, Any],
        usage: Usage,
        *,
        recorded_from: str,
        dialect: Dialect = Dialect.OPENAI,
    ) -> None:
        """Keep an answer, without secrets; the newest one for a conversation stands."""
        texts = _texts(request)
        entry = Entry(
            match=digest(texts),
            dialect=dialect,
            request_preview=[_shorten(redact(text)) for text in texts],
            response=_without_secrets(response),
            usage=usage,
            recorded_from=recorded_from,
        )
        self._entries[entry.dialect, entry.match] = entry

    def find(self, request: dict[str, Any], dialect: Dialect = Dialect.OPENAI) -> Entry:
        """Return the answer to a conversation. Raises ``UpstreamError`` that says what differs."""
        texts = _texts(request)
        entry = self._entries.get((dialect, digest(texts)))
        if entry is None:  # recordings were made of what was asked to the letter
            entry = self._entries.get((dialect, digest(conversation(request))))
        if entry is None:
            message = f"the cassette has no answer: {self._explain(texts, dialect)}"
            # 404: the recording is well, it is the question that is not in it.
            raise UpstreamError(message, status=404)
        return entry

    def save(self, path: Path) -> None:
        """Write the file whole: readers see the old one or the new one.

        Only its owner may read it. Raises ``OSError``; the old file stands then.
        """
        content = _File(format=FORMAT, about=self.about, entries=self.entries)
        text = msgspec.json.format(msgspec.json.encode(content), indent=2)
        part = path.with_name(f".{path.name}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
                os.fchmod(file.fileno(), 0o600)  # one that a crash has left may be open
                file.write(text + b"\n")
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _explain(self, texts: list[str], dialect: Dialect) -> str:
        asked = [_shorten(redact(text)) for text in texts]
        last = asked[-1][-_SHOWN_CHARACTERS:] if asked else "(no messages)"
        if not self._entries:
            return f"it is empty; asked: {last}"
        known = [one for one in self._entries.values() if one.dialect is dialect]
        if not known:
            return f"it has none in the dialect {dialect}; asked: {last}"
        nearest = max(
            known,
            key=lambda entry: _likeness(entry.request_preview, asked),
        )
        lines = difflib.unified_diff(
            "\n".join(nearest.request_preview).splitlines(),
            "\n".join(asked).splitlines(),
            "nearest entry",
            "asked",
            lineterm="",
            n=0,
        )
        shown = [line[:_SHOWN_CHARACTERS] for line in list(lines)[:_SHOWN_LINES]]
        return f"asked: {last}\n" + "\n".join(shown)


def _texts(request: dict[str, Any]) -> list[str]:
    """Return what a conversation is told by, without secrets.

    An answer is kept without them, and is a part of the conversation that goes on.
    """
    return conversation(redact_value(request))


def _without_secrets(response: dict[str, Any]) -> dict[str, Any]:
    if response.get("object") == "list":
        return response  # numbers, also where they are written as text
    cleaned: dict[str, Any] = redact_value(response)
    return cleaned


def _fault_of(entry: Entry) -> str | None:
    """Say why an answer is none that this replays."""
    body = entry.response
    if entry.dialect is Dialect.ANTHROPIC:
        content = body.get("content")
        blocks = content if isinstance(content, list) else [None]
        return (
            None if all(isinstance(one, dict) for one in blocks) else "has no content"
        )
    if body.get("object") == "list":
        return None if isinstance(body.get("data"), list) else "has no data"
    match body.get("choices"):
        case [{"message": dict()}, *_]:
            return None
    return "has no choices"


def _likeness(known: list[str], asked: list[str]) -> float:
    """Compare message by message: cheap, and a shared beginning counts."""
    matcher = difflib.SequenceMatcher(a="\n".join(known), b="\n".join(asked))
    return matcher.quick_ratio() - 0.01 * abs(len(known) - len(asked))


def _shorten(text: str) -> str:
    if len(text) <= _PREVIEW_CHARACTERS:
        return text
    half = _PREVIEW_CHARACTERS // 2
    return f"{text[:half]}\n[…]\n{text[-half:]}"
