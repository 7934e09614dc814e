"""The write lock of an SQLite file, held from outside as another program would."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[sqlite3.Connection]:
    """Hold the write lock of ``path``; what the caller left open is rolled back.

    It is waited for in a thread: whoever holds it may need this event loop to let go.
    """
    with closing(
        sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    ) as other:
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        try:
            yield other
        finally:
            if other.in_transaction:
                other.rollback()
