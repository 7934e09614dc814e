"""What every agent backend promises, and what the end of a command means."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nestor.backends.agents import backends
from nestor.backends.agents.command import CommandAgent
from nestor.backends.agents.programs import PROGRAMS
from nestor.errors import InvalidInput
from nestor.model.task import TaskSpec
from nestor.ports.agent import AgentBackend, AgentCommand, Brief
from nestor.ports.sandbox import SandboxResult

NAMES = sorted(backends())
END = "NESTOR-AGENT-END "


def brief(
    command: str | list[str] | None = "true",
    *,
    prompt: str = "do it",
    iteration: int = 1,
) -> Brief:
    return Brief(
        task_id="task-1",
        spec=TaskSpec(command=command),
        iteration=iteration,
        prompt=prompt,
        model_base_url="http://127.0.0.1:8092/v1",
    )


def result(exit_code: int | None, output: str = "", **more: object) -> SandboxResult:
    known: dict[str, object] = {"duration_s": 0.1, "sandboxed": False, **more}
    return SandboxResult(exit_code=exit_code, output=output, **known)  # type: ignore[arg-type]


def run(command: AgentCommand, cwd: Path) -> SandboxResult:
    """As the sandbox does it, without the isolation."""
    done = subprocess.run(
        list(command.argv),
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **command.env},
        input=command.stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return result(done.returncode, done.stdout.decode())


@pytest.fixture(params=NAMES)
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AgentBackend:
    """Each one, with a stand-in for its program on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for program in PROGRAMS.values():
        stand_in = folder / program.command
        stand_in.write_text("#!/bin/sh\nexit 0\n")
        stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return backends()[request.param]


def test_every_backend_is_there() -> None:
    assert NAMES == ["aider", "builtin", "claude", "codex", "command", "continue",
                     "goose", "mini", "opencode"]  # fmt: skip
    assert [n for n, one in backends().items() if not one.needs_model] == ["command"]


def test_a_backend_can_run_here_and_carries_its_own_name(backend: AgentBackend) -> None:
    assert backend.unavailable() is None
    assert backends()[backend.name].name == backend.name


def test_a_backend_says_where_its_program_is(backend: AgentBackend) -> None:
    assert backend.look().path is not None


def test_a_prompt_is_never_taken_for_an_option(backend: AgentBackend) -> None:
    command = backend.command(brief(prompt="--version\n-h"))
    assert b"--version" in command.stdin
    assert not any("--version" in part for part in command.argv)


def test_a_command_line_is_a_list_and_its_mounts_exist_and_are_read_only(
    backend: AgentBackend,
) -> None:
    command = backend.command(brief())
    assert all(isinstance(part, str) and part for part in command.argv)
    assert all("\0" not in part for part in command.argv)
    for mount in command.mounts:
        assert mount.host.exists()
        assert not mount.writable


def test_the_prompt_goes_in_on_stdin_and_not_on_the_command_line(
    backend: AgentBackend,
) -> None:
    command = backend.command(brief(prompt="a secret plan \ud800"))
    assert b"a secret plan" in command.stdin
    assert not any("secret" in text for text in (*command.argv, *command.env.values()))


def test_the_models_address_is_not_on_the_command_line(backend: AgentBackend) -> None:
    """Without isolation it is what opens the models, and anybody can read that line."""
    command = backend.command(brief(prompt="do it"))
    assert not any("127.0.0.1" in part for part in command.argv)
    told = (*command.env.values(), command.stdin.decode())
    assert any("http://127.0.0.1:8092" in text for text in told)


def test_the_same_brief_gives_the_same_command(backend: AgentBackend) -> None:
    assert backend.command(brief()) == backend.command(brief())


@pytest.mark.parametrize(
    "how", [{"timed_out": True}, {"signal": 9}, {"cancelled": True}]
)
def test_a_killed_agent_claims_nothing(
    backend: AgentBackend, how: dict[str, object]
) -> None:
    end = END + '{"claims_done": true, "summary": "ok", "turns": 1, "error": null}'
    read = backend.read(result(None, end, **how))
    assert (read.failure, read.claims_done) == ("agent_error", False)
    assert read.summary


@pytest.mark.parametrize("code", [126, 127])
def test_a_program_that_cannot_start_is_a_usage_error(
    backend: AgentBackend, code: int
) -> None:
    read = backend.read(result(code, "sh: nope: not found\n"))
    assert (read.failure, read.claims_done) == ("usage_error", False)
    assert f"exit code {code}" in read.summary
    assert "nope" in read.summary


