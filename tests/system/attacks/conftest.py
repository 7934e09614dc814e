from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# Before it is imported: its assertions say what was seen.
pytest.register_assert_rewrite("tests.system.attacks.attacked")

from tests.servers.scripted_model import Rule  # noqa: E402
from tests.system.attacks.attacked import Attacked, attacked  # noqa: E402

FOLDER = Path(__file__).parent
RULES = (
    Rule(anywhere="never ends, slowly", reply="I am still thinking.", delay_s=1.0),
    Rule(anywhere="never ends", reply="I am still thinking."),
    Rule(reply="An answer."),
)
_opened: list[ExitStack] = []


@pytest.fixture(scope="session")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """One stack for all tests of this folder, stopped after the last of them."""
    with ExitStack() as opened:
        _opened.append(opened)
        folder = tmp_path_factory.mktemp("attacked")
        running = opened.enter_context(attacked(folder, *RULES, sandbox="none"))
        opened.callback(_check_log, running)
        yield running


@pytest.fixture
def stack(child: Attacked) -> Attacked:
    """Give the stack, with the document that an attack may want to delete."""
    if not child.effects()["document"]:
        child.put_document()
    return child


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Leave no process behind to tests that are elsewhere."""
    if nextitem is None or FOLDER not in nextitem.path.parents:
        while _opened:
            _opened.pop().close()


def _check_log(running: Attacked) -> None:
    """Whatever was sent: no line was broken up, and nothing surprised the server."""
    wrong = [r for r in running.records() if r["level"] in {"error", "critical"}]
    assert not wrong, wrong
