r"""Takes secrets out of text before it is written anywhere.

Known shapes only: provider keys, Nestor's own keys, bearer tokens, assignments to names
such as ``password``, passwords in URLs, PEM blocks, and the exact secrets that the
settings hold (``remember``). Doubtful cases are redacted: a lost word costs less than a
leaked key. ``redact`` of its own result changes nothing.

Every pattern takes time linear in the text: repetition is possessive (``*+``) or has a
bound, and a start that fails costs at most that bound. Patterns are tried only where
their literal hint occurs, so ordinary text costs a few substring searches.
"""

import re
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

REDACTED: Final = "[redacted]"
_MAX_DEPTH = 64
_MIN_REMEMBERED = 8
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Rule(NamedTuple):
    hints: tuple[str, ...]
    """Lower case; one of them must occur."""
    pattern: re.Pattern[str]
    replacement: str = REDACTED


def _rule(hints: str, pattern: str, replacement: str = REDACTED) -> _Rule:
    return _Rule(tuple(hints.split()), re.compile(pattern), replacement)


# What stands between a name and its value: `: `, `=`, `": "`, `\": \"`.
_IS = r"[\"'\\]{0,4}[ \t]{0,8}(?::=|=>|={1,3}|:)[ \t]{0,8}"
# The value: quoted (to the closing quote, also on several lines), escaped-quoted, or
# plain up to white space or a delimiter.
_VALUE = (
    r"(?:"
    r"(?P<esc>\\{1,3}[\"'])[^\"'\\]++"
    r"|(?P<dq>[brf]?\")(?:[^\"\\]++|\\[\s\S])++"
    r"|(?P<sq>[brf]?')(?:[^'\\]++|\\[\s\S])++"
    r"|[^\s\"'\\,;&<>]++"
    r")"
)
_KEEP = r"\g<name>\g<esc>\g<dq>\g<sq>" + REDACTED
# Type names and literals after a name are code or schema, not a secret.
_NOT_CODE = (
    r"(?!(?:None|null|nil|true|false|True|False|str|string|bytes|int|SecretStr)"
    r"(?:[\s,;)\]}|?]|$))"
)
_NAMES = (
    r"(?:pass(?:word|wd|phrase)|secret|credentials?"
    r"|(?:api|access|secret|private|signing|encryption|account|master|admin)[_-]?key"
    r"|(?:auth|access|refresh|session|id|bearer|api|csrf|bot|user|service)[_-]?token)"
)

_RULES: Final = (
    # The block may end in the middle (truncated output): all that looks like its body.
    _rule(
        "-----begin",
        r"-----BEGIN [A-Z0-9 ]{1,64}-----"
        r"(?:[A-Za-z0-9+/=\s\\:,.]++|-(?!----))*+"
        r"(?:-----END [A-Z0-9 ]{1,64}-----)?",
    ),
    _rule("sk-", r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}+"),
    _rule("nst_", r"(?<![A-Za-z0-9])nst_[A-Za-z0-9_-]{16,}+"),
    _rule(
        "akia asia abia acca",
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16,}+",
    ),
    _rule(
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"(?<![A-Za-z0-9])(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{16,}+",
    ),
    _rule(
        "glpat- hf_ npm_ pypi- aiza xox sk_ rk_ eyj",
        r"(?<![A-Za-z0-9_-])(?:"
        r"glpat-[\w-]{16,}+|hf_[A-Za-z0-9]{20,}+|npm_[A-Za-z0-9]{30,}+"
        r"|pypi-[\w-]{32,}+|AIza[\w-]{30,}+|xox[abeoprs]-[A-Za-z0-9-]{10,}+"
        r"|[sr]k_(?:live|test)_[A-Za-z0-9]{8,}+"
        r"|eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+)?)",
    ),
    _rule(
        "://",
        r"(?P<name>://[^\s/?#@:\"'<>]{0,256}+:)[^\s/?#\"'<>]{1,1024}@",
        r"\g<name>" + REDACTED + "@",
    ),
    # A token alone before the @ (long, so that `ssh://git@host` stays).
    _rule("://", r"://[^\s/?#@:\"'<>]{20,512}+@", "://" + REDACTED + "@"),
    _rule(
        "authorization",
        r"(?i)(?P<name>authorization" + _IS + r"[\"'\\]{0,4}"
        r"(?:(?:bearer|basic|token|digest|apikey)[ \t]{1,8})?)[^\s\"'\\,]++",
        r"\g<name>" + REDACTED,
    ),
    _rule(
        "bearer",
        r"(?i)(?P<name>(?<![a-z0-9])bearer[ \t]{1,8})"
        r"(?!(?:tokens?|auth|authentication|authorization|scheme|keys?|realm)"
        r"(?![A-Za-z0-9_~+/=-]))"
        r"[A-Za-z0-9._~+/=-]{4,}+",
        r"\g<name>" + REDACTED,
    ),
    _rule(
        "pass secret credential key token",
        r"(?i)(?P<name>"
        + _NAMES
        + r"\d{0,2}"
        + _IS
        + r")(?-i:"
        + _NOT_CODE
        + r")"
        + _VALUE,
        _KEEP,
    ),
    # `pwd=` is a password in connection strings and the current folder in a shell.
    _rule("pwd", r"(?i)(?P<name>pwd" + _IS + r")(?![\"'\\]{0,4}[/~])" + _VALUE, _KEEP),
    # `token=` and `key=` are also everyday words of code: a number is a count, and a
    # `key` without a digit is an identifier.
    _rule(
        "token",
        r"(?i)(?P<name>(?<![a-z0-9])token" + _IS + r")"
        r"(?![\"'\\]{0,4}\d{1,9}(?:[\s\"'\\,;)\]}]|$))(?-i:"
        + _NOT_CODE
        + r")"
        + _VALUE,
        _KEEP,
    ),
    _rule(
        "key",
        r"(?i)(?P<name>(?<![a-z0-9_])key" + _IS + r"[\"'\\]{0,4})"
        r"(?=[A-Za-z_~+/.=-]{0,64}\d)[A-Za-z0-9_~+/.=-]{6,}+",
        r"\g<name>" + REDACTED,
    ),
    _rule("key=", r"(?i)(?P<name>[?&]key=)[^\s&\"'\\<>]++", r"\g<name>" + REDACTED),
)
_SECRET_NAME = re.compile(
    r"(?i)(?:.{0,64}[^a-z0-9])?(?:.{0,64}" + _NAMES + r"|passwd|pwd|token|authorization"
    r"|x-api-key|cookie|set-cookie)\d{0,2}"
)

