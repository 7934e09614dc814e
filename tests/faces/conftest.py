from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.faces.shell import Served, SmallNestor, served, small_nestor


@pytest.fixture
def nestor(tmp_path: Path) -> SmallNestor:
    return small_nestor(tmp_path)


@pytest.fixture
async def shell(nestor: SmallNestor) -> AsyncIterator[Served]:
    async with served(nestor) as running:
        yield running
