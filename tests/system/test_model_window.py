"""How much a model takes: told by the Coordinator, and kept to by the agent that asks it."""

import json
from pathlib import Path
from typing import Any

import msgspec
from tests.faces.whole import whole
from tests.servers.scripted_model import Rule
from tests.system.agent_stack import agent_stack
from tests.system.workbench import ADMIN, repository, until_ended

from nestor.backends.llama_cpp.server import CONTEXT_TOKENS
from nestor.model.routing import Deployment, Kind, Side
from nestor.model.task import TaskSpec, TaskStatus
from nestor.settings import Settings
from nestor.wiring import deployments

WINDOW = 8192
URL = "http://127.0.0.1:9/v1"
MEND = "sed -i 's/a - b/a + b/' calc.py"
RULES = [
    Rule(nth=1, tool_calls=[{"name": "bash", "arguments": {"command": MEND}}]),
    Rule(tool_calls=[{"name": "done", "arguments": {"summary": "mended"}}]),
]
LOUD = "head -c 5800 /dev/zero | tr '\\0' x; echo; grep -q 'a + b' calc.py && test -f never"


def far(name: str, url: str, **more: Any) -> Deployment:
    given = {"side": Side.REMOTE, "model": f"{name}-model", "base_url": url} | more
    return Deployment(name=name, **given)


async def test_a_long_first_message_is_shortened_to_what_the_model_is_told_to_take(
    tmp_path: Path,
) -> None:
    """Three failing checks and their output are more than the window; the goal stays."""
    goal = "Make the tests pass. " + "It has to add. " * 200 + "That is all."
    async with agent_stack(tmp_path / "home", RULES) as (nestor, model):
        nestor.models.load([far("small", model.base_url, context_window=WINDOW)])
        await nestor.ralph.submit(
            msgspec.convert(
                {
                    "task_id": "t",
                    "task": goal,
                    "backend": "builtin",
                    "model": "small",
                    "use_hybrid": False,
                    "workspace": {"repo": str(repository(tmp_path / "repo"))},
                    "checks": [{"name": f"c{n}", "run": LOUD} for n in range(3)],
                    "max_iterations": 2,
                },
                TaskSpec,
            ),
            ADMIN,
        )
        done = await until_ended(nestor, "t")
    assert done.status is TaskStatus.EXHAUSTED, done.detail
    again = [c for c in model.chats if "not done" in c.body["messages"][1]["content"]]
    assert again
    for chat in again:
        told = chat.body["messages"]
        assert len(json.dumps(told)) < WINDOW * 0.75 * 3
        first = told[1]["content"]
        assert goal in first
        assert "[...]" in first
        for n in range(3):
            assert f"## c{n} (exit 1)" in first


async def test_models_tells_the_least_window_of_those_that_may_be_asked(
    tmp_path: Path,
) -> None:
    async with whole(tmp_path / "home") as face:
        face.nestor.models.load(
            [
                far("small", URL, context_window=WINDOW),
                far("large", URL, context_window=200_000),
                far("kept", URL, model="large-model", context_window=64_000),
                far("leads", URL, fallbacks=("small",)),
                far("silent", URL),
                far("vectors", URL, kind=Kind.EMBEDDINGS),
            ]
        )
        listed = (await face.call("coordinator", "GET", "/v1/models")).json["data"]
        one = await face.call("coordinator", "GET", "/v1/models/large")
    told = {each["id"]: each.get("context_window", "not said") for each in listed}
    assert told == {
        "auto": WINDOW,
        "remote": WINDOW,
        "small": WINDOW,
        "small-model": WINDOW,
        "large": 200_000,
        "large-model": 64_000,
        "kept": 64_000,
        "leads": WINDOW,
        "leads-model": WINDOW,
        "silent": "not said",
        "silent-model": "not said",
        "vectors": "not said",
        "vectors-model": "not said",
    }
    assert one.json["context_window"] == 200_000


def test_a_model_that_nestor_runs_itself_has_the_window_that_it_is_loaded_with(
    tmp_path: Path,
) -> None:
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    (made,) = deployments(Settings(home=tmp_path, local_model=str(gguf)), ())
    assert made.context_window == CONTEXT_TOKENS
    named = Settings(home=tmp_path, local_model="m", local_base_url=URL)
    (other,) = deployments(named, ())
    assert other.context_window is None
