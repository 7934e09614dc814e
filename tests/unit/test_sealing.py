"""Bad input names its field; good input is sealed with a digest."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from nestor.backends.agents import backends
from nestor.backends.sandbox import NoSandbox
from nestor.errors import InvalidInput
from nestor.model.access import Principal
from nestor.model.task import (
    Budget,
    Check,
    Network,
    SandboxSpec,
    TaskSpec,
    TaskStatus,
    WorkspaceSpec,
)
from nestor.ralph.sealing import Sealing, seal

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ADMIN = Principal(key_id="admin", scopes=frozenset({"admin"}))
SUBMITTER = Principal(key_id="k1", scopes=frozenset({"submit"}))
HOME = Path("/srv/nestor-data")
RULES = Sealing(
    backends=backends(),
    default_backend="builtin",
    max_iterations=7,
    refuses_mount=NoSandbox(coordinator_url="", home=HOME).refuses_mount,
)
NO_NETWORK = SandboxSpec(network=Network.NONE)
NOT_NUMBERS = ("NaN", "sNaN", "Infinity", "-Infinity")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"task": None}, "task"),
        ({"prompt": "also"}, "task"),
        ({"task": "x" * 200_000}, "task"),
        ({"task_id": "../etc"}, "task_id"),
        ({"task_id": ".."}, "task_id"),
        ({"task_id": "a" * 65}, "task_id"),
        ({"backend": "nobody"}, "backend"),
        ({"backend": "command"}, "command"),
        ({"command": "ls"}, "command"),
        ({"priority": "P9"}, "priority"),
        ({"max_iterations": 101}, "max_iterations"),
        ({"max_iterations": -1}, "max_iterations"),
        ({"checks": [Check(run=" ")]}, "checks.0.run"),
        ({"checks": [Check(run=[])]}, "checks.0.run"),
        ({"checks": [Check(run="a", timeout_s=0)]}, "checks.0.timeout_s"),
        (
            {"checks": [Check(name="a", run="a"), Check(name="a", run="b")]},
            "checks.1.name",
        ),
        ({"test_command": ""}, "test_command"),
        ({"budget": Budget(usd=Decimal(0))}, "budget.usd"),
        ({"budget": Budget(tokens=-1)}, "budget.tokens"),
        *(({"budget": Budget(usd=Decimal(no))}, "budget.usd") for no in NOT_NUMBERS),
        ({"budget": Budget(seconds=float("nan"))}, "budget.seconds"),
        ({"budget": Budget(seconds=float("inf"))}, "budget.seconds"),
        ({"phase": -1}, "phase"),
        ({"phase": 10_000}, "phase"),
        ({"phase": 10**20}, "phase"),
        ({"dependencies": ["a b"]}, "dependencies.0"),
        ({"dependencies": ["a", ".."]}, "dependencies.1"),
        ({"dependencies": ["a", "me"], "task_id": "me"}, "dependencies.1"),
        ({"dependencies": [f"t{n}" for n in range(201)]}, "dependencies"),
        ({"mounts": ["relative"]}, "mounts.0"),
        ({"mounts": ["/no/such/folder"]}, "mounts.0"),
        ({"mounts": ["/opt", "/" + "x" * 5000]}, "mounts.1"),
        *(
            ({"mounts": ["/opt", path]}, "mounts.1")
            for path in ("/", "/proc/self", "/etc", "/usr", "/srv", str(Path.home()))
        ),
        ({"mounts": ["/opt\0"]}, "mounts.0"),
        ({"checks": [Check(run=[""])]}, "checks.0.run"),
        ({"checks": [Check(run="a\0b")]}, "checks.0.run"),
        ({"checks": [Check(run=["a", "b\x1b"])]}, "checks.0.run.1"),
        ({"checks": [Check(run="a", name="b\r")]}, "checks.0.name"),
        ({"checks": [Check(run="a", env={"A": "\0"})]}, "checks.0.env.A"),
        ({"checks": [Check(run="a", env={"A B": "x"})]}, "checks.0.env"),
        ({"checks": [Check(run="a", env={"A=": "x"})]}, "checks.0.env"),
        ({"checks": [Check(run="a", env={"1": "x"})]}, "checks.0.env"),
        ({"checks": [Check(run="a", env={"": "x"})]}, "checks.0.env"),
        ({"checks": [Check(run="a", env={"A\n": "x"})]}, "checks.0.env"),
        ({"test_command": [""]}, "test_command"),
        ({"test_command": "a\0"}, "test_command"),
        ({"backend": "command", "command": [""]}, "command"),
        ({"backend": "command", "command": "a\x07"}, "command"),
        ({"setup": ["a", "b\0"]}, "setup.1"),
        ({"workspace": WorkspaceSpec(repo="/a\0")}, "workspace.repo"),
        ({"sandbox": SandboxSpec(memory_bytes=1)}, "sandbox.memory_bytes"),
        ({"sandbox": SandboxSpec(memory_bytes=10**20)}, "sandbox.memory_bytes"),
        ({"sandbox": SandboxSpec(processes=0)}, "sandbox.processes"),
        *(
            ({"backend": agent, "sandbox": NO_NETWORK}, "sandbox.network")
            for agent in (None, "builtin", "aider")
        ),
        *(
            ({"sandbox": SandboxSpec(disk_bytes=no)}, "sandbox.disk_bytes")
            for no in (-1, 0, 1, 1 << 60)
        ),
        *(
            ({"sandbox": SandboxSpec(hosts=["a.org:443", no])}, "sandbox.hosts.1")
            for no in (
                *(
                    "",
                    "pypi.org",
                    "PyPI.org:443",
                    "https://pypi.org:443",
                    "10.0.0.1:443",
                ),
                *(
                    "pypi.org:0443",
                    "pypi.org:0",
                    "pypi.org:65536",
                    "a b.org:443",
                    "*:443",
                ),
            )
        ),
        ({"sandbox": SandboxSpec(hosts=["a.org:443"] * 201)}, "sandbox.hosts"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    spec = TaskSpec(**{"task": "do it", **fields})

    with pytest.raises(InvalidInput) as caught:
        seal(spec, ADMIN, RULES, now=NOW)

    assert field in [error.field for error in caught.value.errors]


def test_every_wrong_field_is_named_at_once() -> None:
    spec = TaskSpec(task_id="a/b", priority="P7", backend="nobody")

    with pytest.raises(InvalidInput) as caught:
        seal(spec, ADMIN, RULES, now=NOW)

    fields = {error.field for error in caught.value.errors}
    assert fields == {"task", "task_id", "priority", "backend"}


def test_defaults_are_filled_and_the_phase_comes_from_the_id() -> None:
    task, _ = seal(TaskSpec(task="do it", task_id="P2-REL-001"), ADMIN, RULES, now=NOW)

    assert (task.backend, task.max_iterations, task.phase) == ("builtin", 7, 2)
    assert (task.status, task.name) == (TaskStatus.QUEUED, "do it")
    assert len(task.trace_id) == 32


def test_a_phase_is_taken_from_an_id_only_when_it_fits() -> None:
    def phase(task_id: str) -> int | None:
        return seal(TaskSpec(task="x", task_id=task_id), ADMIN, RULES, now=NOW)[0].phase

    assert phase("P0-a") == 0
    assert phase("P9999-a") == 9999
    assert phase("P10000-a") is None
    assert phase("P" + "9" * 40 + "-a") is None


def test_lines_and_tabs_are_text_like_any_other() -> None:
    check = Check(run="set -e\n\tmake", env={"_A1": "two\nlines"})
    spec = TaskSpec(task="x", checks=[check], setup=["a\n\tb"])

    assert seal(spec, ADMIN, RULES, now=NOW)[0].spec.checks == [check]


@pytest.mark.parametrize(
    ("names", "test_command", "expected"),
    [
        (["", ""], "make", ["check-1", "check-2", "tests"]),
        (["tests"], "make", ["tests", "tests-2"]),
        (["check-2", ""], None, ["check-2", "check-2-2"]),
        (["", "check-1"], None, ["check-1-2", "check-1"]),
        (["tests", "tests-2"], "make", ["tests", "tests-2", "tests-3"]),
    ],
)
def test_every_check_has_a_name_of_its_own(
    names: list[str], test_command: str | None, expected: list[str]
) -> None:
    checks = [Check(name=name, run="true") for name in names]
    spec = TaskSpec(task="x", checks=checks, test_command=test_command)

    sealed = seal(spec, ADMIN, RULES, now=NOW)[0].spec

    assert [check.name for check in sealed.all_checks] == expected


def test_the_digest_is_of_what_was_asked() -> None:
    def digest(**fields: Any) -> str:
        return seal(TaskSpec(task_id="a", **fields), ADMIN, RULES, now=NOW)[1]

    assert digest(task="one") == digest(task="one")
    assert digest(task="one") != digest(task="two")


@pytest.mark.parametrize(
    "brings",
    [
        {"backend": "command", "command": "make"},
        {"checks": [Check(run="true")]},
        {"setup": ["true"]},
        {"mounts": ["/opt"]},
        {"sandbox": SandboxSpec(processes=513)},
        {"sandbox": SandboxSpec(disk_bytes=(8 << 30) + 1)},
    ],
)
def test_what_others_than_an_admin_bring_waits_for_approval(
    brings: dict[str, Any],
) -> None:
    spec = TaskSpec(task="x", **brings)

    assert seal(spec, SUBMITTER, RULES, now=NOW)[0].status is (
        TaskStatus.AWAITING_APPROVAL
    )
    assert seal(spec, ADMIN, RULES, now=NOW)[0].status is TaskStatus.QUEUED


def test_the_full_network_waits_for_approval_even_for_an_admin() -> None:
    spec = TaskSpec(task="x", sandbox=SandboxSpec(network=Network.FULL))
    task, _ = seal(spec, ADMIN, RULES, now=NOW)

    assert task.status is TaskStatus.AWAITING_APPROVAL
    assert "network" in task.approvals[0].what


def test_further_hosts_wait_for_approval_even_for_an_admin_and_all_is_named() -> None:
    limits = SandboxSpec(network=Network.FULL, hosts=["a.org:443", "b.org:8443"])
    spec = TaskSpec(task="x", sandbox=limits, setup=["make deps"])
    for key, named in ((ADMIN, ("full network",)), (SUBMITTER, ("network", "setup"))):
        task, _ = seal(spec, key, RULES, now=NOW)
        assert task.status is TaskStatus.AWAITING_APPROVAL
        for word in (*named, "a.org:443, b.org:8443"):
            assert word in task.approvals[0].what


SEALED: dict[str, Any] = {
    "task": "do it",
    "checks": [
        Check(name="a", run="make", env={"A": "1", "B": "2"}),
        Check(name="b", run=["x", "y"], timeout_s=5.0, expect_exit=1),
    ],
    "setup": ["pip install x"],
    "protected": ["tests/**"],
    "completion_criteria": ["it is fast"],
    "mounts": ["/opt"],
    "workspace": WorkspaceSpec(repo="/r", path="sub"),
    "sandbox": SandboxSpec(memory_bytes=1 << 30),
}


def sealed_digest(**fields: Any) -> str:
    spec = TaskSpec(**{**SEALED, **fields})
    return seal(spec, ADMIN, RULES, now=NOW)[0].checks_digest


@pytest.mark.parametrize(
    "fields",
    [
        {"checks": [Check(name="A", run="make", env={"A": "1", "B": "2"})]},
        {"checks": SEALED["checks"][::-1]},
        {"checks": SEALED["checks"][:1]},
        *(
            {"checks": [structs.replace(SEALED["checks"][0], **change), *rest]}
            for rest in [SEALED["checks"][1:]]
            for change in (
                {"run": "make "},
                {"run": ["make"]},
                {"timeout_s": 6.0},
                {"expect_exit": 2},
                {"env": {"A": "2", "B": "1"}},
                {"env": {"A": "1"}},
            )
        ),
        {"test_command": "make test"},
        {"setup": []},
        {"protected": None},
        {"protected": []},
        {"guard_only": True},
        {"completion_criteria": ["it is small"]},
        {"completion_criteria": []},
        {"mounts": []},
        {"workspace": WorkspaceSpec(repo="/r")},
        {"sandbox": SandboxSpec(memory_bytes=1 << 31)},
        {"sandbox": SandboxSpec(memory_bytes=1 << 30, disk_bytes=1 << 30)},
        {"sandbox": SandboxSpec(memory_bytes=1 << 30, processes=7)},
    ],
    ids=str,
)
def test_whatever_decides_is_in_the_digest_of_the_checks(
    fields: dict[str, Any],
) -> None:
    assert sealed_digest(**fields) != sealed_digest()


@pytest.mark.parametrize(
    "fields",
    [
        {
            "checks": [
                Check(**{**structs.asdict(c), "env": dict(reversed(c.env.items()))})
                for c in SEALED["checks"]
            ]
        },
        {"task": "say it otherwise"},
        {"priority": "P0"},
        {"workspace": WorkspaceSpec(repo="/elsewhere", path="sub")},
        {"budget": Budget(tokens=5)},
    ],
    ids=str,
)
def test_what_decides_nothing_is_not_in_the_digest_of_the_checks(
    fields: dict[str, Any],
) -> None:
    assert sealed_digest(**fields) == sealed_digest()
    assert len(sealed_digest()) == 64


def test_without_criteria_a_judge_goes_by_the_goal_which_is_sealed_then() -> None:
    none: dict[str, Any] = {"completion_criteria": []}
    assert sealed_digest(**none) != sealed_digest(**none, task="something else")
