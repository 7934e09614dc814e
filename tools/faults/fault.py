"""What one planted fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """``edits``: (file below src/nestor, text, replacement)."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]
