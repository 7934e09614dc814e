"""What the contract tests share: a database of their own for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nestor.backends.sql.database import Database


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'nestor.db'}"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database.open(database_url) as database:
        yield database
