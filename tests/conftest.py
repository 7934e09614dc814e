"""Options and fixtures of all tests."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--prove",
        action="store_true",
        help="run counted tests at their full counts and keep the results",
    )
    parser.addoption("--seed", type=int, default=20261122, help="seed of counted tests")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Give full counts the time that they need."""
    if not config.getoption("--prove"):
        return
    for item in items:
        if "counted" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(7_200))


@pytest.fixture(autouse=True)
def _no_settings_of_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test reads no NESTOR_ variable of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("NESTOR_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Seed of everything random in a test; a failure names it."""
    return int(request.config.getoption("--seed"))


Rounds = Callable[[str, int, int], Iterator[tuple[int, random.Random]]]


@pytest.fixture
def counted(request: pytest.FixtureRequest, seed: int) -> Rounds:
    """``counted(name, sample, full)``: rounds of a counted test, each with its own random.

    ``make test`` runs ``sample`` of them, ``make prove`` all ``full``; there the rounds
    that passed are kept in ``bench/results/<name>.json``, so that a run can be resumed.
    """
    full_run = bool(request.config.getoption("--prove"))

    def rounds(
        name: str, sample: int, full: int
    ) -> Iterator[tuple[int, random.Random]]:
        path = RESULTS / f"{name}.json"
        done: dict[str, object] = {}
        if full_run and path.exists():
            kept = json.loads(path.read_text())
            done = kept if kept.get("seed") == seed else {}
        passed = int(str(done.get("passed", 0)))
        for number in range(passed, full if full_run else sample):
            yield number, random.Random(f"{seed}:{name}:{number}")
            if full_run:
                RESULTS.mkdir(parents=True, exist_ok=True)
                result = {"seed": seed, "passed": number + 1, "of": full}
                path.write_text(json.dumps(result, indent=1) + "\n")

    return rounds
