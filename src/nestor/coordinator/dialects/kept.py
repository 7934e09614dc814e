"""What a translation may keep of one answer while it streams."""

from nestor.errors import UpstreamError

MAX_KEPT = 16 * 1024 * 1024
"""Characters: as long as a whole answer may be."""
PIECE = 1024
"""What an item, a block or a part takes beside its text."""


class Room:
    """Counts what is kept. Who has no end would fill the memory of everybody's process."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_KEPT

    def take(self, size: int) -> None:
        """Keep more. Raises ``UpstreamError`` when there is no room for it."""
        self._left -= size
        if self._left < 0:
            raise UpstreamError("the model's answer is too long to be translated")
