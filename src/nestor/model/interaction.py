"""What was asked and answered, and what people say about it."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_LABEL, MAX_MODEL, MAX_CONTEXT_IDS = 64, 200, 100
MAX_TEXT_BYTES = 64 * 1024
"""Of a question or an answer that is kept; the rest is cut, and the row says so."""

Name = Annotated[str, Meta(min_length=1, max_length=MAX_LABEL)]
ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL)]


class InteractionKind(StrEnum):
    """How an interaction came to be. Calls of ``/v1`` stand in the meter alone."""

    ROUTED = "routed"
    """``POST /route``; where a model was asked, the meter has its call under the same id."""
    AUGMENTED = "augmented"
    """``POST /augment_query``: context was handed out, the answer is given elsewhere."""
    TRACKED = "tracked"
    """``POST /interactions``: the answer was given elsewhere."""


class Outcome(StrEnum):
    """What became of what was answered. Where nobody said, it is unknown."""

    SUCCESS = "success"
    PARTIAL = "partial"
    FAILURE = "failure"


class Interaction(msgspec.Struct, frozen=True, kw_only=True):
    """One question, and what is known of its answer."""

    id: str
    at: datetime
    kind: InteractionKind
    query: str | None
    """Redacted; None where prompts are not kept."""
    response: str | None = None
    """As ``query``; None also where the answer was given elsewhere and not told."""
    cut: tuple[str, ...] = ()
    """Which of both were longer than ``MAX_TEXT_BYTES``: their end is missing."""
    route: str | None = None
    model: str | None = None
    reason: str | None = None
    confidence: float | None = None
    agent_type: str | None = None
    context_ids: tuple[str, ...] = ()
    task_id: str | None = None
    iteration: int | None = None
    key_id: str | None = None
    trace_id: str = ""
    replayed: bool = False


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What one key said about one interaction, once. See ``standing``."""

    id: str
    interaction_id: str
    at: datetime
    outcome: Outcome | None
    user_feedback: float | None
    """From -1 (bad) to 1 (good)."""
    source: str
    """Name of the key that said it, whatever its holder calls itself."""
    key_id: str
    label: str | None
    """What the caller calls itself: never believed."""


def standing(rows: Iterable[Feedback]) -> list[Feedback]:
    """Return what counts of ``rows`` (oldest first): the newest of each key."""
    newest: dict[str, Feedback] = {}
    for row in rows:
        newest.pop(row.key_id, None)
        newest[row.key_id] = row
    return list(newest.values())


class NewFeedback(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of ``POST /feedback``: at least one of ``outcome`` and ``user_feedback``.

    ``source`` is what the caller calls itself: it is kept as the label. Who it is, the key
    tells.
    """

    interaction_id: Name
    outcome: Outcome | None = None
    user_feedback: Annotated[float, Meta(ge=-1, le=1)] | None = None
    source: Name | None = None


class AugmentRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of ``POST /augment_query``."""

    query: Annotated[str, Meta(min_length=1)]
    agent_type: Name | None = None


class Augmented(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of ``POST /augment_query``. No model was asked."""

    augmented_prompt: str
    """The context as data, then the query; the query alone where none was found."""
    context_ids: list[str]
    original_query: str
    context_count: int
    sources: list[str]
    interaction_id: str
    degraded: list[str]


class NewInteraction(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of ``POST /interactions``: an answer that was given elsewhere."""

    query: Annotated[str, Meta(min_length=1)]
    response: str | None = None
    route: Name | None = None
    model: ModelName | None = None
    agent_type: Name | None = None
    context_ids: Annotated[list[Name], Meta(max_length=MAX_CONTEXT_IDS)] = []
    task_id: Name | None = None


class Tracked(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of ``POST /interactions``."""

    interaction_id: str
