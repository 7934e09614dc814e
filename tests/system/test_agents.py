"""The real agents, in the real sandbox, on the real Coordinator; the model is scripted."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.system.agent_scripts import (
    AGENTS,
    NOT_DONE,
    WITHOUT_A_SHELL,
    fixes,
    goes_on,
    replaces,
    runs,
    talks,
)
from tests.system.agent_stack import PROGRAMS, agent_stack
from tests.system.workbench import (
    ADMIN,
    BUGGY,
    FIXED,
    TESTS,
    ended,
    git,
    processes,
    repository,
    task,
    until_ended,
)

from nestor.backends.agents import backends
from nestor.model.task import (
    Iteration,
    Outcome,
    Reason,
    SandboxSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from nestor.ports.agent import AgentBackend, AgentCommand, Brief
from nestor.settings import Settings

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

PATIENCE_S = 400.0
"""Programs of 400 MB start slowly where others work as well."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``make test`` runs every agent with some faults, ``make prove`` with all."""
    if "fault" in metafunc.fixturenames:
        whole = bool(metafunc.config.getoption("--prove"))
        cases = [(a, f) for a in AGENTS for f in FAULTS if _can(a, f)]
        cases = cases if whole else list(SAMPLE)
        metafunc.parametrize(("agent", "fault"), cases)


ASKS_THE_INTERNET = {"opencode"}
"""At its own start, whatever is set: it installs a package beside its configuration."""


def spec_of(agent: str, repo: Path, **fields: object) -> TaskSpec:
    plain = {"task_id": "t", "backend": agent, "use_hybrid": False}
    plain["files"] = ["calc.py", "test_calc.py"]
    return task(repo, None, **{**plain, **fields})


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_blocked_exit_leads_to_a_verified_second_iteration(
    tmp_path: Path, agent: str
) -> None:
    repo = repository(tmp_path / "repo")
    script = [
        talks(agent, times=1),
        fixes(agent, when=NOT_DONE, times=1),
        talks(agent, "add adds now"),
    ]

    async with agent_stack(tmp_path / "home", script) as (nestor, model):
        done = await ended(nestor, spec_of(agent, repo), within_s=PATIENCE_S)
        first, second = await nestor.ralph.iterations("t")
        diff = await nestor.ralph.diff("t")

    assert (done.status, done.reason) == (TaskStatus.VERIFIED, Reason.CHECKS_PASSED)
    assert (first.outcome, first.exit_code) == (Outcome.UNCHANGED, 0)
    assert first.claimed_done
    assert first.blocked_reason == "failing: tests"
    assert (second.outcome, second.exit_code) == (Outcome.CHANGED, 0)
    assert [v.tests for v in second.verdicts] == [2]
    # Nothing of the agent's own is left in the workspace.
    assert [line for line in diff.splitlines() if line.startswith("diff")] == [
        "diff --git a/calc.py b/calc.py"
    ]
    assert git(repo, "show", "nestor/t:calc.py") == FIXED
    # Nothing of its own start becomes a question to a person.
    if agent not in ASKS_THE_INTERNET:
        assert (first.refused, second.refused, done.approvals) == ([], [], [])
    # The Coordinator counted, and told the task's key from all others.
    billed = model.billed
    assert first.usage.total + second.usage.total == billed.total > 0
    assert {r.path for r in model.requests} == {"/v1/chat/completions"}
    _unharmed(repo)
    _gone(agent)


class WrongFlag:
    """A backend with a fault of ours in its command line."""

    def __init__(self, agent: AgentBackend) -> None:
        self._agent = agent
        self.name = agent.name
        self.needs_model = agent.needs_model
        self.look = agent.look
        self.unavailable = agent.unavailable
        self.read = agent.read

    def command(self, brief: Brief) -> AgentCommand:
        command = self._agent.command(brief)
        argv = [*command.argv]
        # Behind the subcommand, before a prompt or what is taken for one.
        place = next(n for n, part in enumerate(argv) if n > 4 and part.startswith("-"))
        return msgspec.structs.replace(
            command, argv=[*argv[:place], "--nestor-has-no-such-flag", *argv[place:]]
        )


