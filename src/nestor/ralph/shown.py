"""The part of a long text that is kept: without secrets, also where it is cut.

Half a secret is not known for one. So more than is kept is looked at, and what is left
out is left out afterwards.
"""

import re

from nestor.telemetry.redact import REDACTED, redact

_MORE_CHARS = 16 * 1024
"""Twice as long as a private key."""
_KEY_BODY = re.compile(r"\A(?:[ \t]*[A-Za-z0-9+/=]+\r?\n)+(?:-----END[^\n]*)?")
"""What a key is whose first line is gone."""


def newest(text: str, most: int) -> str:
    """Return the last ``most`` characters, without secrets."""
    window = text[-(most + _MORE_CHARS) :]
    if len(window) < len(text):
        window = _whole_lines(window)
    return redact(window)[-most:]


def first(text: str, most: int) -> str:
    """Return the first ``most`` characters, without secrets."""
    return redact(text[: most + _MORE_CHARS])[:most]


def _whole_lines(window: str) -> str:
    """Begin where a line does; a text of one line: at a blank."""
    for blank in ("\n", " "):
        before, _, after = window.partition(blank)
        # Not in what is kept, nor so near that a secret from before it reaches in there.
        if len(before) < _MORE_CHARS // 2:
            return _KEY_BODY.sub(f"{REDACTED}\n", after)
    return window
