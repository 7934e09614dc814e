"""How values become columns: JSON text, time text, and inserts that tolerate a repeat."""

from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Table, func, literal
from sqlalchemy.dialects import postgresql, sqlite

from nestor.backends.sql.database import Database

MOST: Final = 2**62 - 1
"""What a sum comes to at most: two of them still add up within 64 bits. Beyond these
PostgreSQL refuses, and SQLite goes on with what is no whole number any more."""


def time_text(at: datetime) -> str:
    """RFC 3339 UTC with six decimals always, so that text sorts as time."""
    text = at.astimezone(UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def encode(value: Any) -> str:
    """JSON text. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_mended(msgspec.to_builtins(value))).decode()


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mended(key): _mended(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(one) for one in value]
    return value


def insert(database: Database, table: Table) -> sqlite.Insert:
    """INSERT with ON CONFLICT; both dialects write and spell it alike."""
    if database.is_sqlite:
        return sqlite.insert(table)
    return cast("sqlite.Insert", postgresql.insert(table))


def bounded(number: int) -> int:
    """Return ``number``, or as much of it as ``sum_of`` takes."""
    return max(-MOST, min(number, MOST))


def sum_of(
    database: Database, column: ColumnElement[int], more: ColumnElement[int] | int
) -> ColumnElement[int]:
    """Add ``more``, which is ``bounded``; a sum of more than ``MOST`` is that much."""
    least, greatest = (
        (func.min, func.max) if database.is_sqlite else (func.least, func.greatest)
    )

    def within(number: ColumnElement[int]) -> ColumnElement[int]:
        most, lowest = literal(MOST, BigInteger), literal(-MOST, BigInteger)
        return greatest(lowest, least(most, number), type_=BigInteger)

    # The column as well: it may hold what was added up before there was a bound.
    return within(within(column) + more)
