"""``setup[]``: the environment that checks and agent need, made once and then read-only."""

import asyncio
import hashlib
import os
import platform
import re
from pathlib import Path

from nestor.errors import WorkspaceError
from nestor.model.task import Network, TaskSpec
from nestor.ports.sandbox import Mount, Sandbox, SandboxRun
from nestor.ports.workspace import Workspaces
from nestor.ralph.verification import SETUP, WORKSPACE
from nestor.telemetry.redact import redact

_LOCK_FILES = (
    "requirements*.txt",
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
    "poetry.lock",
    "uv.lock",
    "Pipfile.lock",
    "package.json",
    "package-lock.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "go.mod",
    "go.sum",
    "Cargo.toml",
    "Cargo.lock",
    "Gemfile.lock",
)
_TIMEOUT_S = 1800.0


class Environments:
    """Folders by digest of commands and lock files. A folder without its mark is rubble."""

    def __init__(self, home: Path, workspaces: Workspaces, sandbox: Sandbox) -> None:
        self._home = home
        self._workspaces = workspaces
        self._sandbox = sandbox
        self._turns: dict[str, asyncio.Lock] = {}

    async def ready(
        self, task_id: str, spec: TaskSpec, *, base: str, tree_id: str
    ) -> str | None:
        """Return the host folder of the environment, made now or before; None: no setup.

        Raises ``WorkspaceError`` with the output's end when a command fails.
        """
        if not spec.setup:
            return None
        tree = self._workspaces.folder(task_id) / "checkout-setup"
        await self._workspaces.checkout(task_id, base, tree)
        try:
            digest = await asyncio.to_thread(_digest, spec, tree, tree_id)
            async with self._turns.setdefault(digest, asyncio.Lock()):
                place = self._home / "setup" / digest
                mark = place / "complete"
                if not mark.exists():
                    await self._make(task_id, spec, tree, place)
                    # The mark must not outlive a power cut that the folder did not.
                    await asyncio.to_thread(os.sync)
                    mark.write_text("made\n")
        finally:
            await self._workspaces.remove(tree)
        return str(place / "tree")

    async def _make(
        self,
        task_id: str,
        spec: TaskSpec,
        tree: Path,
        place: Path,
    ) -> None:
        await self._sandbox.kill(place / "run")
        await self._workspaces.remove(place)
        (place / "tree").mkdir(parents=True, mode=0o700)
        for number, command in enumerate(spec.setup, 1):
            result = await self._sandbox.run(
                SandboxRun(
                    name=f"{task_id}/setup-{number}",
                    argv=["/bin/sh", "-c", command],
                    cwd=WORKSPACE,
                    mounts=[
                        Mount(host=tree, inside=WORKSPACE, writable=True),
                        Mount(host=place / "tree", inside=SETUP, writable=True),
                    ],
                    env={"NESTOR_SETUP": SETUP},
                    network=Network.FULL,
                    timeout_s=_TIMEOUT_S,
                    run_dir=place / "run",
                )
            )
            if result.exit_code != 0:
                how = f"exit {result.exit_code}"
                if result.timed_out or result.limit:
                    how = f"{result.limit or 'time'} limit"
                said = redact("\n".join(result.output.strip().splitlines()[-12:]))
                message = f"setup.{number - 1}: `{command}` failed ({how}):\n{said}"
                raise WorkspaceError(message)


def _digest(spec: TaskSpec, tree: Path, tree_id: str) -> str:
    """Digest what the commands can be seen to read.

    That is the lock files and the files that the commands name; where there is neither,
    the whole tree, because a command may read anything.
    """
    made = f"2:{platform.platform()}:{platform.python_version()}"
    seen = hashlib.sha256(made.encode())
    read: set[Path] = {path for name in _LOCK_FILES for path in tree.rglob(name)}
    for command in spec.setup:
        seen.update(b"\x1e" + command.encode("utf-8", "replace"))
        words = re.split(r"[\s;&|()<>\"'=]+", command)
        read |= {tree / word.removeprefix("/workspace/") for word in words if word}
    inside = {path.resolve() for path in read if path.is_file()}
    top = tree.resolve()
    files = sorted(path for path in inside if path.is_relative_to(top))
    for path in files:
        seen.update(b"\x1f" + str(path.relative_to(top)).encode("utf-8", "replace"))
        seen.update(path.read_bytes())
    if not files:
        seen.update(tree_id.encode())
    return seen.hexdigest()[:32]
