"""What is asked and answered: known to the load generator and to the upstream alike.

Every request has a serial number of its own, written into the text of its last message,
and the answer says it uses as many input tokens as that number: so each call that a meter
recorded can be found again on both sides, one by one.
"""

import re
from functools import cache

import msgspec

UPSTREAM_KEY = "sk-upstream-0123456789abcdef"
"""What the upstream wants; every system in between has to put it in."""
UPSTREAM_MODEL = "stand-in-1"
PIECES = 50
"""Events with text in one stream; a first one with the role, one that ends, one with usage."""
EVENTS = PIECES + 3
SIZES = {"2k": 2_048, "12k": 12_288}
"""Bytes of a request's body, about."""
MARK = re.compile(rb"#(\d{8})([a-z]*);")
"""Serial number, and what shall go wrong."""
FIRST_TOKENS = 50

_PROSE = (
    'def fold(rows):\n    """Add up what was spent."""\n    total = 0\n'
    '    for row in rows:\n        total += row["tokens"]\n    return total\n\n'
    "The test fails with: AssertionError: expected 'done', got 'running' (line 42).\n"
)
_WORDS = [
    "the",
    "gateway",
    "reads",
    "one",
    "piece",
    "after",
    "another",
    "and",
    "writes",
    "it",
    "down",
]


def answer_tokens(serial: int) -> int:
    """Tokens of the answer to request ``serial``."""
    return FIRST_TOKENS + serial % 17


def piece(number: int) -> str:
    """Text of one event of a stream."""
    return f"{_WORDS[number % len(_WORDS)]} "


ANSWER = (_PROSE * 5)[:1150]
"""Text of a whole answer: with it the reply is about 1.5 kB."""
STREAMED = "".join(piece(n) for n in range(PIECES))
"""Text of a streamed answer."""


@cache
def _around(model: str, size: str, stream: bool) -> tuple[bytes, bytes]:
    """Return a body before and after its mark."""
    turns = 2 if size == "2k" else 10
    room = SIZES[size] - 400
    text = (_PROSE * (room // len(_PROSE) + 1))[: room // turns]
    messages = [{"role": "system", "content": f"You change code as asked.\n{text}"}]
    messages += [
        {"role": ("user", "assistant")[n % 2], "content": text}
        for n in range(turns - 2)
    ]
    messages.append({"role": "user", "content": f"#MARK;\n{text}"})
    body: dict[str, object] = {
        "model": model,
        "messages": messages,
        "temperature": 0.2,
        "max_tokens": 1024,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    before, after = msgspec.json.encode(body).split(b"#MARK;")
    return before, after


def body_of(model: str, size: str, *, stream: bool, serial: int, fault: str) -> bytes:
    """Return the body of one request."""
    before, after = _around(model, size, stream)
    return b"%b#%08d%b;%b" % (before, serial, fault.encode(), after)
