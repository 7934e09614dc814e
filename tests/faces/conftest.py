from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.faces.fake_stack import Cli, FakeStack, cli_of, serving
from tests.faces.shell import Served, SmallNestor, served, small_nestor


@pytest.fixture
def nestor(tmp_path: Path) -> SmallNestor:
    return small_nestor(tmp_path)


@pytest.fixture
async def shell(nestor: SmallNestor) -> AsyncIterator[Served]:
    async with served(nestor) as running:
        yield running


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    with serving() as fake:
        yield fake


@pytest.fixture
def cli(stack: FakeStack, tmp_path: Path) -> Cli:
    return cli_of(stack, tmp_path)
