mkdir -p ai-stack/tests
cat > ai-stack/tests/conftest.py <<'PY'
import pathlib
import runpy

import pytest

PARTS = pathlib.Path(__file__).parents[1] / "mcp-servers"


@pytest.fixture
def part():
    return lambda name: runpy.run_path(str(PARTS / name / f"{name}.py"))
PY
cat > ai-stack/tests/test_orchestration_integration.py <<'PY'
import json

import pytest


def away(query):
    raise OSError("away")


def test_one_task_through_all(part):
    knowledge, told, given = part("knowledge")["Knowledge"](), [], []
    knowledge.add("how to add numbers")
    knowledge.add("nothing of use")
    router = part("router")["Router"](lambda q: "local", lambda q: "remote")

    def agent(*seen):
        given.append(seen)

    run = part("loop")["run"]
    assert run("add", agent, lambda: len(given) == 2, router, knowledge, told.append) == 2
    assert [context for _, context, _ in given] == [["how to add numbers"]] * 2
    assert [advice for _, _, advice in given] == ["local", "remote"]
    assert [one["passed"] for one in told] == [False, True]
    assert run("add", agent, lambda: False, router, knowledge, told.append) is None


def test_learning_goes_on_where_it_was_killed(part, tmp_path):
    events = tmp_path / "events.jsonl"
    events.write_text("".join(json.dumps({"task": str(n)}) + "\n" for n in range(5)))
    make = part("learning")["Learner"]
    assert make(events, tmp_path / "at").learn(3) == ["0", "1", "2"]
    assert make(events, tmp_path / "at").learn(3) == ["3", "4"]


def test_a_side_that_is_away_is_left(part):
    router = part("router")["Router"](away, lambda q: "remote")
    assert router.ask("q") == "remote"


def test_nothing_is_found_where_nothing_fits(part):
    knowledge = part("knowledge")["Knowledge"]()
    knowledge.add("one page")
    assert knowledge.find("other words") == []


@pytest.mark.parametrize(("memory", "tier"), [(64, "large"), (16, "medium"), (8, "small")])
def test_the_three_profiles(part, memory, tier):
    assert part("profiles")["tier"](memory) == tier
PY
