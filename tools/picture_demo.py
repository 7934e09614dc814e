"""Draw docs/images/demo.svg from a real run: `python -m tools.picture_demo`.

The run is whole; the picture shows the parts that a newcomer needs to see.
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nestor.cli import demo
from nestor.cli.render import Screen

PICTURE = Path("docs/images/demo.svg")
SHOWN = ("4", "5", "8")
"""Sections of the demo, by their number."""
WIDTH = 108


class Excerpt(Screen):
    """Records some sections of the demo, and tells the shell where it is."""

    def __init__(self) -> None:
        super().__init__(terminal=True, width=WIDTH, record=True)
        self._wanted = False
        self._ended = False

    def heading(self, text: str) -> None:
        print(text, file=sys.stderr)
        self._wanted = text.startswith(SHOWN)
        self._ended = text.startswith("9")
        super().heading(text)

    def line(self, text: object = "", style: str = "", *, hang: int = 0) -> None:
        # After the last table come the lines that say how it ended.
        self._wanted = self._wanted or (
            self._ended and str(text).startswith("verified")
        )
        if self._wanted:
            super().line(text, style, hang=hang)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        empty: str = "nothing to show",
    ) -> None:
        if self._wanted:
            super().table(columns, rows, empty=empty)


def main() -> int:
    """Run the demo and draw it; returns its exit code."""
    screen = Excerpt()
    with tempfile.TemporaryDirectory(prefix="nestor-demo-") as folder:
        verified = demo.run(screen, Path(folder))
    if verified:
        drawn = screen.console.export_svg(title="nestor demo")
        # Without fonts from elsewhere: the reader's own will do.
        PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))
    return 0 if verified else 1


if __name__ == "__main__":
    sys.exit(main())
