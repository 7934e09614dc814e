"""Every OpenAPI document against the stack that it describes, by schemathesis."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import hypothesis
import pytest
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from tests.conftest import RESULTS
from tests.system.explored import PATIENCE_S, Explored, exploring

pytestmark = pytest.mark.heavy

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
EACH = 8
"""Examples of an early round (one operation, one kind of data, one key); later: more."""
SAMPLE, FULL = 600, 10_000
CALLERS = ("admin", "scoped", "admin", "none", "admin")
"""Who sends the first round of an operation, the second, and so on, all over again."""
Statuses = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explored]:
    with exploring(tmp_path_factory.mktemp("explored")) as running:
        yield running


@pytest.mark.timeout(7_200)
def test_every_call_answers_as_its_openapi_document_says(
    explored: Explored, seed: int, request: pytest.FixtureRequest
) -> None:
    """``--prove``: 10,000 examples; what passed is kept, and a run can be resumed."""
    prove = bool(request.config.getoption("--prove"))
    path = RESULTS / "schemathesis.json"
    done: dict[str, Any] = {"seed": seed, "rounds": 0, "examples": 0, "statuses": {}}
    if prove and path.exists():
        kept = json.loads(path.read_text())
        done = kept if kept["seed"] == seed else done
    wanted = FULL if prove else SAMPLE
    while done["examples"] < wanted:
        number = done["rounds"]
        found = explore(explored, number, random.Random(f"{seed}:{number}"))
        done = _added(done, found) | {"rounds": number + 1}
        if prove:
            result = done | {
                "of": FULL,
                "operations": len(explored.operations),
                "failures": 0,
            }
            path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    listed = {f"{layer} {one.label}" for layer, one, _ in explored.operations}
    assert not listed - done["statuses"].keys()


def _added(done: Mapping[str, Any], found: Statuses) -> dict[str, Any]:
    statuses = {label: Counter(seen) for label, seen in done["statuses"].items()}
    for label, seen in found.items():
        statuses[label] = statuses.get(label, Counter()) + Counter(seen)
    examples = sum(count for seen in statuses.values() for count in seen.values())
    return {**done, "statuses": statuses, "examples": examples}


def explore(explored: Explored, number: int, rng: random.Random) -> Statuses:
    """Run one round: its number says what, to whom and with which key."""
    turn, place = divmod(number, len(explored.operations))
    layer, keyless, full = explored.operations[place]
    caller = CALLERS[(turn // 2 + place) % len(CALLERS)]
    operation = full if caller == "none" else keyless
    mode = GenerationMode.NEGATIVE if turn % 2 else GenerationMode.POSITIVE
    if turn >= 2 * len(CALLERS) and not _takes_input(operation):
        return {}  # every caller has seen it, both ways
    given = explored.given(operation) if mode is GenerationMode.POSITIVE else {}
    strategy = operation.as_strategy(
        generation_mode=mode, path_parameters=given or None
    )
    if operation.path in {"/submit", "/tasks"} and turn % 4 == 0:
        strategy = strategy.map(_with_a_backend)
    seen: Counter[str] = Counter()
    key = explored.keys[caller]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers |= explored.page(layer)

    @hypothesis.seed(rng.getrandbits(64))
    @hypothesis.settings(
        max_examples=EACH if turn < 4 else 5 * EACH,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def run(case: Any) -> None:
        reply = case.call(
            base_url=explored.stack.url(layer),
            session=explored.session,
            headers=headers,
            timeout=PATIENCE_S,
        )
        seen[str(reply.status_code)] += 1
        case.validate_response(reply, checks=CHECKS, headers=headers)

    try:
        run()
    except Unsatisfiable:  # an operation without input has no wrong input
        assert mode is GenerationMode.NEGATIVE
    return {f"{layer} {operation.label}": dict(seen)}


def _takes_input(operation: Any) -> bool:
    return bool(operation.body or operation.query or operation.path_parameters)


def _with_a_backend(case: Any) -> Any:
    """Any task but for the two fields that have to fit each other."""
    if isinstance(case.body, dict):
        case.body |= {"backend": "command", "command": "true", "workspace": None}
    return case
