"""Turns texts into vectors, wherever the model runs. tests/contracts/test_embedder.py."""

from collections.abc import Sequence
from typing import Protocol

from nestor.model.knowledge import EmbeddingStamp


class Embedder(Protocol):
    """One model of embeddings.

    Any call may raise ``Unavailable`` (try again later). A failure is never a vector:
    no zeros, nothing shortened or filled up.
    """

    async def stamp(self) -> EmbeddingStamp:
        """Tell what its vectors are made by; may ask the model once to learn its dimension."""
        ...

    async def embed(
        self, texts: Sequence[str], *, query: bool = False
    ) -> list[list[float]]:
        """Return one vector of unit length for each text, in order.

        What is longer than the model reads is cut at its end. ``query``: the texts are
        questions (some models want them marked). Never blocks the event loop.
        """
        ...

    async def close(self) -> None:
        """Let go of connections, threads and memory."""
        ...
