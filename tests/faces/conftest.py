from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.faces.fake_stack import Cli, FakeStack, cli_of, serving
from tests.faces.page import Browser, Minutes, dashboard_of, link
from tests.faces.shell import Served, SmallNestor, served, small_nestor
from tests.faces.shell import serving as serving_app


@pytest.fixture
def nestor(tmp_path: Path) -> SmallNestor:
    return small_nestor(tmp_path)


@pytest.fixture
async def shell(nestor: SmallNestor) -> AsyncIterator[Served]:
    async with served(nestor) as running:
        yield running


@pytest.fixture
def clock() -> Minutes:
    return Minutes()


@pytest.fixture
async def page(nestor: SmallNestor, clock: Minutes) -> AsyncIterator[Served]:
    """The dashboard on small parts."""
    async with serving_app(nestor, dashboard_of(nestor, clock)) as running:
        yield running


@pytest.fixture
async def browser(page: Served) -> Browser:
    """One that was signed in."""
    signed_in = Browser(page)
    assert (await signed_in.sign_in(await link(page))).status == 201
    return signed_in


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    with serving() as fake:
        yield fake


@pytest.fixture
def cli(stack: FakeStack, tmp_path: Path) -> Cli:
    return cli_of(stack, tmp_path)
