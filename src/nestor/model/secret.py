"""Secrets of an operator: what is none, what is too weak, and which files may hold one."""

import os
import re
import stat
from pathlib import Path

LEAST_KEY_CHARACTERS = 16
LEAST_DISTINCT = 6
"""Of a key made at random, fewer different characters are next to impossible."""
_MOST_DIGITS = 8
"""More digits than this may be a secret of their own, whatever words stand before them."""
MAKE_ONE = (
    "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
)

_ANYWHERE = re.compile(
    r"change.?me|your.?(api.?)?key|placeholder|\$\{[A-Za-z_]\w*[^}]*\}", re.IGNORECASE
)
_WHOLE = re.compile(r".*<[^<>]*>|\$\(?\w+\)?|\{\{.*\}\}|%\w+%|\[[\w .-]+\]", re.DOTALL)
_WORDS = re.compile(
    "(?:changeme|change|this|replace|insert|enter|put|set|todo|fixme|tbd|dummy|sample"
    "|placeholder|example|default|demo|test|testing|admin|root|user|guest|password"
    "|passwd|pass|pwd|secret|private|token|api|key|me|my|your|the|here|in|for|to|it"
    "|production|prod|dev|local|nestor|openai|redis|postgres|sk|nst|null|undefined"
    "|letmein|qwerty|foo|bar|foobar|x{3,}|string|value)+"
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_RUNS = ("0123456789" * 4, "qwertyuiopasdfghjklzxcvbnm", f"0123456789{_LETTERS * 2}")


def is_placeholder(value: str) -> bool:
    """Tell whether a text only stands where a secret should be.

    A text of random characters is none: what decides is that nothing but well-known words
    is left when signs and digits are taken away.
    """
    letters = re.sub(r"[\W_]", "", value)
    if not letters or _ANYWHERE.search(value) or _WHOLE.fullmatch(value.strip()):
        return True
    digits = sum(character.isdigit() for character in letters)
    words = re.sub(r"\d", "", letters).lower()
    return digits <= _MOST_DIGITS and _WORDS.fullmatch(words) is not None


def refuse_placeholder(value: str, what: str = "it") -> None:
    """Raises ``ValueError`` for a secret that is blank or a placeholder; never quotes it."""
    if not value.strip():
        raise ValueError("is given, but empty; put the secret there, or unset it")
    if is_placeholder(value):
        raise ValueError(f"{what} is a placeholder; put the real secret there")


def weakness_of(key: str) -> str | None:
    """Say why a key can be guessed; None when it cannot. Never quotes it."""
    if len(key) < LEAST_KEY_CHARACTERS:
        return f"too short: {len(key)} characters, at least {LEAST_KEY_CHARACTERS} are needed"
    if not key.isascii() or not key.isprintable() or " " in key:
        return "use ASCII letters, digits and signs, without spaces"
    lowered = key.lower()
    if len(set(key)) < LEAST_DISTINCT or any(lowered in run for run in _RUNS):
        return "too easy to guess: too few different characters, or a row of neighbours"
    return None


def fault_of_file(
    found: os.stat_result, path: Path, *, owner_only: bool = False
) -> str | None:
    """Say why an opened file may not hold a secret; None when it may."""
    if not stat.S_ISREG(found.st_mode):
        return f"{path} must be a regular file"
    if owner_only and found.st_mode & 0o077:
        return f"{path} must be a file that only its owner may read: chmod 600 {path}"
    if found.st_mode & stat.S_IROTH:
        return f"{path} can be read by every user of this machine: chmod 600 {path}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} can be written by other users: chmod 600 {path}"
    return None
