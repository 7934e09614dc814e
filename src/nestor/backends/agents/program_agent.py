"""What agents have in common whose program is installed beside Nestor."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nestor.backends.agents.programs import PROGRAMS, Found, Program, find
from nestor.errors import InvalidInput
from nestor.ports.agent import AgentCommand, AgentLook, Brief

HOME = "/home/agent"
"""The agent's own, inside: empty at its start, gone at its end."""
KEY = "nestor"
"""Programs insist on a key; the real one is added outside."""
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")
ASK_S = 30.0
_FILE = "NESTOR_FILE_"
QUIET = {
    "CI": "1",
    "DO_NOT_TRACK": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "NO_COLOR": "1",
    "PAGER": "cat",
    "TERM": "dumb",
}
"""For programs that would draw, ask or report home."""


class ProgramAgent:
    """A part of ``ports.agent.AgentBackend``: finds the program, and starts it inside.

    ``folder``: where ``nestor agents install`` puts programs; None: PATH alone.
    """

    name: str
    needs_model = True

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @property
    def program(self) -> Program:
        """Return its row in the table of versions."""
        return PROGRAMS[self.name]

    def look(self) -> AgentLook:
        """See AgentBackend.look."""
        program, found = self.program, find(self.program, self._folder)
        if found is None:
            return AgentLook(
                path=None,
                tested=program.tested,
                fault="it is not installed",
                remedy=program.how_to_install,
            )
        version, fault = ask_version(program, found)
        remedy = ""
        if version is not None and program.tested and version != program.tested:
            fault = f"tests run {program.tested}, not {version}"
            remedy = program.how_to_install
        elif fault is not None:
            remedy = program.how_to_install
        elif not program.tested:
            fault = "it is driven as its documentation says; no test runs it"
        return AgentLook(
            path=str(found.path),
            version=version,
            tested=program.tested,
            fault=fault,
            remedy=remedy,
        )

    def unavailable(self) -> str | None:
        """See AgentBackend.unavailable. Looks whether the program is there, no more."""
        if find(self.program, self._folder) is not None:
            return None
        what = f"backend {self.name} needs {self.program.title}, which is not installed"
        return f"{what}: {self.program.how_to_install}"

    def launch(
        self,
        brief: Brief,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        files: Mapping[str, str] | None = None,
        prompt_in: str | None = None,
    ) -> AgentCommand:
        """Make the command: own files are written into its HOME, then the program starts.

        The prompt is its stdin, or the file ``prompt_in`` of its HOME; then stdin is
        empty. Raises ``InvalidInput`` when the program is not there any more.
        """
        found = find(self.program, self._folder)
        if found is None:
            raise InvalidInput.at("backend", self.unavailable() or "is not installed")
        files = dict(files or {})
        script = ["set -e", "umask 077"]
        given: dict[str, str] = {}
        for number, (name, text) in enumerate(files.items()):
            given[f"{_FILE}{number}"] = text
            if "/" in name:
                script.append(f'mkdir -p "{HOME}/{name.rpartition("/")[0]}"')
            script.append(f'printf %s "${_FILE}{number}" > "{HOME}/{name}"')
            script.append(f"unset {_FILE}{number}")
        if prompt_in is not None:
            script.append(f'cat > "{HOME}/{prompt_in}"')
        script.append('exec "$@"' + (" < /dev/null" if prompt_in else ""))
        return AgentCommand(
            argv=[
                "/bin/sh",
                "-c",
                "\n".join(script),
                self.name,
                *found.argv,
                *arguments,
            ],
            env={**QUIET, **env, **given},
            stdin=brief.prompt.encode(errors="replace"),
            mounts=found.mounts,
        )


def ask_version(program: Program, found: Found) -> tuple[str | None, str | None]:
    """Return the version that a program says, and why it said none."""
    with tempfile.TemporaryDirectory(
        prefix="nestor-look-", ignore_cleanup_errors=True
    ) as home:
        # It was found on PATH, and may need that to find node.
        path = os.environ.get("PATH", os.defpath)  # noqa: TID251 - no setting of ours
        env = {"PATH": path, "HOME": home, "TMPDIR": home}
        try:
            asked = subprocess.Popen(
                [*found.argv, program.asks],
                cwd=home,
                env={**QUIET, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return None, f"it does not start: {error.strerror}"
        with asked:
            try:
                said, _ = asked.communicate(timeout=ASK_S)
            except subprocess.TimeoutExpired:
                return None, f"it does not say its version within {ASK_S:g} s"
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(asked.pid, signal.SIGKILL)
    text = said.decode(errors="replace")
    number = _VERSION.search(text)
    if asked.returncode != 0 or number is None:
        told = " ".join(text.split())[-200:] or "nothing"
        return None, f"asked for its version it ended with {asked.returncode}: {told}"
    return number[0], None
