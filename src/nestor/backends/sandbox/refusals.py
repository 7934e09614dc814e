"""What a command tried and was not let: for people, and for the questions that come of it."""

_MOST = 50
_LONGEST = 200


class Refusals:
    """Each text once, in the order of the first time; printable, and not without end."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}

    def add(self, text: str) -> None:
        """Remember one refusal."""
        clean = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
        if len(self._seen) < _MOST:
            self._seen.setdefault(clean[:_LONGEST])

    @property
    def texts(self) -> list[str]:
        """What was remembered."""
        return list(self._seen)
