"""How values become columns: JSON text, time text, and inserts that tolerate a repeat."""

from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from nestor.backends.sql.database import Database


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
