"""What a scripted model says so that each real agent edits a file, runs a command, ends."""

from typing import Any

from tests.servers.scripted_model import Rule
from tests.system.workbench import FIXED

AGENTS = ("aider", "claude", "codex", "continue", "mini", "opencode")
"""Every agent whose program can be had where the tests run."""
WITHOUT_A_SHELL = {"aider"}
FILE = "/workspace/calc.py"
NOT_DONE = "Your last attempt is not done"
"""Stands in the prompt of every iteration but the first."""
_SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


def talks(agent: str, text: str = "All done.", **when: Any) -> Rule:
    """End the turn with a claim."""
    if agent == "mini":
        return Rule(reply=_block(_SUBMIT), **when)
    return Rule(reply=text, **when)


def fixes(agent: str, **when: Any) -> Rule:
    """Write the right sum, with the agent's own tool for it."""
    match agent:
        case "aider":
            return replaces("    return a - b", "    return a + b", **when)
        case "claude":
            return _call("Write", file_path=FILE, content=FIXED, **when)
        case "continue":
            return _call("Write", filepath=FILE, content=FIXED, **when)
        case "opencode":
            return _call("write", filePath=FILE, content=FIXED, **when)
        case _:
            return runs(agent, "sed -i 's/a - b/a + b/' calc.py", **when)


def runs(agent: str, command: str, **when: Any) -> Rule:
    """Run a command line in the workspace."""
    match agent:
        case "claude":
            return _call("Bash", command=command, description="work", **when)
        case "codex":
            return _call("exec_command", cmd=command, **when)
        case "continue":
            return _call("Bash", command=command, **when)
        case "opencode":
            return _call("bash", command=command, description="work", **when)
        case "mini":
            return Rule(reply=_block(command), **when)
        case _:
            raise AssertionError(f"{agent} has no shell")


def replaces(old: str, new: str, file: str = "calc.py", **when: Any) -> Rule:
    """Edit as aider reads it out of a reply."""
    block = f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE"
    return Rule(reply=f"{file}\n```python\n{block}\n```\n", **when)


def goes_on(agent: str, **when: Any) -> Rule:
    """Anything after which the agent asks the model again."""
    if agent in WITHOUT_A_SHELL:
        return replaces("no such line", "other", **when)
    return runs(agent, "ls", **when)


def _call(name: str, **how: Any) -> Rule:
    when = {key: how.pop(key) for key in ("times", "when", "delay_s") if key in how}
    return Rule(tool_calls=[{"name": name, "arguments": how}], **when)


def _block(command: str) -> str:
    return f"THOUGHT: this is next.\n\n```mswea_bash_command\n{command}\n```"
