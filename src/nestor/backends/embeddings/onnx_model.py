"""An ONNX model of embeddings, loaded: one text in, one vector out."""

import hashlib
from pathlib import Path
from typing import Any, Self

from nestor.backends.embeddings.folder import (
    MODEL,
    TOKENIZER,
    About,
    read_about,
)
from nestor.backends.embeddings.vectors import unit
from nestor.errors import Unavailable
from nestor.model.knowledge import EmbeddingStamp

SENTENCE = "sentence_embedding"
_CHARACTERS_A_TOKEN = 64
"""A text is read up to so many characters for each token that the model takes: far more
than words have, and a bound for what the tokenizer is given."""
_OF_TOKENS = 3
"""Axes of an output that has a vector for each token."""
_QUIET = 3
"""Of onnxruntime's log: errors only."""


class OnnxModel:
    """Safe to call from several threads at once; each call works on one core.

    Texts are never put into one tensor: an int8 model takes the range of its activations
    from all that is in it, so that a vector would depend on its neighbours.
    """

    def __init__(
        self, session: Any, tokenizer: Any, about: About, revision: str
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._about = about
        self._wanted = [one.name for one in session.get_inputs()]
        outputs = {one.name: len(one.shape) for one in session.get_outputs()}
        self._output = SENTENCE if SENTENCE in outputs else next(iter(outputs))
        self._pools = outputs[self._output] == _OF_TOKENS
        self.stamp = EmbeddingStamp(
            model=about.name,
            revision=revision,
            dimension=len(self.vector("How many numbers?")),
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder (see ``folder``), which takes a second; not on the event loop.

        Raises ``Unavailable`` for one that is not there, incomplete or damaged.
        """
        try:
            about = read_about(folder)
            model = (folder / MODEL).read_bytes()
            words = (folder / TOKENIZER).read_bytes()
        except (OSError, ValueError) as error:
            raise Unavailable(f"embeddings: {error}") from error
        try:
            session, tokenizer = _opened(model, words, about.max_tokens)
            revision = about.revision or _hash_of(model, words)
            return cls(session, tokenizer, about, revision)
        except ImportError as error:
            message = f"needs the package {error.name}: pip install 'nestor[onnx]'"
            raise Unavailable(f"embeddings: {message}") from error
        except Exception as error:
            # Both libraries raise bare ``Exception``s for files that they cannot read.
            what = " ".join(str(error).split())[:200]
            message = f"{folder} holds no model that can be used: {what}"
            raise Unavailable(f"embeddings: {message}") from error

    def beside(self, model: bytes) -> "OnnxModel":
        """Return another model that takes the same texts: to compare one with the other."""
        session = _session(model)
        return OnnxModel(session, self._tokenizer, self._about, self.stamp.revision)

    def vector(self, text: str, *, query: bool = False) -> list[float]:
        """Return the vector of a text, of unit length.

        Raises ``ValueError`` when the model gives none that points somewhere.
        """
        import numpy as np  # noqa: PLC0415 - only where there is a model

        about = self._about
        prefix = about.query_prefix if query else about.text_prefix
        most = about.max_tokens * _CHARACTERS_A_TOKEN
        # Half a surrogate pair is no text; the tokenizer refuses it.
        whole = (prefix + text)[:most].encode(errors="replace").decode()
        ids = np.array([self._tokenizer.encode(whole).ids], dtype=np.int64)
        if not ids.size:
            raise ValueError(
                "a text without a token, and a model that marks no beginning"
            )
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        inputs = {name: given[name] for name in self._wanted}
        found = self._session.run([self._output], inputs)[0][0]
        if self._pools:
            found = found[0] if about.pooling == "cls" else found.mean(axis=0)
        values: list[float] = found.astype(np.float64).tolist()
        return unit(values)


def _opened(model: bytes, words: bytes, max_tokens: int) -> tuple[Any, Any]:
    from tokenizers import Tokenizer  # noqa: PLC0415 - an extra

    session = _session(model)
    tokenizer = Tokenizer.from_buffer(words)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return session, tokenizer


def _session(model: bytes) -> Any:
    import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra, slow to import

    options = onnxruntime.SessionOptions()
    # One core for each call: threads that wait for their next piece would spin, and take
    # the cores away from the event loop. ``OnnxEmbedder`` calls from several threads.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Every length would leave its plan of memory behind.
    options.enable_mem_pattern = False
    options.log_severity_level = _QUIET
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )


def _hash_of(*files: bytes) -> str:
    whole = hashlib.sha256()
    for content in files:
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()[:16]
