"""A folder with an ONNX model of embeddings: what must be in it, and what it says of itself.

``model.onnx`` takes ``input_ids`` (and ``attention_mask``, ``token_type_ids`` if it wants
them) and gives ``sentence_embedding``, or the vectors of the tokens, which are pooled here;
``tokenizer.json`` is what the library ``tokenizers`` reads; ``nestor.json`` is ``About``.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

MODEL, TOKENIZER, ABOUT = "model.onnx", "tokenizer.json", "nestor.json"
_ABOUT_BYTES = 64 * 1024


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``nestor.json`` says."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
    revision: Annotated[str, msgspec.Meta(min_length=1, max_length=120)] | None = None
    """Vectors of two revisions are never compared. None: a hash of the files."""
    max_tokens: Annotated[int, msgspec.Meta(ge=8, le=32_768)]
    """What is longer is cut at its end."""
    pooling: Literal["mean", "cls"] = "mean"
    """How vectors of tokens become one, when the model does not do it itself."""
    query_prefix: str = ""
    text_prefix: str = ""
    """Put before questions, and before all other texts."""
    source: str = ""
    """Where it comes from, for people."""


def read_about(folder: Path) -> About:
    """Read what a folder says of itself, once all its files are there.

    Raises ``FileNotFoundError`` that names what is missing, ``ValueError`` for a
    ``nestor.json`` that says something else.
    """
    for name in (MODEL, TOKENIZER, ABOUT):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    with (folder / ABOUT).open("rb") as file:
        raw = file.read(_ABOUT_BYTES)
    try:
        return msgspec.json.decode(raw, type=About)
    except msgspec.DecodeError as error:  # also what has a wrong shape
        raise ValueError(f"{folder / ABOUT}: {error}") from error


def size_bytes(folder: Path) -> int:
    """Return what the files of a folder hold together."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