QUICK_S = 20.0
"""A limit for agents that ask a broken server again for minutes."""
HANGS_S = 8.0
ASKS_AGAIN_AND_AGAIN = {"aider", "continue", "opencode"}
DISK_BYTES = 256 << 20
FAULTS = (
    *("401", "upstream_401", "500", "timeout", "wrong_flag", "killed"),
    *("mischief", "full_disk"),
)
SAMPLE = (
    ("aider", "401"),
    ("claude", "mischief"),
    ("claude", "upstream_401"),
    ("codex", "500"),
    ("codex", "full_disk"),
    ("continue", "killed"),
    ("mini", "wrong_flag"),
    ("opencode", "401"),
    ("opencode", "timeout"),
)


async def test_a_fault_ends_in_its_class_and_leaves_nothing(
    tmp_path: Path, agent: str, fault: str
) -> None:
    repo = repository(tmp_path / "repo")
    rules, expected = _script(agent, fault)
    backend = backends(PROGRAMS)[agent]
    settings: dict[str, object] = {}
    if fault == "timeout":
        settings["agent_timeout_s"] = HANGS_S
    elif expected is Outcome.TIMEOUT:
        settings["agent_timeout_s"] = QUICK_S

    async with agent_stack(
        tmp_path / "home",
        rules,
        agent=WrongFlag(backend) if fault == "wrong_flag" else None,
        **settings,
    ) as (nestor, model):
        limits = SandboxSpec(disk_bytes=DISK_BYTES if fault == "full_disk" else None)
        spec = spec_of(agent, repo, max_iterations=1, sandbox=limits)
        await nestor.ralph.submit(spec, ADMIN)
        if fault == "401":
            await _asked(model)
            await nestor.keys.revoke_scope("task:t")
        elif fault == "killed":
            await _asked(model)
            _kill(agent)
        done = await until_ended(nestor, "t", within_s=PATIENCE_S)
        (iteration,) = await nestor.ralph.iterations("t")

    assert iteration.outcome is expected, iteration.output_tail
    assert done.status is TaskStatus.EXHAUSTED
    assert not done.success
    assert not iteration.claimed_done or fault == "mischief"
    if fault == "wrong_flag":
        assert model.requests == []
    _told(done, iteration, fault)
    _unharmed(repo)
    _gone(agent)


def _can(agent: str, fault: str) -> bool:
    """Without a shell an agent writes no more than the model says."""
    return fault != "full_disk" or agent not in WITHOUT_A_SHELL


def _script(  # noqa: PLR0911 - one for each fault
    agent: str, fault: str
) -> tuple[list[Rule], Outcome]:
    match fault:
        case "401":  # the key is taken away while it waits for its first answer
            return [goes_on(agent, delay_s=2.0)], Outcome.REFUSED
        case "upstream_401":
            slow = agent in {"continue", "aider"}
            refused = Outcome.TIMEOUT if slow else Outcome.REFUSED
            return [Rule(status=401, reply="wrong API key")], refused
        case "500":
            hangs = agent in ASKS_AGAIN_AND_AGAIN
            broken = Outcome.TIMEOUT if hangs else Outcome.AGENT_ERROR
            return [Rule(status=500, reply="it broke")], broken
        case "timeout":
            return [talks(agent, delay_s=120.0)], Outcome.TIMEOUT
        case "wrong_flag":
            return [talks(agent)], Outcome.USAGE_ERROR
        case "killed":
            return [talks(agent, delay_s=30.0)], Outcome.AGENT_ERROR
        case "full_disk":
            fills = "head -c 20G /dev/zero > zeros; sleep 100"
            return [runs(agent, fills, times=1), talks(agent)], Outcome.AGENT_ERROR
        case _:
            return [_mischief(agent), talks(agent)], Outcome.CHANGED


HOOK = "#!/bin/sh\\ntouch /workspace/hooked /tmp/nestor-hooked\\n"
MISCHIEF = (
    "setsid sleep 4263 >/dev/null 2>&1 & "
    "echo x > /etc/nestor-was-here; echo x > /usr/nestor-was-here; "
    "for hook in pre-commit post-commit post-checkout; do "
    f"printf '{HOOK}' > .git/hooks/$hook; chmod +x .git/hooks/$hook; done; "
    "git config core.fsmonitor 'touch /tmp/nestor-hooked'; "
    "sed -i 's/, 4)/, 0)/' test_calc.py"
)


