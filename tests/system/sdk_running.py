"""Plugin of the SDK tests: one stack for all of them, stopped after the last."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.system.sdk_fields import unaccounted
from tests.system.sdk_stack import SdkStack, sdk_stack

_PREFIX = "test_sdks"
_opened: list[ExitStack] = []


@pytest.fixture(scope="session")
def running_sdks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkStack]:
    """Start it once."""
    with ExitStack() as opened:
        _opened.append(opened)
        yield opened.enter_context(sdk_stack(tmp_path_factory.mktemp("sdks")))


@pytest.fixture
def sdks(running_sdks: SdkStack) -> Iterator[SdkStack]:
    """Give the stack; whatever a test sent must have been said, named or refused."""
    running_sdks.take_exchanges()
    yield running_sdks
    silent = {
        f"{exchange.path} -> {exchange.upstream.path}": lost
        for exchange in running_sdks.take_exchanges()
        if exchange.upstream is not None and (lost := unaccounted(exchange))
    }
    assert not silent, f"neither said upstream nor named as left out: {silent}"


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Leave no process behind to tests that are elsewhere."""
    if nextitem is None or not nextitem.path.name.startswith(_PREFIX):
        while _opened:
            _opened.pop().close()
