"""Run checks on a repository as it stands, without a stack: what ``nestor hook stop`` asks.

The working tree is copied as one commit; nothing in the repository is written. Checks run
as they do for a task: in fresh checkouts, in the sandbox, with protected paths as they
are in the commit it is compared with.
"""

import asyncio
import fcntl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from nestor.backends.git import source
from nestor.backends.git.workspaces import GitWorkspaces
from nestor.backends.sandbox.choice import sandbox_of
from nestor.errors import InvalidInput, SandboxError, WorkspaceError
from nestor.model.ids import new_id
from nestor.model.task import TaskSpec, Verdict, WorkspaceSpec
from nestor.ports.sandbox import Sandbox
from nestor.ralph.environment import Environments
from nestor.ralph.protection import protected
from nestor.ralph.verification import Subject, Verifier, failure_signature
from nestor.settings import Settings

FOLDER = "hook"
_NOT_FOUND = (126, 127)
_RUBBLE_S = 24 * 3600.0
_TURN_S = 0.1


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks say of a working tree."""

    verdicts: list[Verdict]
    restored: list[str] = []
    """Paths that differ in the working tree and were put back before the checks ran."""

    @property
    def failing(self) -> list[Verdict]:
        """Checks that do not pass."""
        return [verdict for verdict in self.verdicts if not verdict.passed]

    @property
    def signature(self) -> str:
        """Digest of what fails, the same for the same failure; "" when nothing does."""
        return failure_signature(self.verdicts)


def top_of(folder: Path) -> Path:
    """Return the repository that holds ``folder``. Raises ``WorkspaceError``."""
    start = folder.expanduser().resolve()
    for place in (start, *start.parents):
        if (place / ".git").exists():
            return place
    raise WorkspaceError(f"{start} is in no git repository")


async def committed(repo: Path, path: str, *, base: str | None = None) -> bytes | None:
    """Read a file as ``base`` (HEAD when not given) has it; None: it has no such file.

    Raises ``InvalidInput`` for what is no repository, or has no commit.
    """
    found = await source.open_source(str(repo))
    commit = await found.resolve(base)
    name = f"{commit}:{path}"
    kind = await found.git.run("cat-file", "-t", name, ok=(0, 1, 128))
    if kind.strip() != b"blob":
        return None
    return await found.git.run("cat-file", "blob", name, limit=1024 * 1024)


async def hold(settings: Settings, repo: Path, spec: TaskSpec) -> Held:
    """Run the checks of ``spec`` on the working tree of ``repo``.

    ``spec.workspace``: ``base`` names the commit it is compared with (HEAD when not
    given), ``path`` the folder where checks start. Raises ``InvalidInput`` or
    ``WorkspaceError`` when that cannot be done as things are, ``SandboxError`` when
    nothing can be isolated here. Cancelled, it leaves no process behind.
    """
    home = settings.home / FOLDER
    sandbox = await asyncio.to_thread(
        sandbox_of, settings.sandbox, coordinator_url="", home=home
    )
    # Its home is a part of the data folder; the rest of that is not to be seen either.
    whole = await asyncio.to_thread(
        sandbox_of, settings.sandbox, coordinator_url="", home=settings.home
    )
    for mount in spec.mounts:
        if why := whole.refuses_mount(Path(mount)):
            raise InvalidInput.at("mounts", why)
    if why := await asyncio.to_thread(sandbox.probe):
        raise SandboxError(why)
    workspaces = GitWorkspaces(home)
    task_id = f"stop-{new_id()}"
    place = workspaces.folder(task_id)
    try:
        return await _hold(home, workspaces, sandbox, task_id, repo, spec)
    finally:
        await asyncio.shield(workspaces.remove(place, *_rubble(place)))


async def _hold(
    home: Path,
    workspaces: GitWorkspaces,
    sandbox: Sandbox,
    task_id: str,
    repo: Path,
    spec: TaskSpec,
) -> Held:
    place = spec.workspace or WorkspaceSpec()
    head = await (await source.open_source(str(repo))).resolve(place.base)
    spec = msgspec.structs.replace(
        spec,
        task_id=task_id,
        include_dirty=True,
        workspace=WorkspaceSpec(repo=str(repo), path=place.path, base=head),
    )
    # Its base is the working tree, as a commit whose parent is ``head``.
    tree = await workspaces.prepare(task_id, spec)
    is_protected = protected(spec, await workspaces.files(task_id, head))
    judged, restored = await workspaces.restore(
        task_id, tree.base, protected=is_protected, base=head
    )
    setup = None
    if spec.setup:
        environments = Environments(home, workspaces, sandbox)
        async with _one_at_a_time(home / "setup.lock"):
            setup = await environments.ready(
                task_id, spec, base=head, tree_id=head, submitter=""
            )
    found = await Verifier(workspaces, sandbox).run(
        Subject(
            task_id=task_id,
            spec=spec,
            commit=judged.commit,
            is_protected=is_protected,
            phase="after",
            label="stop",
            setup=setup,
        )
    )
    for verdict in found.verdicts:
        if verdict.exit_code in _NOT_FOUND:
            last = verdict.output_tail.strip().splitlines()[-1:] or ["no output"]
            raise WorkspaceError(
                f"check {verdict.check!r} cannot start in the sandbox: {last[0]}."
                " Install what it needs with --setup, or setup[] in the task file"
            )
    return Held(verdicts=found.verdicts, restored=restored)


@asynccontextmanager
async def _one_at_a_time(path: Path) -> AsyncIterator[None]:
    """Wait for other processes that make an environment."""
    with path.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_TURN_S)
        yield


def _rubble(beside: Path) -> list[Path]:
    """Find what earlier calls left that were killed."""
    old = time.time() - _RUBBLE_S
    found = []
    for path in beside.parent.glob("stop-*"):
        try:
            if path.stat().st_mtime < old:
                found.append(path)
        except OSError:  # another call has removed it
            continue
    return found
