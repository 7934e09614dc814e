"""The user's own repository: looked at, copied from, and given one branch.

Its configuration may have been written by anybody. Only commands that name refs,
read one object or list settings run on it, and ``update-ref``; hooks and transports off. All that
would start a filter, a monitor or a helper program runs in a *probe* instead: a bare
repository of ours that borrows the user's objects and a copy of the index.

A repository with Git LFS or other filters is taken as git stores it (pointer files).
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nestor.backends.git import trees
from nestor.backends.git.command import GitMissing, Repository
from nestor.errors import InvalidInput, WorkspaceError
from nestor.model.task import TaskSpec

_REPO = "workspace.repo"
_INSPECT_TIMEOUT_S = 60.0
_SHOWN = 5
_CHILD_CONFIG = """[core]
\tcommitGraph = false
\tbigFileThreshold = 8m
\tpackedGitWindowSize = 64m
\tpackedGitLimit = 1g
[pack]
\tthreads = 4
\twindowMemory = 256m
"""
_HARMLESS = re.compile(r"core\.(autocrlf|eol|filemode|ignorecase|precomposeunicode)")
"""Settings that say how files lie on this disk, and start nothing."""


@dataclass(frozen=True, slots=True)
class Source:
    """A local repository that exists. All paths are absolute."""

    path: Path
    git_dir: Path
    objects: Path
    index: Path
    shallow: Path
    exclude: Path
    bare: bool
    object_format: str
    config: Mapping[str, str]

    @property
    def git(self) -> Repository:
        """Only for the commands that the module's docstring allows."""
        return Repository(git_dir=self.git_dir, cwd=self.path)

    async def resolve(self, revision: str | None) -> str:
        """Return the commit id of a revision; raises InvalidInput at ``workspace.base``."""
        if revision is not None and (revision.startswith("-") or "\0" in revision):
            raise InvalidInput.at("workspace.base", "is not a revision")
        out = await self.git.run(
            *("rev-parse", "--verify", "--quiet", "--end-of-options"),
            f"{'HEAD' if revision is None else revision}^{{commit}}",
            ok=(0, 1, 128),
        )
        commit = out.decode(errors="replace").strip()
        if commit:
            return trees.checked(commit)
        if revision is None or revision == "HEAD":
            raise InvalidInput.at(_REPO, "has no commit yet; make one first")
        raise InvalidInput.at("workspace.base", f"{revision[:100]!r} names no commit")


async def open_source(text: str) -> Source:
    """Find the repository at an absolute or ``~`` path; raises InvalidInput at its field."""
    path = _path(text)
    try:
        facts = (
            await _rev_parse(
                path,
                *("--is-bare-repository", "--is-inside-git-dir", "--absolute-git-dir"),
                *("--git-path", "objects", "--git-path", "index"),
                *("--git-path", "shallow", "--git-path", "info/exclude"),
                "--show-object-format",
            )
        ).split("\n")
        bare, inside, git_dir, objects, index, shallow, exclude, object_format = facts
        top = git_dir if bare == "true" else ""
        if bare == "false" and inside == "false":
            top = await _rev_parse(path, "--show-toplevel")
    except GitMissing:
        raise
    except (WorkspaceError, ValueError) as error:
        raise InvalidInput.at(_REPO, f"{path} is not a git repository") from error
    if not top:
        raise InvalidInput.at(_REPO, f"{path} is git's own folder; give its parent")
    if not _same(top, path):
        raise InvalidInput.at(
            _REPO,
            f"{path} is inside {top}; give that, and the folder as workspace.path",
        )
    git = Repository(git_dir=Path(git_dir), cwd=path)
    return Source(
        path=path,
        git_dir=Path(git_dir),
        objects=Path(objects),
        index=Path(index),
        shallow=Path(shallow),
        exclude=Path(exclude),
        bare=bare == "true",
        object_format=object_format,
        config=await _disk_config(git),
    )


def _path(text: str) -> Path:
    if not text.startswith(("/", "~")) or any(c in text for c in "\0\r\n"):
        raise InvalidInput.at(
            _REPO,
            "must be the absolute path (or ~/…) of a git repository on this machine;"
            " clone a remote one first",
        )
    try:
        path = Path(text).expanduser().resolve()
        if path.is_dir():
            return path
    except (OSError, RuntimeError) as error:
        raise InvalidInput.at(_REPO, f"{text[:200]}: {error}") from error
    raise InvalidInput.at(_REPO, f"{path} is not a folder on this machine")


