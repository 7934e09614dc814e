"""What parent and child say to each other: frames of a head and a body."""

import struct

import msgspec

from nestor.backends.documents.blocks import Span
from nestor.backends.documents.decoding import MAX_BYTES

FRONT = struct.Struct(">II?")
"""Lengths of head and body; of an answer, whether the child ends after it."""
READY = b"\x01"
MAX_HEAD = 64 * 1024 * 1024
"""Of an answer: its spans."""
MAX_BODY = MAX_BYTES


class Limits(msgspec.Struct, frozen=True):
    """Argument of the child."""

    parent: int
    """The process it ends with."""
    memory_bytes: int
    documents: int
    """After so many, or much memory held, the child asks to be replaced."""


class Question(msgspec.Struct, frozen=True, array_like=True):
    """The body is the text, unless there is a path."""

    name: str
    media: str | None
    path: bytes | None
    seconds: float
    """Of processor time."""
    plain: bool = False
    """Cut code as text: its parser broke off."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The body is the content, unless that is the text of the question."""

    refused: str | None = None
    media: str = ""
    title: str = ""
    spans: list[Span] = []
    same: bool = False


encode = msgspec.msgpack.Encoder().encode
question = msgspec.msgpack.Decoder(Question).decode
answer = msgspec.msgpack.Decoder(Answer).decode


def before(head: bytes, body: bytes, *, last: bool = False) -> bytes:
    """Return what goes before ``body``."""
    return FRONT.pack(len(head), len(body), last) + head
