"""Faults in the backends of real agents: what is started, how its end is read, what is installed."""

from tools.faults.fault import Fault

_ENDS = "tests/contracts/test_agent_ends.py"
_PROGRAMS = "tests/contracts/test_agent_programs.py"
_REAL = "tests/system/test_agents.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph agents: claude's exit code is believed",
        (
            (
                "backends/agents/claude.py",
                'if end is None or end.get("is_error") is not False:',
                "if end is None:",
            ),
        ),
        (_ENDS, "-k", "claude and is_error"),
    ),
    Fault(
        "ralph agents: aider's exit code is believed",
        (
            (
                "backends/agents/aider.py",
                "            failed = text_of(last[0][0])",
                "            failed = None",
            ),
        ),
        (_ENDS, "-k", "aider"),
    ),
    Fault(
        "ralph agents: lines of source are taken for mini's error",
        (
            (
                "backends/agents/mini.py",
                "if _BOX_END in result.output and result.exit_code == 1:",
                "if result.exit_code == 77:",
            ),
        ),
        (_ENDS, "-k", "mini"),
    ),
    Fault(
        "ralph agents: a folder that was not finished is used",
        (
            (
                "backends/agents/programs.py",
                "if (own / ABOUT).is_file() and _runs",
                "if _runs",
            ),
        ),
        (_PROGRAMS, "-k", "not_finished"),
    ),
    Fault(
        "ralph agents: any package of that name is installed",
        (
            (
                "backends/agents/installing.py",
                'if got != {f"sha512-{wanted}"}:',
                "if got == {None}:",
            ),
        ),
        (_PROGRAMS, "-k", "cannot_be_fetched"),
    ),
    Fault(
        "ralph agents: what does not run replaces what ran",
        (
            (
                "backends/agents/installing.py",
                "                _check(program, Path(scratch), say)\n",
                "",
            ),
        ),
        (_PROGRAMS, "-k", "does_not_run"),
    ),
    Fault(
        "ralph agents: a node that is not the system's is not shown",
        (
            (
                "backends/agents/programs.py",
                "        needed.append(_prefix(interpreter))\n",
                "",
            ),
        ),
        (_PROGRAMS, "-k", "node"),
    ),
    Fault(
        "ralph agents: the whole folder of agents may be shown",
        (
            (
                "backends/sandbox/mounts.py",
                '("agents", _, *_)',
                '("agents", *_)',
            ),
        ),
        (_PROGRAMS, "-k", "data_folder"),
    ),
    Fault(
        "ralph agents: a program that hangs at --version is left behind",
        (
            (
                "backends/agents/program_agent.py",
                "os.killpg(asked.pid, signal.SIGKILL)",
                "asked.kill()",
            ),
        ),
        (_PROGRAMS, "-k", "does_not_answer"),
    ),
    Fault(
        "ralph agents: the prompt is on claude's command line",
        (
            (
                "backends/agents/claude.py",
                '                "-p",\n',
                '                "-p",\n                brief.prompt,\n',
            ),
        ),
        ("tests/contracts/test_agent.py", "-k", "claude"),
    ),
    Fault(
        "ralph agents: cn takes a file format for its prompt",
        (
            (
                "backends/agents/cn.py",
                '["--auto", "--format", "json", "--config", f"{HOME}/{_CONFIG}", "-p"]',
                '["-p", "--auto", "--format", "json", "--config", f"{HOME}/{_CONFIG}"]',
            ),
        ),
        (_REAL, "-k", "blocked and continue"),
    ),
    Fault(
        "ralph agents: codex offers a search that runs at OpenAI",
        (
            (
                "backends/agents/codex.py",
                '"web_search=disabled"',
                '"web_search=live"',
            ),
        ),
        (_REAL, "-k", "blocked and codex"),
    ),
    Fault(
        "ralph agents: aider keeps its chat in the workspace",
        (
            (
                "backends/agents/aider.py",
                'f"{HOME}/.aider.chat"',
                '".aider.chat"',
            ),
        ),
        (_REAL, "-k", "blocked and aider"),
    ),
)