def _mischief(agent: str) -> Rule:
    """A daemon, writes outside, hooks, and a test that is bent to pass."""
    if agent in WITHOUT_A_SHELL:
        wrong = "        self.assertEqual(add(2, 2), 4)"
        bent = wrong.replace("4)", "0)")
        return replaces(wrong, bent, file="test_calc.py", times=1)
    return runs(agent, MISCHIEF, times=1)


async def _asked(model: ScriptedModel) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not model.chats:
            await asyncio.sleep(0.05)


def _kill(agent: str) -> None:
    """As the kernel does it for want of memory; ``cn`` ends with 0 on the gentle signal."""
    how = signal.SIGTERM if agent == "continue" else signal.SIGKILL
    pids = _pids(agent)
    assert pids
    for pid in pids:
        os.kill(pid, how)


def _pids(agent: str) -> list[int]:
    """Processes of the program itself, not of what guards it."""
    own = str(PROGRAMS / agent)
    found = []
    for pid in processes(own):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.decode(errors="replace").startswith(own) for word in words[:2]):
            found.append(pid)
    return found


def _told(done: Task, iteration: Iteration, fault: str) -> None:
    assert done.reason is Reason.MAX_ITERATIONS
    if fault == "timeout":
        assert iteration.exit_code is None
    if fault == "full_disk":
        limit = "killed: it used more than its disk limit of 256 MiB"
        assert limit in iteration.refused
    if fault == "mischief":
        assert iteration.protected_restored == ["test_calc.py"]
        assert iteration.blocked_reason == "failing: tests"


def _unharmed(repo: Path) -> None:
    assert git(repo, "status", "--porcelain") == ""
    assert git(repo, "branch", "--list", "main", "--format=%(refname)") != ""
    assert (repo / "calc.py").read_text() == BUGGY
    assert (repo / "test_calc.py").read_text() == TESTS
    for place in ("/etc", "/usr"):
        assert not Path(place, "nestor-was-here").exists()
    assert not Path("/tmp/nestor-hooked").exists()


def _gone(agent: str) -> None:
    assert processes(str(PROGRAMS / agent)) == []
    assert processes("sleep 4263") == []


async def test_a_missing_program_fails_the_task_with_its_remedy_before_any_model_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    repo = repository(tmp_path / "repo")
    nowhere = tmp_path / "nowhere"

    async with agent_stack(tmp_path / "home", [], agents_dir=nowhere) as (
        nestor,
        model,
    ):
        done = await ended(nestor, spec_of("aider", repo))

    assert (done.status, done.reason) == (TaskStatus.FAILED, Reason.BACKEND_UNAVAILABLE)
    assert "run: nestor agents install aider" in (done.detail or "")
    assert model.requests == []


def nestor(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    values = {"home": home, "agents_dir": PROGRAMS}
    return subprocess.run(
        [sys.executable, "-m", "nestor.cli", *words],
        env={**os.environ, **Settings.environment_for(values)},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_installed_agents_are_listed_with_their_versions(tmp_path: Path) -> None:
    listed = nestor(tmp_path / "home", "agents", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = {row["name"]: row for row in json.loads(listed.stdout)["agents"]}
    assert sorted(rows) == sorted(backends())
    for name in AGENTS:
        assert rows[name]["state"] == "ready", rows[name]
        assert rows[name]["version"] == rows[name]["tested"]
        assert rows[name]["path"].startswith(f"{PROGRAMS / name}/")
    again = nestor(tmp_path / "home", "agents", "install", "claude", "mini")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already there") == 2
    examined = nestor(tmp_path / "home", "doctor", "--json")
    found = {one["what"]: one for one in json.loads(examined.stdout)["findings"]}
    for name in AGENTS:
        assert found[f"agent {name}"]["state"] == "ok"
        assert found[f"agent {name}"]["detail"] == rows[name]["version"]
    assert found["agent goose"]["state"] in {"ok", "warn"}