def _same(text: str, path: Path) -> bool:
    return Path(text).resolve() == path


async def _rev_parse(path: Path, *what: str) -> str:
    out = await Repository(cwd=path).run("rev-parse", "--path-format=absolute", *what)
    return out.decode().removesuffix("\n")


async def _disk_config(git: Repository) -> dict[str, str]:
    """Read how the user's files lie on disk: line ends, modes, and what is ignored."""
    home = Path.home()
    config: dict[str, str] = {}
    ignore = home / ".config" / "git" / "ignore"
    out = b""
    for scope in ("--global", "--local"):  # without includes; the later one wins
        out += await git.run(
            *("config", scope, "--null", "--get-regexp", r"^core\."),
            ok=(0, 1, 128),
            env={"HOME": str(home), "GIT_CONFIG_GLOBAL": str(home / ".gitconfig")},
        )
    for item in out.decode(errors="replace").split("\0"):
        key, _, value = item.partition("\n")
        if _HARMLESS.fullmatch(key) and re.fullmatch(r"\w+", value):
            config[key] = value
        if key == "core.excludesfile" and value:
            ignore = home / value.removeprefix("~/")
    config["core.excludesFile"] = str(ignore)
    return config


async def check_request(spec: TaskSpec, source: Source, scratch: Path) -> str:
    """Check base, folder and cleanliness; return the commit to start from."""
    workspace = spec.workspace
    base = await source.resolve(workspace.base if workspace else None)
    if workspace and workspace.path is not None:
        await _check_folder(source, base, workspace.path)
    if source.bare:
        return base
    head = await source.resolve(None)
    if spec.include_dirty:
        if base != head:
            raise InvalidInput.at(
                "include_dirty", "only goes with workspace.base at the current HEAD"
            )
        return base
    probe = await _probe(source, head, scratch)
    dirty = await _status(probe, "normal")
    if dirty:
        more = f" and {len(dirty) - _SHOWN} more" if len(dirty) > _SHOWN else ""
        names = ", ".join(trees.text(path) for path in dirty[:_SHOWN])
        raise InvalidInput.at(
            _REPO,
            f"has uncommitted changes ({names}{more});"
            " commit them or set include_dirty: true",
        )
    return base


async def _check_folder(source: Source, base: str, folder: str) -> None:
    parts = folder.split("/")
    if folder.startswith("/") or ".." in parts or "\0" in folder or not folder.strip():
        raise InvalidInput.at(
            "workspace.path", "must be a folder inside the repository, without .."
        )
    inner = "/".join(part for part in parts if part not in {"", "."})
    kind = await source.git.run("cat-file", "-t", f"{base}:{inner}", ok=(0, 1, 128))
    if kind.strip() != b"tree":
        raise InvalidInput.at(
            "workspace.path", f"{folder[:200]!r} is no folder in the base commit"
        )


async def copy_history(
    source: Source, base: str, history: Repository, scratch: Path, *, dirty: bool
) -> str:
    """Bring the base (and 49 commits before it) into ``history``; return the task's base.

    ``dirty``: that is a commit of the user's uncommitted state, as a child of ``base``.
    """
    probe = await _probe(source, base, scratch)
    if dirty and not source.bare:
        base = await _commit_dirty(probe, base)
    await probe.run("update-ref", "refs/nestor/base", base)
    await history.run(
        *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--depth=50"),
        *("--update-shallow", "--no-auto-maintenance", "--", str(probe.git_dir)),
        "+refs/nestor/base:refs/nestor/base",
        allow_protocol="file",
    )
    return base


async def _probe(source: Source, head: str, scratch: Path) -> Repository:
    """Make a bare repository of ours that sees the user's objects, index and files."""
    path = scratch / "probe.git"
    probe = await trees.init(path, source.object_format)
    (path / "info" / "attributes").unlink()  # the user's own line-end rules hold here
    (path / "objects" / "info").mkdir(exist_ok=True)
    (path / "objects" / "info" / "alternates").write_text(f"{source.objects}\n")
    with (path / "config").open("a") as config:  # for git's own child, upload-pack
        config.write(_CHILD_CONFIG)
    for origin, name in ((source.shallow, "shallow"), (source.exclude, "info/exclude")):
        if origin.is_file():
            shutil.copyfile(origin, path / name)
    await probe.run("update-ref", "--no-deref", "HEAD", head)
    if source.bare:
        return probe
    if source.index.is_file():
        shutil.copy2(source.index, path / "index")  # its time tells what may be racy
        for part in source.index.parent.glob("sharedindex.*"):
            shutil.copy2(part, path / part.name)
    return replace(
        probe, work_tree=source.path, index=path / "index", config=source.config
    )


