"""What stands in a call journal: one JSON array a line, one call in two lines.

* ``["h",VERSION,[names…]]`` first in each file: the fields that the arrays below hold, in
  order, so that a later version with other fields still reads what an earlier one left.
* ``["b",0,[call…]]`` a call is about to be made.
* ``["e",N,[call…]]`` it ended, as the N-th of this journal.
* ``["f",N]`` the first N that ended are in SQL, and their events in the event log.

A file of journal ``ID`` is ``ID.NUMBER.jsonl``, or ``ID.aside.bad`` where calls are kept
that SQL does not take: it has the same lines, and is left to a person. ``ID.lock`` is locked by the process that
writes it, or by the one that took it over, and the kernel lets go of that at any death.
"""

from typing import Any, Final

import msgspec

from nestor.model.routing import ModelCall

VERSION: Final = 1
LOCK: Final = ".lock"
SEGMENT: Final = ".jsonl"
BAD: Final = ".bad"
ASIDE: Final = ".aside" + BAD
_FIELDS: Final = ModelCall.__struct_fields__
_encode = msgspec.json.Encoder().encode
_astuple = msgspec.structs.astuple
HEADER: Final = _encode(("h", VERSION, _FIELDS)) + b"\n"


class BadLineError(ValueError):
    """A line that is none of the above."""


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One line, read back."""

    kind: str
    number: int
    values: list[Any] = []


_decode = msgspec.json.Decoder(Line).decode


def begun(call: ModelCall) -> bytes:
    """Encode the first line of a call."""
    return _line("b", 0, call)


def ended(number: int, call: ModelCall) -> bytes:
    """Encode the second line of a call."""
    return _line("e", number, call)


def folded(number: int) -> bytes:
    """Encode how far SQL and the event log have the calls."""
    return _encode(("f", number)) + b"\n"


def _line(kind: str, number: int, call: ModelCall) -> bytes:
    try:
        return _encode((kind, number, _astuple(call))) + b"\n"
    except (UnicodeEncodeError, OverflowError):
        # Half a surrogate pair in an upstream's error, or a count beyond 64 bits.
        return _encode((kind, number, _mended(_astuple(call)))) + b"\n"


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value.bit_length() < 63 else None  # noqa: PLR2004 - an int64
    if isinstance(value, msgspec.Struct):
        return {
            name: _mended(one) for name, one in msgspec.structs.asdict(value).items()
        }
    if isinstance(value, list | tuple):
        return [_mended(one) for one in value]
    return value


def read_line(data: bytes) -> Line:
    """Decode one line without its end. Raises ``BadLineError``."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLineError(str(error)) from error


def call_of(line: Line, fields: tuple[str, ...] = _FIELDS) -> ModelCall:
    """Return the call of a ``b`` or ``e`` line; ``fields``: what the file's header said.

    Fields that this version does not know are left out. Raises ``BadLineError``.
    """
    if len(line.values) != len(fields):
        message = f"{len(line.values)} values for {len(fields)} fields"
        raise BadLineError(message)
    try:
        return msgspec.convert(
            dict(zip(fields, line.values, strict=True)), type=ModelCall
        )
    except msgspec.ValidationError as error:
        raise BadLineError(str(error)) from error


def fields_of(line: Line) -> tuple[str, ...]:
    """Return the fields that a header names. Raises ``BadLineError``."""
    if line.number != VERSION or not all(isinstance(one, str) for one in line.values):
        raise BadLineError("a header of another version")
    return tuple(line.values)
