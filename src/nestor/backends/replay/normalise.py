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


def normalise(text: str) -> str:
    """Replace what differs between runs; one space for a run of blanks, no empty lines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def conversation(request: dict[str, Any]) -> list[str]:
    """Return one normalised text per message: ``role: text``, tool calls included.

    The model's name, sampling parameters, tool schemas and the ids of tool calls have no
    part in it.
    """
    return [_message(message) for message in request.get("messages") or []]


def digest(texts: list[str]) -> str:
    """Return the sha256 under which a conversation is filed."""
    # Whitespace is folded here and not above, so that a preview keeps its lines.
    folded = "\x1e".join(" ".join(text.split()) for text in texts)
    return hashlib.sha256(folded.encode("utf-8", "replace")).hexdigest()


def _message(message: Any) -> str:
    if not isinstance(message, dict):
        return normalise(str(message))
    text = normalise(_content(message.get("content")))
    parts = [f"{message.get('role', '')}: {text}"]
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {} if isinstance(call, dict) else {}
        arguments = normalise(_arguments(function.get("arguments")))
        parts.append(f"call {function.get('name', '')} {arguments}")
    return "\n".join(parts)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(
            part["text"]
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else json.dumps(part, sort_keys=True)
            for part in content
        )
    return "" if content is None else str(content)


def _arguments(arguments: Any) -> str:
    """Spell equal arguments equally, whatever the order of their names."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return str(arguments)
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False)
