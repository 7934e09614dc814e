"""Names of what a translation leaves out, as the reply's header gives them."""

import re
from typing import Any

Left = dict[str, None]
"""Each name once, in order."""
_MOST, _LONGEST = 32, 64


def leave(value: dict[str, Any], known: set[str], name: str, left: Left) -> None:
    """Note what of an object is not translated; None says nothing."""
    for field, inner in value.items():
        if field not in known and inner is not None:
            left[f"{name}.{field}"] = None


def names(left: Left) -> tuple[str, ...]:
    """Return the names as they fit in a line of a header: callers choose some of them."""
    kept = [re.sub(r"[^!-+\--~]", "?", name)[:_LONGEST] for name in left]
    return tuple(kept[:_MOST])
