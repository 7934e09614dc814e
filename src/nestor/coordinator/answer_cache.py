"""Which answers may be given again to the same request, and to whom."""

import hashlib
from typing import Any

import msgspec

from nestor.model.routing import Dialect
from nestor.ports.answer_cache import AnswerCache

MAX_ANSWER_BYTES = 256 * 1024
_SAYS_NOTHING = frozenset(
    {
        *("stream", "stream_options", "user", "metadata"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    }
)
"""Fields that change nothing of an answer."""
_FORBIDS = frozenset(
    {
        *("tools", "functions", "mcp_servers", "container", "web_search_options"),
        *("previous_response_id", "conversation", "background", "store", "audio"),
    }
)
"""Fields of requests that act, or whose answer depends on more than what they say."""
_TOOL_BLOCKS = frozenset(
    {
        *(
            "tool_use",
            "tool_result",
            "server_tool_use",
            "mcp_tool_use",
            "mcp_tool_result",
        ),
        *("function_call", "function_call_output", "item_reference"),
    }
)
_ENDED = {"end_turn", "stop_sequence"}
_PLAIN_BLOCKS = {"text", "thinking", "redacted_thinking"}
_PLAIN_OUTPUT = {"message", "reasoning"}
_MARK = b"1"
_SUM_BYTES = 16


def cache_key(
    dialect: Dialect, owner: str | None, group: str, request: dict[str, Any]
) -> str | None:
    """Return what a request's answer is kept under; None when it must not be kept.

    ``owner``: whose answers these are (a key, a task); None: everybody's. ``group``: the
    deployments that may serve the request. Requests with tools or results of tools, for
    several answers at once, or that lean on a state of the provider have no key.
    """
    if any(request.get(name) for name in _FORBIDS) or request.get("n", 1) != 1:
        return None
    said = request.get("messages", request.get("input"))
    if not isinstance(said, (list, str)) or not said or _has_tools(said):
        return None
    asked = {
        name: value for name, value in request.items() if name not in _SAYS_NOTHING
    }
    whole = msgspec.json.encode([dialect, owner, group, asked], order="sorted")
    return hashlib.sha256(whole).hexdigest()


class AnswerCaching:
    """Keeps answers that are whole and only said something; gives them back as they were.

    What the store returns is checked against a sum, so that bytes that were cut, or put
    there under the key by something else, are no answer.
    """

    def __init__(self, store: AnswerCache) -> None:
        self._store = store

    async def lookup(self, key: str) -> bytes | None:
        """Return the answer that was kept under ``cache_key``'s result, byte for byte."""
        kept = await self._store.get(key)
        if kept is None or kept[:1] != _MARK:
            return None
        answer = kept[1 + _SUM_BYTES :]
        return answer if kept[1 : 1 + _SUM_BYTES] == _sum(key, answer) else None

    async def keep(
        self, key: str, dialect: Dialect, answer: bytes, *, ttl_s: float
    ) -> bool:
        """Keep a whole reply in ``dialect``; tell whether it may be given again."""
        if ttl_s <= 0 or not is_repeatable(dialect, answer):
            return False
        await self._store.put(key, _MARK + _sum(key, answer) + answer, ttl_s=ttl_s)
        return True


def is_repeatable(dialect: Dialect, answer: bytes) -> bool:
    """Tell whether an answer is one text that came to its own end, of bounded size."""
    if len(answer) > MAX_ANSWER_BYTES:
        return False
    try:
        body = msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return False
    match dialect:
        case Dialect.OPENAI:
            return _is_plain_completion(body)
        case Dialect.ANTHROPIC:
            return _is_plain_message(body)
        case Dialect.RESPONSES:
            return _is_plain_response(body)


def _is_plain_completion(body: object) -> bool:
    match body:
        case {"choices": [{"finish_reason": "stop", "message": dict(message)}]}:
            acts = any(
                message.get(name)
                for name in ("tool_calls", "function_call", "refusal", "audio")
            )
            return not acts and bool(message.get("content"))
    return False


def _is_plain_message(body: object) -> bool:
    match body:
        case {"stop_reason": str(reason), "content": [_, *_] as blocks}:
            return reason in _ENDED and _all_of(blocks, _PLAIN_BLOCKS)
    return False


def _is_plain_response(body: object) -> bool:
    match body:
        case {"status": "completed", "output": [_, *_] as items}:
            return _all_of(items, _PLAIN_OUTPUT)
    return False


def _all_of(parts: list[Any], kinds: set[str]) -> bool:
    return all(isinstance(part, dict) and part.get("type") in kinds for part in parts)


def _has_tools(said: list[Any] | str) -> bool:
    for one in said if isinstance(said, list) else []:
        if not isinstance(one, dict):
            continue
        if one.get("tool_calls") or one.get("function_call"):
            return True
        if one.get("role") in {"tool", "function"} or one.get("type") in _TOOL_BLOCKS:
            return True
        content = one.get("content")
        if isinstance(content, list) and _has_tools(content):
            return True
    return False


def _sum(key: str, answer: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + answer, digest_size=_SUM_BYTES).digest()
