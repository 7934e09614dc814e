"""OpenAI's chat-completions format: what replies and events say."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from nestor.model.task import Usage, as_count

_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_ERROR = re.compile(rb'"error"\s*:\s*[^\sn]|^event:\s*error', re.MULTILINE)
_SAYS_SOMETHING = (
    *("content", "tool_calls", "function_call", "refusal", "audio"),
    *("reasoning_content", "reasoning"),
)
_ERROR_STATUS = range(400, 600)


class Head(msgspec.Struct):
    """What is read of a whole reply; the rest is skipped, not decoded."""

    choices: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


def finishes(piece: bytes) -> bool:
    """Tell whether an event names a finish reason (a cheap look at the bytes)."""
    return _FINISHED.search(piece) is not None


def first_to_read(piece: bytes) -> int:
    """Return where usage, an error or the end may stand first; -1 where none does.

    Servers that were asked for usage write ``"usage": null`` into every chunk.
    """
    first = piece.find(b"[DONE]")
    # A pattern that begins with a word is searched for as fast as the word alone.
    if match := _USAGE.search(piece):
        first = match.start() if first < 0 else min(first, match.start())
    if piece.find(b"error") >= 0 and (match := _ERROR.search(piece)):
        first = match.start() if first < 0 else min(first, match.start())
    return first


def says_something(data: Mapping[str, Any]) -> bool:
    """Tell whether a chunk carries a token, as opposed to a role or a keep-alive."""
    for choice in _dicts(data.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(delta.get(key) for key in _SAYS_SOMETHING):
            return True
        if choice.get("finish_reason") or choice.get("text"):
            return True
    return False


def is_usage_only(data: Mapping[str, Any]) -> bool:
    """Tell whether a chunk is the extra one that ``stream_options.include_usage`` asks for."""
    return data.get("choices") == [] and isinstance(data.get("usage"), dict)


def usage_of(usage: object) -> Usage:
    """Read the ``usage`` of a reply or chunk; what is not a count stays None."""
    if not isinstance(usage, dict):
        return Usage()
    read, written = (
        usage.get(f"{side}_tokens_details") for side in ("prompt", "completion")
    )
    read = read if isinstance(read, dict) else {}
    written = written if isinstance(written, dict) else {}
    return Usage(
        input_tokens=as_count(usage.get("prompt_tokens")),
        output_tokens=as_count(usage.get("completion_tokens")),
        cached_tokens=as_count(read.get("cached_tokens")),
        reasoning_tokens=as_count(written.get("reasoning_tokens")),
    )


def larger(one: Usage, other: Usage) -> Usage:
    """Keep each count at its largest: a server that counts along never counts back."""
    pairs = zip(
        msgspec.structs.astuple(one), msgspec.structs.astuple(other), strict=True
    )
    counts = [max(pair, key=lambda n: -1 if n is None else n) for pair in pairs]
    return Usage(**dict(zip(Usage.__struct_fields__, counts, strict=True)))


def error_status(error: object) -> int | None:
    """Return the HTTP status that an error in a reply of status 200 names, if it does."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and code in _ERROR_STATUS else None


def _dicts(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []
