"""``setup[]``: the environment that checks and agent need, made once and then read-only."""

import asyncio
import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path

import msgspec

from nestor.errors import WorkspaceError
from nestor.model.task import Network, TaskSpec
from nestor.ports.sandbox import Mount, Sandbox, SandboxRun
from nestor.ports.workspace import Workspaces
from nestor.ralph import cut_short, lock_files
from nestor.ralph.kept_environments import KEPT_BYTES, Kept
from nestor.ralph.shown import newest
from nestor.ralph.verification import SETUP, WORKSPACE

_TIMEOUT_S = 1800.0
_TAIL_CHARS = 8_000


class Environments:
    """Folders by digest. A folder without its mark is rubble."""

    def __init__(
        self,
        home: Path,
        workspaces: Workspaces,
        sandbox: Sandbox,
        *,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._kept = Kept(home, limit_bytes=kept_bytes)
        self._workspaces = workspaces
        self._sandbox = sandbox
        self._turns: dict[str, asyncio.Lock] = {}

    async def ready(
        self, task_id: str, spec: TaskSpec, *, base: str, tree_id: str, submitter: str
    ) -> str | None:
        """Return the host folder of the environment, made now or before; None: no setup.

        One that was made for another ``submitter`` or another repository is never given.
        Raises ``WorkspaceError`` with the output's end when a command fails.
        """
        if not spec.setup:
            return None
        try:
            return await self._ready(task_id, spec, base, tree_id, submitter)
        except OSError as error:
            message = f"the environment of setup cannot be made: {error}"
            raise WorkspaceError(message) from error

    async def _ready(
        self, task_id: str, spec: TaskSpec, base: str, tree_id: str, submitter: str
    ) -> str:
        tree = self._workspaces.folder(task_id) / "checkout-setup"
        await self._workspaces.checkout(task_id, base, tree)
        try:
            digest = await asyncio.to_thread(_digest, spec, submitter, tree, tree_id)
            async with self._turns.setdefault(digest, asyncio.Lock()):
                place = self._kept.take(digest, self._workspaces.folder(task_id))
                if place is None:
                    place = self._kept.place(digest)
                    await self._make(task_id, spec, base, tree, place)
                    await asyncio.to_thread(self._kept.mark, place)
                    await self._make_room()
        finally:
            await self._workspaces.remove(tree)
        return str(place / "tree")

    async def _make_room(self) -> None:
        with suppress(WorkspaceError, OSError):  # the next one tries again
            await self._workspaces.remove(*self._kept.surplus())

    async def _make(
        self,
        task_id: str,
        spec: TaskSpec,
        base: str,
        tree: Path,
        place: Path,
    ) -> None:
        for _ in range(cut_short.TRIES):
            try:
                return await self._make_once(task_id, spec, tree, place)
            except cut_short.CutShort:
                # The command was in the middle of it, in the checkout, too.
                await self._workspaces.checkout(task_id, base, tree)
            except WorkspaceError:
                # Nobody comes back for it: another try has other commands or files.
                await self._workspaces.remove(place)
                raise
        raise cut_short.every_time("setup")

    async def _make_once(
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
            if result.cancelled:
                raise cut_short.CutShort(result.duration_s)
            if result.exit_code != 0:
                how = f"exit {result.exit_code}"
                if result.timed_out or result.limit:
                    how = f"{result.limit or 'time'} limit"
                lines = newest(result.output, _TAIL_CHARS).strip().splitlines()
                said = "\n".join(lines[-12:])
                message = f"setup.{number - 1}: `{command}` failed ({how}):\n{said}"
                raise WorkspaceError(message)


def _digest(spec: TaskSpec, submitter: str, tree: Path, tree_id: str) -> str:
    """Digest whose environment it is, the commands, and what these read.

    That is the whole tree, unless they are known to read certain files alone.
    """
    files = lock_files.read_by(spec.setup, tree)
    top = tree.resolve()
    made_for = [
        "3",
        platform.platform(),
        platform.python_version(),
        submitter,
        (spec.workspace.repo if spec.workspace else None) or "",
        spec.setup,
        tree_id
        if files is None
        else [os.fsencode(path.relative_to(top)) for path in files],
    ]
    seen = hashlib.sha256(msgspec.json.encode(made_for))
    for path in files or []:
        seen.update(hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()[:32]
