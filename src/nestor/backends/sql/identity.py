"""Which installation this is: a random id that its database keeps."""

import secrets

from sqlalchemy import insert, select

from nestor.backends.sql.database import Database
from nestor.backends.sql.schema import counter

_NAME = "identity "
"""The id is part of a counter's name: it counts nothing, and needs no table of its own."""
_LOCK = 0x69646E74
"""Any number: PostgreSQL's lock for "the identity is being made"."""
_BYTES = 8


async def identity_of(database: Database) -> str:
    """Return 16 hex digits, made at the first call; the same for all who use this database.

    A copy of the database has the same. Raises ``Unavailable``.
    """
    query = select(counter.c.name).where(counter.c.name.startswith(_NAME))
    async with database.read() as connection:
        known = await connection.scalar(query)
    if known is None:
        async with database.write() as connection:
            await database.serialise(connection, _LOCK)
            known = await connection.scalar(query)
            if known is None:
                known = _NAME + secrets.token_hex(_BYTES)
                await connection.execute(insert(counter).values(name=known, value=0))
    return str(known).removeprefix(_NAME)
