"""How the end of each agent's program is read: as seen of the real ones, and hostile."""

import json
import os
import time

import pytest
import yaml

from nestor.backends.agents import backends
from nestor.backends.agents.mini import _quoted
from nestor.backends.agents.programs import PROGRAMS
from nestor.ports.agent import AgentEnd
from nestor.ports.sandbox import SandboxResult


def read(agent: str, exit_code: int | None, output: str) -> AgentEnd:
    end = SandboxResult(
        exit_code=exit_code, output=output, duration_s=0.1, sandboxed=True
    )
    return backends()[agent].read(end)


def line(**fields: object) -> str:
    return json.dumps(fields) + "\n"


def codex_failed(why: str) -> str:
    return line(type="turn.failed", error={"message": why})


def opencode_failed(why: str, status: int) -> str:
    data = {"message": why, "statusCode": status}
    return line(type="error", error={"name": "APIError", "data": data})


def claude_end(result: str, **more: object) -> str:
    return line(type="result", subtype="success", result=result, **more)


UPSTREAM = "remote: HTTP 401: wrong API key"
LITELLM = "litellm.BadGatewayError: OpenAIException - "
ENDS = {
    # agent, exit code, output: failure, summary holds
    "claude done": ("claude", 0, claude_end("fine", is_error=False), None, "fine"),
    "claude is_error": (
        "claude", 1, claude_end(f"API Error: 502 {UPSTREAM}", is_error=True),
        "refused", "HTTP 401"),
    "claude is_error and 0": (
        "claude", 0, claude_end("API Error: 500 it broke", is_error=True),
        "agent_error", "it broke"),
    "claude without is_error": ("claude", 0, claude_end("fine"), "agent_error", "fine"),
    "claude silent": ("claude", 0, "", "agent_error", "exit code 0"),
    "claude flag": (
        "claude", 1, "error: unknown option '--x'\n", "usage_error", "unknown option"),
    "claude budget": (
        "claude", 1, claude_end("API Error: 402 budget spent", is_error=True),
        "refused", "402"),
    "codex done": (
        "codex", 0,
        line(type="item.completed", item={"type": "agent_message", "text": "did it"})
        + line(type="turn.completed", usage={}), None, "did it"),
    "codex without an end": ("codex", 0, line(type="turn.started"), "agent_error", "0"),
    "codex refused": (
        "codex", 1, codex_failed(f"unexpected status 502 Bad Gateway: {UPSTREAM}"),
        "refused", UPSTREAM),
    "codex own 401": (
        "codex", 1, codex_failed("unexpected status 401 Unauthorized: no"), "refused", "401"),
    "codex 500": (
        "codex", 1, codex_failed("unexpected status 500: it broke"), "agent_error", "broke"),
    "codex flag": ("codex", 2, "error: unexpected argument\n", "usage_error", "code 2"),
    "opencode done": (
        "opencode", 0, line(type="text", part={"text": "did it"})
        + line(type="step_finish", part={"reason": "stop"}), None, "did it"),
    "opencode between two steps": (
        "opencode", 0, line(type="step_finish", part={"reason": "tool-calls"}),
        "agent_error", "exit code 0"),
    "opencode refused": (
        "opencode", 1, opencode_failed("nobody knows this key", 401), "refused", "401"),
    "opencode 500": (
        "opencode", 1, opencode_failed("it broke", 500), "agent_error", "it broke"),
    "continue done": (
        "continue", 0, line(response="did it", status="success"), None, "did it"),
    "continue says JSON itself": ("continue", 0, '[{"a": 1}]\n', None, '[{"a": 1}]'),
    "continue ended by SIGTERM": ("continue", 0, "\n", "agent_error", "exit code 0"),
    "continue refused": (
        "continue", 1, line(status="error", message="401 nobody knows this key"),
        "refused", "401 nobody"),
    "continue 500": (
        "continue", 1, line(status="error", message="500 it broke"), "agent_error", "broke"),
    "aider done": ("aider", 0, "Applied edit to calc.py\n", None, "Applied edit"),
    "aider exits 0 on 401": (
        "aider", 0, "litellm.AuthenticationError: AuthenticationError: no\nCheck your key.\n",
        "refused", "AuthenticationError"),
    "aider gave up on 502": (
        "aider", 0, f"{LITELLM}{UPSTREAM}\nRetrying in 0.2 seconds...\n{LITELLM}{UPSTREAM}\n",
        "refused", UPSTREAM),
    "aider gave up on 500": (
        "aider", 0, "litellm.InternalServerError: it broke\n", "agent_error", "it broke"),
    "aider tried again and went on": (
        "aider", 0, f"{LITELLM}502\nRetrying in 0.2 seconds...\nApplied edit to calc.py\n",
        None, "Applied edit"),
    "aider tried again and gave up": (
        "aider", 0, f"{LITELLM}502\nRetrying in 0.2 seconds...\n{LITELLM}402 spent\nbye\n",
        "agent_error", "402 spent"),
    "aider flag": ("aider", 2, "error: unrecognized arguments: --x\n", "usage_error", "--x"),
    "mini done": ("mini", 0, "Exit:\n\nSaved trajectory\n", None, "Saved"),
    "mini gave up": (
        "mini", 0, "Exit: RepeatedFormatError\n", "agent_error", "RepeatedFormatError"),
    "mini refused": (
        "mini", 1, "litellm.exceptions.AuthenticationError: no\n", "refused", "Authent"),
    "mini 500 below a box of source": (
        "mini", 1, "╭─ Traceback ─╮\n│ except AuthenticationError │\n╰──╯\nInternalServerError: it \nbroke\n",
        "agent_error", "it broke"),
    "mini refused below a box": (
        "mini", 1, "╭──╮\n╰──╯\nBadGatewayError: remote: HTTP \n401: wrong API key\n",
        "refused", "HTTP 401"),
    "continue flag": ("continue", 1, "", "usage_error", "exit code 1"),
    "mini 500": ("mini", 1, "InternalServerError: it broke\n", "agent_error", "broke"),
    "mini flag": ("mini", 2, "No such option: --x\n", "usage_error", "--x"),
    "goose done": ("goose", 0, "did it\n", None, "did it"),
    "goose failed": ("goose", 1, "error: 500\n", "agent_error", "500"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_an_end_is_read_as_what_it_is(case: str) -> None:
    agent, exit_code, output, failure, summary = ENDS[case]
    end = read(agent, exit_code, output)
    assert end.failure == failure
    assert end.claims_done == (failure is None)
    assert summary in end.summary
    assert "\n" not in end.summary


DEEP = '{"type":' + "[" * 200_000
HOSTILE = {
    "nothing": "",
    "cut": '{"type":"result","is_error":fal',
    "deep": DEEP,
    "deep and whole": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "wrong types": "".join(
        line(
            type=kind,
            is_error=[],
            result={},
            item=7,
            part=[1],
            error="x",
            message=[],
            status={},
            response=3,
        )
        for kind in (
            "result",
            "item.completed",
            "step_finish",
            "error",
            "text",
            "turn.failed",
        )
    ),
    "lone surrogate": '{"type":"result","result":"\ud800"}',
    "escaped surrogate": '{"type":"result","result":"\\ud800"}',
    "no text": "\0\x1b[2J\ufffd" * 1000,
    "long": "{" + "x" * 3_000_000,
    "NaN": '{"type":"result","is_error":NaN}',
}


@pytest.mark.parametrize("agent", sorted(PROGRAMS))
@pytest.mark.parametrize("output", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("exit_code", [1, None])
def test_hostile_output_is_a_failure_in_a_short_summary(
    agent: str, output: str, exit_code: int | None
) -> None:
    end = read(agent, exit_code, output)
    silent = (agent, exit_code, output) == ("continue", 1, "")
    assert end.failure == ("usage_error" if silent else "agent_error")
    assert not end.claims_done
    assert len(end.summary) < 1000


@pytest.mark.parametrize("agent", [*sorted(PROGRAMS), "builtin", "command"])
@pytest.mark.parametrize(
    "piece", ["litellm.A:\n", "litellm.A:\nRetrying in 1\n", "status: 40", "Error: "]
)
def test_the_time_to_read_is_that_of_one_pass(agent: str, piece: str) -> None:
    output = piece * (250_000 // len(piece))
    began = time.monotonic()

    assert read(agent, 0, output).summary is not None
    assert read(agent, 1, output).failure

    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text", ["a: b\n# c", "\x7f\x85\u2028 \x1b[0m\0", "😀 é", "'\"\\", "- x\n\ttab", ""]
)
def test_a_prompt_in_yaml_is_read_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"task: {_quoted(text)}\n") == {"task": text}


def test_the_table_names_each_program_once() -> None:
    assert {PROGRAMS[name].name for name in PROGRAMS} == set(PROGRAMS)
    assert len({program.command for program in PROGRAMS.values()}) == len(PROGRAMS)
    assert os.sep not in "".join(program.command for program in PROGRAMS.values())