# One search that says "no rule can match" for nearly every text.
_ANY_HINT = re.compile("|".join(re.escape(h) for rule in _RULES for h in rule.hints))
_PASSES = 4
"""A secret that stood right behind another one is seen once that is gone."""
_MAX_NAMES, _MAX_KEPT_NAME = 1024, 64
_names: dict[str, tuple[str, bool]] = {}
"""What a name becomes, and whether it is a secret's: the same few in every event."""
_MAX_KEPT_WORD = 32
_words: set[str] = set()
"""Short texts that are no secret: names of models, reasons and states come again and again."""
_HARMLESS = frozenset({type(None), bool, int, float})
_remembered: tuple[str, ...] = ()
_remembered_lock = threading.Lock()


def remember(*secrets: str) -> None:
    """Redact these exact texts from now on, whatever their shape (8 characters or more).

    For secrets out of the settings: an upstream's error message may repeat one.
    """
    global _remembered, _names, _words  # noqa: PLW0603 - one set for the process: logs have no other way to it
    with _remembered_lock:
        fit = (s for s in secrets if len(s) >= _MIN_REMEMBERED and s not in REDACTED)
        known = {*_remembered, *fit}
        _remembered = tuple(sorted(known, key=lambda s: (-len(s), s)))
        # After: who looks meanwhile fills those that are let go.
        _names, _words = {}, set()


def redact(text: str) -> str:
    """Return ``text`` without secrets, and without lone surrogates (U+FFFD instead)."""
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text)
    for secret in _remembered:
        text = text.replace(secret, REDACTED)
    for _ in range(_PASSES):
        lowered = text.lower()
        if _ANY_HINT.search(lowered) is None:
            break
        before = text
        for rule in _RULES:
            if any(hint in lowered for hint in rule.hints):
                text = rule.pattern.sub(rule.replacement, text)
        if text == before:
            break
    return text


def redact_value(value: Any) -> Any:
    """Return a JSON-like value without secrets; texts under a secret's name go whole.

    Keys are redacted too. Deeper than 64 levels, ``"[too deep]"`` stands instead. Values
    that are neither text nor a container come back as they are.
    """
    return _redact_value(value, 0)


def _redact_value(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _redact_word(value)
    if depth > _MAX_DEPTH:
        return "[too deep]"
    if isinstance(value, Mapping):
        cleaned: dict[Any, Any] = {}
        for key, item in value.items():
            name, secret = _name(key) if isinstance(key, str) else (key, False)
            while name in cleaned:
                name = f"{name}_"
            if type(item) in _HARMLESS:  # most of what an event holds
                cleaned[name] = item
            elif secret:
                cleaned[name] = _hide(item, depth + 1)
            else:
                cleaned[name] = _redact_value(item, depth + 1)
        return cleaned
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact_value(item, depth + 1) for item in value]
    return value


def _redact_word(text: str) -> str:
    if len(text) > _MAX_KEPT_WORD:
        return redact(text)
    words = _words
    if text in words:
        return text
    redacted = redact(text)
    if redacted == text and len(words) < _MAX_NAMES:
        words.add(text)
    return redacted


def _name(key: str) -> tuple[str, bool]:
    names = _names
    known = names.get(key)
    if known is None:
        known = redact(key), _SECRET_NAME.fullmatch(key) is not None
        if len(names) < _MAX_NAMES and len(key) <= _MAX_KEPT_NAME:
            names[key] = known
    return known


def _hide(value: Any, depth: int) -> Any:
    """Everything below a secret's name; numbers may be counts and stay."""
    if isinstance(value, str | bytes):
        return REDACTED if value else value
    if depth > _MAX_DEPTH:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {
            redact(k) if isinstance(k, str) else k: _hide(v, depth + 1)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_hide(item, depth + 1) for item in value]
    return value
