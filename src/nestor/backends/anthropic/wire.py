"""Anthropic's messages format: what replies and events say."""

from collections.abc import Mapping
from typing import Any

import msgspec

from nestor.model.task import Usage, as_count

ERROR_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status that goes with an error's type, where the reply began with 200."""
_TEXT = ("text", "thinking")
_DELTAS = ("text", "partial_json", "thinking", "citation")


class Head(msgspec.Struct):
    """What is read of a whole reply; the rest is skipped, not decoded."""

    type: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The four counts of a ``usage``, and how much of the output was thinking."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    thinking_tokens: int | None = None

    def usage(self) -> Usage:
        """All input added up: what was read from and put into the cache is part of it."""
        total = self.input_tokens
        if total is not None:
            total += self.cache_read_input_tokens or 0
            total += self.cache_creation_input_tokens or 0
        return Usage(
            input_tokens=total,
            output_tokens=self.output_tokens,
            cached_tokens=self.cache_read_input_tokens,
            cache_write_tokens=self.cache_creation_input_tokens,
            reasoning_tokens=self.thinking_tokens,
        )

    def followed_by(self, newer: "Counts") -> "Counts":
        """Counts of a stream are cumulative: the newest stands, unless it says nothing.

        Some servers count the input at the start and write 0 at the end, or the reverse.
        """
        pairs = zip(
            self.__struct_fields__,
            msgspec.structs.astuple(newer),
            msgspec.structs.astuple(self),
            strict=True,
        )
        return Counts(
            **{
                name: old if new is None or (new == 0 and old is not None) else new
                for name, new, old in pairs
            }
        )


def counts_of(usage: object) -> Counts:
    """Read a ``usage``; what is not a count stays None."""
    if not isinstance(usage, dict):
        return Counts()
    details = usage.get("output_tokens_details")
    details = details if isinstance(details, dict) else {}
    return Counts(
        input_tokens=as_count(usage.get("input_tokens")),
        output_tokens=as_count(usage.get("output_tokens")),
        cache_read_input_tokens=as_count(usage.get("cache_read_input_tokens")),
        cache_creation_input_tokens=as_count(usage.get("cache_creation_input_tokens")),
        thinking_tokens=as_count(details.get("thinking_tokens")),
    )


def says_something(event: Mapping[str, Any]) -> bool:
    """Tell whether an event carries something of the answer, or ends it."""
    match event.get("type"):
        case "content_block_start":
            block = event.get("content_block")
            kind = block.get("type") if isinstance(block, dict) else None
            return isinstance(block, dict) and bool(
                kind not in _TEXT or block.get(str(kind))
            )
        case "content_block_delta":
            delta = event.get("delta")
            return isinstance(delta, dict) and any(delta.get(key) for key in _DELTAS)
        case "message_delta" | "message_stop":
            return True
        case _:
            return False


def error_status(error: object) -> int | None:
    """Return the HTTP status that fits an error's type."""
    kind = error.get("type") if isinstance(error, dict) else None
    return ERROR_STATUS.get(kind) if isinstance(kind, str) else None