# --- command ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, "", "  \n", [], [""]])
def test_a_task_without_a_command_is_refused_at_the_field(
    command: str | list[str] | None,
) -> None:
    with pytest.raises(InvalidInput) as error:
        CommandAgent().command(brief(command))
    assert error.value.errors[0].field.startswith("command")


def test_a_string_runs_in_a_shell_and_a_list_as_it_is(tmp_path: Path) -> None:
    agent = CommandAgent()
    shell = agent.command(brief("cat > got; echo $NESTOR_TASK_ID $NESTOR_ITERATION"))
    read = agent.read(run(shell, tmp_path))
    assert (read.failure, read.claims_done) == (None, True)
    assert read.summary == "task-1 1"
    assert (tmp_path / "got").read_text() == "do it"
    plain = agent.command(brief(["echo", "$HOME; rm -rf /"]))
    assert agent.read(run(plain, tmp_path)).summary == "$HOME; rm -rf /"


@pytest.mark.parametrize(
    ("code", "failure"), [(1, "agent_error"), (2, "usage_error"), (3, "agent_error")]
)
def test_an_exit_code_is_read_as_what_it_is(
    tmp_path: Path, code: int, failure: str
) -> None:
    agent = CommandAgent()
    read = agent.read(run(agent.command(brief(f"echo why; exit {code}")), tmp_path))
    assert (read.failure, read.claims_done) == (failure, False)
    assert read.summary == f"exit code {code}: why"


def test_exit_2_with_the_planted_marker_means_blocked(tmp_path: Path) -> None:
    agent = CommandAgent()
    line = 'echo "need a decision"; echo "$NESTOR_BLOCK_MARKER"; exit 2'
    read = agent.read(run(agent.command(brief(line)), tmp_path))
    assert (read.failure, read.claims_done) == ("blocked", False)


@pytest.mark.parametrize(
    "line",
    [
        'echo "$NESTOR_BLOCK_MARKER"; echo more; exit 2',
        'echo "x $NESTOR_BLOCK_MARKER"; exit 2',
        "echo nestor-blocked; exit 2",
        'echo "$NESTOR_BLOCK_MARKER" | tr 0-8 1-9; exit 2',
    ],
)
def test_exit_2_with_anything_else_is_a_usage_error(tmp_path: Path, line: str) -> None:
    agent = CommandAgent()
    read = agent.read(run(agent.command(brief(line)), tmp_path))
    assert read.failure == "usage_error"


def test_the_marker_of_another_process_counts_for_nothing(tmp_path: Path) -> None:
    command = CommandAgent().command(brief('echo "$NESTOR_BLOCK_MARKER"; exit 2'))
    assert CommandAgent().read(run(command, tmp_path)).failure == "usage_error"


def test_the_marker_alone_does_not_make_another_exit_code_blocked() -> None:
    agent = CommandAgent()
    marker = agent.command(brief()).env["NESTOR_BLOCK_MARKER"]
    assert agent.read(result(1, marker)).failure == "agent_error"
    assert agent.read(result(0, marker)).claims_done


# --- builtin ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "failure", "claims"),
    [
        (
            '{"claims_done": true, "summary": "s", "turns": 3, "error": null}',
            None,
            True,
        ),
        (
            '{"claims_done": false, "summary": "s", "turns": 30, "error": null}',
            None,
            False,
        ),
        (
            '{"claims_done": true, "summary": "s", "turns": 1, "error": "refused"}',
            *("refused", False),
        ),
        (
            '{"claims_done": true, "summary": "s", "turns": 1, "error": "odd"}',
            *("agent_error", False),
        ),
    ],
)
def test_the_end_line_of_the_builtin_agent_is_read(
    line: str, failure: str | None, claims: bool
) -> None:
    read = backends()["builtin"].read(result(0, f"| talk\n{END}{line}\n"))
    assert (read.failure, read.claims_done, read.summary) == (failure, claims, "s")


@pytest.mark.parametrize("output", ["", "talk", END, END + "{", END + '{"turns": "x"}'])
def test_without_a_usable_end_line_the_builtin_agent_failed(output: str) -> None:
    read = backends()["builtin"].read(result(0, output))
    assert (read.failure, read.claims_done) == ("agent_error", False)


def test_the_program_of_the_builtin_agent_needs_nothing_but_python(
    tmp_path: Path,
) -> None:
    command = backends()["builtin"].command(brief())
    (mount,) = command.mounts
    inside = tmp_path / mount.inside.rpartition("/")[2]
    shutil.copytree(mount.host, inside)
    *start, place = command.argv
    assert place == mount.inside
    done = subprocess.run(
        [*start, str(inside)],
        input=b"not json",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    read = backends()["builtin"].read(result(done.returncode, done.stdout.decode()))
    assert read.failure == "usage_error"
    assert done.stderr == b""
