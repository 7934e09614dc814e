"""What a request line may ask for: one spelling for each path, and no key in it."""

import re
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_plus

from nestor.errors import InvalidInput
from nestor.web import wire
from nestor.web.errors import Refused
from nestor.web.wire import MAX_TARGET_BYTES

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
KEY_NAMES = frozenset({"api_key", "apikey", "api-key", "x-api-key", "key", "token", "access_token"})  # fmt: skip

# One spelling for each path: no slash at the end, nothing escaped that needs no escape.
_ODD_PATH = re.compile(
    rb"//|./$|/\.\.?(?:/|$)|\\|%(?:[01][0-9a-f]|2[def]|3[0-9]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef])",
    re.IGNORECASE,
)
_DOTS = re.compile(r"/\.\.?(?:/|$)")

_PLAIN_PATH = re.compile(rb"/(?:[A-Za-z0-9_~-][A-Za-z0-9_.~-]*(?:/(?!$)|$))*")
"""What nearly every path looks like; any other is looked at closely."""


def check_target(
    scope: MutableMapping[str, Any], refuse: Callable[[bytes], None] = lambda _: None
) -> None:
    """Hold the request line to plain origin-form. Raises ``Refused``, ``InvalidInput``."""
    noted = wire.target_of(scope)
    raw: bytes = noted["raw"]
    if scope["method"] not in METHODS:
        allow = ", ".join(sorted(METHODS))
        raise Refused(405, "this method is not served", allow=allow)
    if len(raw) > MAX_TARGET_BYTES:
        raise Refused(414, f"the request target is over {MAX_TARGET_BYTES} bytes")
    if noted["head_too_large"]:
        raise Refused(431, "too many headers, or too long")
    if not raw.startswith(b"/"):
        raise Refused(400, "only paths are served, not proxy requests")
    if noted["malformed"]:
        raise Refused(400, "this is not a valid HTTP/1.1 message")
    refuse(raw)
    if not _PLAIN_PATH.fullmatch(raw):
        _look_closely(raw, scope["path"])
    if not scope["query_string"]:
        return
    for part in re.split(rb"[&;]", scope["query_string"]):
        name = unquote_plus(part.partition(b"=")[0].decode("latin-1"))
        if name.strip().lower() in KEY_NAMES:
            raise InvalidInput.at(
                name.strip().lower(),
                "keys are taken from headers only, never from the URL",
            )


def _look_closely(raw: bytes, path: str) -> None:
    if b"#" in raw:
        raise Refused(400, "a request target has no fragment")
    raw_path = raw.partition(b"?")[0]
    # U+FFFD stands where the bytes were not UTF-8 (overlong forms of a slash or a dot).
    if _ODD_PATH.search(raw_path) or _DOTS.search(path) or "\ufffd" in path:
        raise Refused(404, "nothing is served at this path")
