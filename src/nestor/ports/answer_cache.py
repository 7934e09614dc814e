"""Answers given before. tests/contracts/test_answer_cache.py."""

from typing import Protocol

from nestor.model.health import Dependency


class AnswerCache(Protocol):
    """Bytes under a digest, for a while. Bounded; losing an entry is no fault.

    Never raises because of where answers are kept: then there is none.
    """

    async def get(self, digest: str) -> bytes | None:
        """Return what was put, while it is fresh."""
        ...

    async def put(self, digest: str, answer: bytes, *, ttl_s: float) -> None:
        """Keep it for ``ttl_s`` seconds at most."""
        ...

    async def dependencies(self) -> list[Dependency]:
        """Look at where answers are kept; empty when that is this process."""
        ...

    async def close(self) -> None:
        """Close the connections to where answers are kept."""
        ...
