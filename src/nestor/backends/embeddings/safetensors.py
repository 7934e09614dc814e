"""Reads a ``.safetensors`` file: a length, a JSON head, and numbers."""

from typing import Annotated, Any

import msgspec
import numpy as np

_LENGTH_BYTES = 8
_TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data_offsets: tuple[int, int]


def read_tensors(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors by name; they share memory with ``data``.

    Raises ``ValueError`` for what is no such file.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if not 0 < length <= len(data) - _LENGTH_BYTES:
        raise ValueError("not a safetensors file: its head is longer than the file")
    try:
        head = msgspec.json.decode(
            data[_LENGTH_BYTES:start], type=dict[str, msgspec.Raw]
        )
        head.pop("__metadata__", None)
        return {
            name: _tensor(data, start, msgspec.json.decode(raw, type=_Tensor))
            for name, raw in head.items()
        }
    except msgspec.DecodeError as error:
        raise ValueError(f"not a safetensors file: {error}") from error


def _tensor(data: bytes, start: int, told: _Tensor) -> np.ndarray[Any, Any]:
    kind = _TYPES.get(told.dtype)
    if kind is None:
        raise ValueError(f"tensors of type {told.dtype} are not read")
    first, last = told.data_offsets
    if not 0 <= first <= last <= len(data) - start:
        raise ValueError("not a safetensors file: a tensor lies outside of it")
    flat = np.frombuffer(data[start + first : start + last], dtype=kind)
    return flat.reshape(told.shape)
