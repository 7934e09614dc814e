"""The generations of an Edge index: which one answers, and how the next one takes over.

Everything here runs in the writer's thread, but for what is read under ``turn``.
"""

import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from nestor.backends.qdrant import points
from nestor.backends.qdrant.folder import IndexFolder
from nestor.backends.qdrant.points import Bm25Parameters, Made
from nestor.backends.qdrant.shard import Shard
from nestor.errors import IndexDamaged, Unavailable
from nestor.model.knowledge import EmbeddingStamp, Entry


class Copied(NamedTuple):
    """A closed copy of the shard that answers."""

    folder: Path
    dimension: int


class Generations:
    """One answers; at most one more is being filled, or is a copy that gets its graph."""

    def __init__(self, folder: IndexFolder, parameters: Bm25Parameters) -> None:
        """Nothing is opened yet; ``begin`` does."""
        self.weights = points.Weights(parameters)
        self.turn = threading.RLock()
        """Held for each call of the engine, and while another generation takes over."""
        self._folder = folder
        self._parameters = parameters
        self._shard: Shard | None = None
        self._number = 0
        self._next: tuple[int, Shard] | None = None
        self._copy: int | None = None
        self._changed: set[str] = set()
        """Ids written since the copy was made."""

    @property
    def current(self) -> Shard:
        """The one that answers; stays the same while ``turn`` is held. Raises ``IndexDamaged``."""
        if self._shard is None:
            raise IndexDamaged(f"the search index at {self._folder.path} is gone")
        return self._shard

    def begin(self) -> None:
        """Load what counts; start empty where nothing usable is. Raises ``Unavailable``."""
        found = self._folder.current()
        if found is None or not found[1].fits(self._parameters):
            self.swap(self.start(None, None))
            return
        self._number, made = found
        self._folder.remove_others(self._number)
        self._shard = self._at(self._number, made)
        self._shard.open()

    def start(self, stamp: EmbeddingStamp | None, avg_len: float | None) -> int:
        """Make an empty generation beside the one that answers; one that was begun goes.

        Raises ``Unavailable``.
        """
        self.forget()
        made = Made(
            bm25=self._parameters,
            stamp=stamp,
            avg_len=self._parameters.avg_len or avg_len,
        )
        number = self._new_number()
        shard = self._at(number, made)
        shard.create()
        self._next = number, shard
        return number

    def next(self, number: int) -> Shard:
        """Return the one that is being filled. Raises ``Unavailable`` when it is over."""
        if self._next is None or self._next[0] != number:
            raise Unavailable("this rebuild is over: it was swapped in or thrown away")
        return self._next[1]

    def swap(self, number: int) -> None:
        """Let the next one answer, also after a crash; the old one is removed.

        Raises ``Unavailable``; the old one then goes on answering.
        """
        shard = self.next(number)
        shard.flush()
        self._take_over(number, shard)
        self._next = None

    def forget(self) -> None:
        """Throw away what is not the one that answers."""
        if self._next is not None:
            self._next[1].close()
        self._next = self._copy = None
        self._changed.clear()
        self._folder.remove_others(self._number)

    def upsert(self, shard: Shard, entries: Sequence[Entry]) -> None:
        """Write into one of the two, once its mean length is fixed.

        Raises ``InvalidInput`` and ``Unavailable``.
        """
        points.refuse_entries(entries, shard.made.stamp)
        self._note(shard, [entry.chunk.id for entry in entries])
        if shard.made.avg_len is None:
            self._settle(shard, entries)
        shard.upsert(entries)

    def remove(self, shard: Shard, chunk_ids: Sequence[str]) -> None:
        """Remove from one of the two."""
        self._note(shard, points.known_ids(chunk_ids))
        shard.remove(chunk_ids)

    def mean_length(self) -> float | None:
        """Return the mean length of what answers; None when it is unknown."""
        with suppress(Unavailable):  # a damaged one tells nothing
            return points.settled(self.current.sample_lengths())
        return None

    def copy(self) -> tuple[int, Copied]:
        """Copy the one that answers; until ``catch_up`` what is written is noted.

        Raises ``Unavailable`` and ``OSError``; what was copied stays until ``drop_copy``.
        """
        if self._next is not None:
            raise Unavailable("a rebuild is under way")
        shard = self.current
        if shard.made.stamp is None:
            raise Unavailable("the index holds no vectors")
        shard.flush()
        self._copy = number = self._new_number()
        shutil.copytree(shard.folder, self._folder.shard(number))
        return number, Copied(self._folder.shard(number), shard.made.stamp.dimension)

    def drop_copy(self) -> None:
        """Remove the copy, or what there is of one; fine when there is none."""
        if self._copy is None:
            return
        number, self._copy = self._copy, None
        self._changed.clear()
        shutil.rmtree(self._folder.shard(number), ignore_errors=True)

    def catch_up(self, number: int) -> None:
        """Bring the copy up to date and let it answer. Raises ``Unavailable``."""
        if self._copy != number:
            raise Unavailable("the index was emptied or filled again meanwhile")
        old = self.current
        new = self._at(number, old.made)
        try:
            new.open()
            new.made = msgspec.structs.replace(old.made, in_graph=new.indexed())
            changed = sorted(self._changed)
            kept = old.retrieve(changed, vectors=True)
            new.copy_points(kept)
            new.remove(sorted(set(changed) - {str(one.id) for one in kept}))
            new.flush()
            self._take_over(number, new)
        except BaseException:  # whatever it was, its files must not stay open
            new.close()
            raise
        self._copy = None
        self._changed.clear()

    def end(self) -> None:
        """Flush and close everything."""
        self.forget()
        if self._shard is not None:
            with suppress(Unavailable):  # the engine's log holds it all
                self._shard.flush()
            self._shard.close()

    def _at(self, number: int, made: Made) -> Shard:
        return Shard(self._folder.shard(number), made, self.weights, self.turn)

    def _new_number(self) -> int:
        try:
            return self._folder.begin()
        except OSError as error:
            raise self._unwritable(error) from error

    def _take_over(self, number: int, shard: Shard) -> None:
        self._point_at(number, shard.made)
        with self.turn:
            old, self._shard, self._number = self._shard, shard, number
            if old is not None:
                old.close()
        self._folder.remove_others(number)

    def _settle(self, shard: Shard, entries: Sequence[Entry]) -> None:
        """Fix the mean length as soon as there are enough chunks to know it."""
        if (mean := shard.mean_with(entries)) is None:
            return
        made = msgspec.structs.replace(shard.made, avg_len=mean)
        if shard is self._shard:
            self._point_at(self._number, made)
        shard.made = made
        shard.weigh_again()

    def _note(self, shard: Shard, chunk_ids: Sequence[str]) -> None:
        if self._copy is not None and shard is self._shard:
            self._changed.update(chunk_ids)

    def _point_at(self, number: int, made: Made) -> None:
        try:
            self._folder.point_at(number, made)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"the search index at {self._folder.path} cannot be written: {error}"
        )
