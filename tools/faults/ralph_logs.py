"""Faults in what people are asked without need, and in what is shown of printed output."""

from tools.faults.fault import Fault

LOGS = "tests/faces/test_cli_logs.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph logs: a person is asked for plain http",
        (
            (
                "backends/sandbox/egress.py",
                'f"plain http to {host[:100]}:{port}: only https:// can be granted"',
                'f"host {host}:{port}"',
            ),
        ),
        ("tests/system/test_asking.py", "-k", "what_people_grant"),
    ),
    Fault(
        "ralph logs: an agent that needs a model is let in without a network",
        (("ralph/sealing.py", "if backend.needs_model and", "if False and"),),
        ("tests/unit/test_sealing.py",),
    ),
    Fault(
        "ralph logs: aider fetches prices at its start",
        (("backends/agents/aider.py", """'{"nothing": {}}'""", "'{}'"),),
        ("tests/system/test_agents.py", "-k", "blocked_exit and aider"),
    ),
    Fault(
        "ralph logs: what is being told as the agent ends is lost",
        (("ralph/tailing.py", "        over.set()", "        telling.cancel()"),),
        ("tests/unit/test_tailing.py", "-k", "is_not_lost"),
    ),
    Fault(
        "ralph logs: what is not kept of an agent's output has no mark",
        (("cli/logs.py", "if left_out != 0:", "if False:"),),
        (LOGS, "-k", "every_line"),
    ),
    Fault(
        "ralph logs: a check's output that was cut has no mark",
        (("cli/logs.py", 'if check["cut"]:', "if False:"),),
        (LOGS, "-k", "every_line"),
    ),
    Fault(
        "ralph logs: the run that was killed is shown before the one that counts",
        (("cli/logs.py", "            found[n] = []", "            pass"),),
        (LOGS, "-k", "every_line"),
    ),
    Fault(
        "ralph logs: the summary stands for all that was told",
        (
            (
                "cli/logs.py",
                'if pieces and not any(piece["left_out_bytes"] for piece in pieces):',
                "if tail:\n        return [{'left_out_bytes': 0, 'text': tail}]\n    if not tail:",
            ),
        ),
        (LOGS, "-k", "every_line"),
    ),
    Fault(
        "ralph logs: logs of a task that goes on wait for its end",
        (("cli/client.py", "if ended or quiet_s:", "if ended:"),),
        (LOGS, "-k", "goes_on"),
    ),
    Fault(
        "ralph logs: a stream that stays open is waited for",
        (
            (
                "cli/client.py",
                "if quiet_s and isinstance(",
                "if not last and isinstance(",
            ),
        ),
        ("tests/system/test_live_stream.py", "-k", "logs"),
    ),
    Fault(
        "ralph logs: watch leaves lines out without a mark",
        (("cli/watch.py", "if before > 0 else []", "if before < 0 else []"),),
        (LOGS, "-k", "watch_marks"),
    ),
)
