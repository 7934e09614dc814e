"""Names of tool calls that every dialect accepts."""

import hashlib
import re

_LEGAL = re.compile(r"[A-Za-z0-9_-]{1,128}")
_OTHERS = re.compile(r"[^A-Za-z0-9_-]")
_KEPT = 100


def legal(call_id: str) -> str:
    """Return the id as Anthropic's API accepts it: letters, digits, ``_`` and ``-``.

    Some servers write ``functions.bash:0``. The same id gives the same name every time,
    different ids different ones; an id that is legal stays as it is.
    """
    if _LEGAL.fullmatch(call_id):
        return call_id
    digest = hashlib.sha256(call_id.encode()).hexdigest()[:12]
    return f"{_OTHERS.sub('_', call_id)[:_KEPT]}_{digest}"
