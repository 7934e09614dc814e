"""What two runs of the same conversation share: their text without what always differs.

Times, durations, ids, temporary paths and the retrieved knowledge (documents change)
differ between runs; the digest must not.
"""

import hashlib
import json
import re
from typing import Any

_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"<context>.*?</context>", re.DOTALL), "<context/>"),
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),
    # The runner's own header: versions and folders of the machine.
    (
        re.compile(
            r"^(platform|rootdir|cachedir|configfile|plugins)\b.*$", re.MULTILINE
        ),
        r"<\1>",
    ),
    (
        re.compile(
            r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"
        ),
        "<time>",
    ),
    (
        re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE),
        "<id>",
    ),
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "<address>"),
    (
        re.compile(r"\b(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{7,64}\b"),
        "<id>",
    ),
    (re.compile(r"(?:/private)?/(?:tmp|var/tmp|var/folders)/[^\s:'\",)\]>]+"), "<tmp>"),
    (
        re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|µs|us|ns|s|secs?|seconds?)\b"),
        "<duration>",
    ),
    (re.compile(r"\(\d+:\d\d:\d\d\)"), "<duration>"),
    # Rulers are as long as the terminal is wide minus what stands in them.
    (re.compile(r"([=_-])\1{2,}"), r"\1\1\1"),
)

_ELSEWHERE = {"tool_use", "tool_result", "thinking", "redacted_thinking"}
"""Blocks of a message that are told apart from its text, or not at all."""


def normalise(text: str) -> str:
    """Replace what differs between runs; one space for a run of blanks, no empty lines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def conversation(request: dict[str, Any]) -> list[str]:
    """Return one normalised text per message: ``role: text``, tool calls included.

    Takes chat completions, messages, and requests for embeddings. The model's name,
    sampling parameters, tool schemas, the ids of tool calls and what a model only thought
    have no part in it.
    """
    if "messages" not in request and "input" in request:
        return _embedded(request)
    texts = [_message(message) for message in request.get("messages") or []]
    if system := request.get("system"):
        texts.insert(0, f"system: {normalise(_content(system))}")
    return texts


def digest(texts: list[str]) -> str:
    """Return the sha256 under which a conversation is filed."""
    # Whitespace is folded here and not above, so that a preview keeps its lines.
    folded = "\x1e".join(" ".join(text.split()) for text in texts)
    return hashlib.sha256(folded.encode("utf-8", "replace")).hexdigest()


def _embedded(request: dict[str, Any]) -> list[str]:
    """What is embedded, and what the numbers look like: that differs by these fields."""
    given = request["input"]
    several = isinstance(given, list) and not all(isinstance(n, int) for n in given)
    texts = given if several else [given]
    shape = {key: request.get(key) for key in ("dimensions", "encoding_format")}
    return [
        f"embed: {json.dumps(shape)}",
        *(f"input: {normalise(str(text))}" for text in texts),
    ]


def _message(message: Any) -> str:
    if not isinstance(message, dict):
        return normalise(str(message))
    content = message.get("content")
    text = normalise(_content(content))
    parts = [f"{message.get('role', '')}: {text}"]
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {} if isinstance(call, dict) else {}
        parts.append(_call(function.get("name"), function.get("arguments")))
    for block in content if isinstance(content, list) else []:
        match block:
            case {"type": "tool_use"}:
                parts.append(_call(block.get("name"), block.get("input")))
            case {"type": "tool_result"}:
                parts.append(f"result: {normalise(_content(block.get('content')))}")
    return "\n".join(parts)


def _call(name: object, arguments: object) -> str:
    return f"call {name or ''} {normalise(_arguments(arguments))}"


def _content(content: Any) -> str:
    if not isinstance(content, list):
        return "" if content is None else str(content)
    return "\n".join(
        _part(part)
        for part in content
        if not isinstance(part, dict) or part.get("type") not in _ELSEWHERE
    )


def _part(part: Any) -> str:
    if isinstance(part, dict):
        if isinstance(part.get("text"), str):
            return str(part["text"])
        part = {key: value for key, value in part.items() if key != "cache_control"}
    return json.dumps(part, sort_keys=True)


def _arguments(arguments: object) -> str:
    """Spell equal arguments equally, whatever the order of their names."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return str(arguments)
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False)
