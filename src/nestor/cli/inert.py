"""Make foreign text harmless on a terminal.

Task texts, model answers, file names and upstream errors are written by others. Shown
as they came, an escape sequence could retitle the window, hide a line or answer for the
user, and a bidirectional override could make a command read as another one.
"""

import unicodedata

_JOINERS = {"\u200c", "\u200d"}
"""Needed to write Persian, Hindi and many emoji; they hide nothing."""
_DANGEROUS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def inert(text: object, *, multiline: bool = False) -> str:
    """Return ``text`` with every control, format and surrogate character spelled out.

    ``multiline`` keeps line feeds and tabs; without it the result is one line.
    """
    keep = _JOINERS | {"\n", "\t"} if multiline else _JOINERS
    raw = str(text).replace("\r\n", "\n")
    if raw.isascii() and raw.isprintable():
        return raw
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _DANGEROUS
        else character.encode("unicode_escape").decode()
        for character in raw
    )


def one_line(text: object, limit: int = 100) -> str:
    """Return the beginning of ``text`` as one inert line of at most ``limit`` characters."""
    joined = inert(" ".join(str(text).split()))
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"
