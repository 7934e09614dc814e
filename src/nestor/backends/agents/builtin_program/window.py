"""The conversation, kept within what the model takes. The task itself is never dropped.

Where the first message alone is too much, what accompanies the task in it is shortened.
"""

from __future__ import annotations

import json
import re

from .output import say

DROPPED = "[older output dropped]"
EARLIER = "[Earlier turns are left out here; the working folder holds what they did.]"
_TASK = 2
"""Messages that always stay: the system's and the task."""
_TOKENS_PER_BYTE = 1 / 3
"""More than most text takes; corrected by what the server counts."""
_LEAST, _MOST = 0.2, 1.0
_MARGIN = 1.1
_ANSWER_TOKENS = 4096
_SHRINK = 0.7
"""Trimmed to this share at once: each trim costs the provider's cache of the prompt."""
_KEPT_CHARS = 100
_LONG_CHARS = 400
_PART = re.compile(
    r"^(?=# (?:Steps|Done means|Files to look|Checks that|Context \(|Guidance|Your last"
    r"|Flaky checks|What (?:people|you were|a reader))|## .{1,200} \((?:exit|no exit))",
    re.MULTILINE,
)
"""Where the harness begins another part of the first message (``ralph/brief.py``)."""
_REFERENCE = ("# Context (", "# Guidance")


class Conversation:
    """Messages as they are sent. Equal histories are trimmed equally."""

    def __init__(
        self, system: str, task: str, *, window_tokens: int, beside_bytes: int
    ) -> None:
        """``beside_bytes``: what each request holds besides the messages."""
        self._beside_bytes = beside_bytes
        self.messages: list[dict[str, object]] = [
            {"role": "system", "content": system},
            {"role": "user", "content": task},
        ]
        self._ratio = _TOKENS_PER_BYTE
        self.window_tokens = window_tokens

    def add(self, message: dict[str, object]) -> None:
        """Append one message."""
        self.messages.append(message)

    def counted(self, sent_bytes: int, prompt_tokens: int | None) -> None:
        """Correct the estimate by what the server counted for a request."""
        if prompt_tokens is not None and sent_bytes:
            found = prompt_tokens / sent_bytes * _MARGIN
            self._ratio = min(max(found, _LEAST), _MOST)

    def fit(self) -> None:
        """Drop the oldest where the next request would not leave room for an answer."""
        room = self._room()
        if self._tokens() > room:
            self._shrink_to(int(room * _SHRINK), room)

    def too_long(self, limit: int | None) -> None:
        """The server says that it does not fit: believe it, and drop a good half."""
        now = self._tokens()
        if limit is not None and limit < self.window_tokens:
            self.window_tokens = limit
        room = self._room()
        # The estimate may be too low: then the same again would not fit either.
        most = min(int(now * _SHRINK), room)
        self._shrink_to(min(now // 2, int(room * _SHRINK)), most)

    def _room(self) -> int:
        return self.window_tokens - min(_ANSWER_TOKENS, self.window_tokens // 4)

    def _tokens(self) -> int:
        size = sum(len(json.dumps(message)) for message in self.messages)
        return int((size + self._beside_bytes) * self._ratio)

    def _last(self) -> int:
        """Return where the newest exchange begins: what it did is not known otherwise."""
        for index in range(len(self.messages) - 1, _TASK - 1, -1):
            if self.messages[index]["role"] == "assistant":
                return index
        return len(self.messages)

    def _shrink_to(self, tokens: int, most: int) -> None:
        """Drop until ``tokens`` are left; the task only while there are above ``most``."""
        say("(the conversation is shortened)")
        self._shrink_turns_to(tokens)
        if self._tokens() > most:
            self._shrink_task_to(min(tokens, most))

    def _shrink_task_to(self, tokens: int) -> None:
        task = self.messages[_TASK - 1]
        parts = [part for part in _PART.split(str(task["content"])) if part]
        while self._tokens() > tokens and (at := _most_spared(parts)) is not None:
            parts[at] = _without_middle(parts[at])
            task["content"] = "".join(parts)

    def _shrink_turns_to(self, tokens: int) -> None:
        for shorten in (_drop_output, _shorten_call):
            for message in self.messages[_TASK : self._last()]:
                if self._tokens() <= tokens:
                    return
                shorten(message)
        while self._tokens() > tokens and self._last() > _TASK:
            if not self._drop_turn():
                break
        for message in self.messages[self._last() :]:
            if self._tokens() <= tokens:
                return
            _halve(message)

    def _drop_turn(self) -> bool:
        """Remove the oldest exchange whole, so that each call keeps its answer."""
        start = _TASK
        if self.messages[start].get("content") == EARLIER:
            start += 1
        stop = start + 1
        while stop < len(self.messages) and self.messages[stop]["role"] != "assistant":
            stop += 1
        if start >= self._last():
            return False
        self.messages[_TASK : min(stop, self._last())] = [
            {"role": "user", "content": EARLIER}
        ]
        return True


def _drop_output(message: dict[str, object]) -> None:
    content = str(message["content"])
    if message["role"] != "tool" or len(content) <= _KEPT_CHARS + len(DROPPED):
        return
    first = content.split("\n", 1)[0][:_KEPT_CHARS]
    message["content"] = f"{first}\n{DROPPED}"


def _shorten_call(message: dict[str, object]) -> None:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call["function"]
        if len(function["arguments"]) <= _LONG_CHARS:
            continue
        try:
            given = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            given = {}
        if not isinstance(given, dict):
            given = {}
        short = {key: _short(value) for key, value in given.items()}
        function["arguments"] = json.dumps(short, sort_keys=True)


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > _KEPT_CHARS:
        return f"{value[:_KEPT_CHARS]}[...]"
    return value


def _halve(message: dict[str, object]) -> None:
    content = str(message["content"])
    if message["role"] == "tool" and len(content) > _LONG_CHARS:
        message["content"] = _without_middle(content)


def _without_middle(text: str) -> str:
    quarter = len(text) // 4
    return f"{text[:quarter]}\n[...]\n{text[-quarter:]}"


def _most_spared(parts: list[str]) -> int | None:
    """Say what loses its middle next: reference, then the longest, then the goal; None: no more."""
    long = [n for n, part in enumerate(parts) if len(part) > _LONG_CHARS]

    def rank(n: int) -> tuple[int, int]:
        reference = parts[n].startswith(_REFERENCE)
        return (0 if reference else 2 if n == 0 else 1, -len(parts[n]))

    return min(long, key=rank, default=None)