async def _status(probe: Repository, untracked: str) -> list[bytes]:
    """List what differs from HEAD; submodules are not looked into."""
    out = await probe.run(
        *("status", "--porcelain=v1", "-z", f"--untracked-files={untracked}"),
        *("--ignore-submodules=all", "--no-renames"),
        timeout_s=_INSPECT_TIMEOUT_S,
    )
    return [line[3:] for line in out.split(b"\0") if line]


async def _commit_dirty(probe: Repository, head: str) -> str:
    paths = [path for path in await _status(probe, "all") if not path.endswith(b"/")]
    if not paths:
        return head
    await probe.run(
        *("update-index", "--add", "--remove", "--replace", "-z", "--stdin"),
        stdin=b"".join(path + b"\0" for path in paths),
    )
    tree = await probe.line("write-tree")
    seconds = await trees.committed_at(probe, head) + 1
    said = "Uncommitted changes at submit"
    return await trees.commit(probe, tree, head, said, seconds=seconds)


async def deliver(
    source: Source, history: Repository, branch: str, *, head: str, commit: str
) -> None:
    """Put ``commit`` into the user's repository as ``branch``, moving that branch alone.

    ``head``: the commit of theirs that it stands on. Raises WorkspaceError when that
    commit is gone, or the branch is checked out somewhere.
    """
    probe = Repository(git_dir=history.git_dir, objects=source.objects)
    try:
        await probe.run("cat-file", "-e", f"{head}^{{commit}}")
    except WorkspaceError as error:
        message = f"{source.path} no longer has the base commit {head}"
        raise WorkspaceError(message) from error
    ref = f"refs/heads/{branch}"
    stands_on = await _tip(source, ref)
    if stands_on == commit:
        return
    ours = not stands_on or await _knows(history, stands_on)
    if not ours and not await _holds(source.git, head, stands_on):
        raise WorkspaceError(
            f"branch {branch} has commits of somebody else; rename it and try again"
        )
    await _refuse_checked_out(source, ref, branch)
    pack = (history.git_dir or source.path).parent / "deliver.pack"
    try:
        await history.run(
            *("pack-objects", "--revs", "--stdout", "--quiet"),
            stdin=f"{commit}\n^{head}\n".encode(),
            stdout=pack,
        )
        await probe.run("unpack-objects", "-q", stdin=pack)
    finally:
        pack.unlink(missing_ok=True)
    await source.git.run(
        *("update-ref", "--create-reflog", "-m", "nestor: delivered"),
        # Moved from where it was seen, or not at all.
        *(ref, commit, stands_on or "0" * len(commit)),
    )


async def refuse_taken(source: Source, branch: str, base: str) -> None:
    """Raise InvalidInput when moving this branch would leave commits on no branch."""
    stands_on = await _tip(source, f"refs/heads/{branch}")
    if stands_on and not await _holds(source.git, base, stands_on):
        raise InvalidInput.at(
            "task_id",
            f"the repository has a branch {branch} with commits of its own;"
            " use another task_id, or rename that branch",
        )


async def _tip(source: Source, ref: str) -> str:
    out = await source.git.run("for-each-ref", "--format=%(objectname)", ref)
    return out.decode().strip()


async def _knows(history: Repository, commit: str) -> bool:
    """Tell whether a commit is ours: our history has nothing but the base and our own."""
    try:
        await history.run("cat-file", "-e", f"{commit}^{{commit}}")
    except WorkspaceError:
        return False
    return True


async def _holds(git: Repository, commit: str, older: str) -> bool:
    """Tell whether ``older`` is known here and an ancestor of ``commit``."""
    try:
        out = await git.run("rev-list", "--max-count=1", older, f"^{commit}", "--")
    except WorkspaceError:  # not known here
        return False
    return not out.strip()


async def _refuse_checked_out(source: Source, ref: str, branch: str) -> None:
    out = await source.git.run("worktree", "list", "--porcelain")
    place = ""
    for line in out.decode(errors="replace").splitlines():
        if line.startswith("worktree "):
            place = line.removeprefix("worktree ")
        elif line == f"branch {ref}":
            raise WorkspaceError(
                f"branch {branch} is checked out in {place};"
                " switch to another branch there and try again"
            )
