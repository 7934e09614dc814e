"""The ``[[backend]]`` tables of ``nestor.toml``: limits of each agent backend."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from nestor.model.deployment_table import nearest, said_by_msgspec

_MIB = 1024**2
_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_Bytes = Annotated[int, msgspec.Meta(ge=64 * _MIB, le=1 << 50)]


class BackendTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What one process does at most for a backend; None: only the limits of all tasks."""

    name: str
    concurrency: _Count | None = None
    """Tasks of it that run at the same time."""
    starts_per_minute: _Count | None = None
    """Counted over the last 60 s, recovered tasks included; a restart begins anew."""
    memory_bytes: _Bytes | None = None
    """What a task of it needs that does not say ``sandbox.memory_bytes``; 64 MiB to 1 PiB."""


def read(tables: object) -> tuple[BackendTable, ...]:
    """Read the tables; raises ``ValueError`` that says which place is wrong, and how."""
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ValueError("backend: write [[backend]], one such table for each")
    found = tuple(_table(f"backend.{at}", table) for at, table in enumerate(tables))
    seen: dict[str, int] = {}
    for at, table in enumerate(found):
        first = seen.setdefault(table.name, at)
        if first != at:
            why = f"{table.name!r} is the name of backend.{first} already"
            raise ValueError(f"backend.{at}.name: {why}")
    return found


def refuse_unknown(tables: Sequence[BackendTable], known: Collection[str]) -> None:
    """Raise ``ValueError`` for a table of a backend that does not exist."""
    for at, table in enumerate(tables):
        if table.name not in known:
            names = ", ".join(sorted(known))
            why = f"{table.name!r} is not one of: {names}{nearest(table.name, known)}"
            raise ValueError(f"backend.{at}.name: {why}")


def by_name(tables: Sequence[BackendTable]) -> Mapping[str, BackendTable]:
    """Return the tables under the names of their backends."""
    return {table.name: table for table in tables}


def _table(where: str, given: dict[str, Any]) -> BackendTable:
    known = BackendTable.__struct_fields__
    for name in given:
        if name not in known:
            hint = nearest(name.lower(), known)
            raise ValueError(f"{where}.{name}: unknown{hint}")
    try:
        return msgspec.convert(given, BackendTable)
    except msgspec.ValidationError as error:
        raise ValueError(said_by_msgspec(where, str(error))) from None
