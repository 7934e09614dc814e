"""Which environments are kept on disk, and which make room when they grow too many."""

import os
from contextlib import suppress
from pathlib import Path

KEPT_BYTES = 20 * 1024**3
"""Of all environments that no task has at hand."""
_USED = Path("runs", "environment")
"""In a task's folder until the task has ended: the name of its environment."""
_MARK = "complete"


class Kept:
    """``home/setup/<digest>/``: ``tree`` and, once that is whole, a mark with its size.

    The mark's time says when it was last asked for. One process at a time.
    """

    def __init__(self, home: Path, *, limit_bytes: int) -> None:
        self._setup = home / "setup"
        self._tasks = home / "tasks"
        self._limit = limit_bytes

    def place(self, digest: str) -> Path:
        """Return where the environment of this digest is, or will be."""
        return self._setup / digest

    def take(self, digest: str, task: Path) -> Path | None:
        """Say that the task of this folder uses it; return where it is, None: nowhere yet."""
        # Said first: whoever looks for surplus after this leaves it alone.
        used = task / _USED
        used.parent.mkdir(exist_ok=True)
        used.write_text(digest)
        place = self.place(digest)
        try:
            os.utime(place / _MARK)
        except FileNotFoundError:
            return None
        return place

    def mark(self, place: Path) -> None:
        """Say that it is whole. Takes as long as the disk needs; not for the event loop."""
        size = _size(place / "tree")
        os.sync()  # the mark must not outlive a power cut that the folder did not
        (place / _MARK).write_text(f"{size}\n")

    def surplus(self) -> list[Path]:
        """Put aside and name what may go: rubble, and beyond the limit what is used least."""
        used = set()
        for path in self._tasks.glob(f"*/{_USED}"):
            with suppress(OSError):
                used.add(path.read_text())
        rubble = []
        kept: list[tuple[float, int, Path]] = []
        for place in self._setup.iterdir():
            if place.name in used:
                continue
            mark = place / _MARK
            try:
                kept.append((mark.stat().st_mtime, int(mark.read_text()), place))
            except (OSError, ValueError):
                rubble.append(place)
        held = sum(size for _, size, _ in kept)
        for _, size, place in sorted(kept):
            if held <= self._limit:
                break
            held -= size
            rubble.append(place)
        # A task may ask for one of them before it is gone: it makes that anew.
        aside = [self._setup / f"old-{os.urandom(8).hex()}" for _ in rubble]
        for place, other in zip(rubble, aside, strict=True):
            place.rename(other)
        return aside


def _size(top: Path) -> int:
    """Add up what a tree takes on disk, however deep it is."""
    total = 0
    waiting = [str(top)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total
