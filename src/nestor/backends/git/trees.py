"""Trees of a repository as mappings, and how the harness makes and writes them."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nestor.backends.git.command import Repository
from nestor.errors import WorkspaceError
from nestor.model.task import DiffStat

GITLINK = "160000"
SYMLINK = "120000"
FIRST_COMMIT_S = 946_684_800
"""2000-01-01, for a commit without a parent. Each next one is a second later: no clock, so
that a step made again after a crash makes the same commit."""
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

ATTRIBUTES = "* -text -ident !eol !filter !working-tree-encoding !diff !merge\n"
"""``info/attributes`` of every repository of ours: it outranks the tree's own
``.gitattributes``, so that no file there can change bytes or hide a diff."""


class Entry(NamedTuple):
    """One path of a tree: its mode as git writes it, and the id of its content."""

    mode: str
    oid: str


async def init(path: Path, object_format: str, *, bare: bool = True) -> Repository:
    """Make an empty repository without templates, with ``ATTRIBUTES``."""
    kind = ["--bare"] if bare else []
    await Repository(cwd=path.parent).run(
        *("init", "--quiet", "--template=", "--initial-branch=nestor", *kind),
        *(f"--object-format={object_format}", "--", str(path)),
    )
    git_dir = path if bare else path / ".git"
    (git_dir / "info").mkdir(exist_ok=True)
    (git_dir / "info" / "attributes").write_text(ATTRIBUTES)
    return Repository(git_dir=git_dir)


async def read(git: Repository, commit: str) -> dict[bytes, Entry]:
    """List every path of a commit, submodules included."""
    out = await git.run("ls-tree", "-r", "-z", "--full-tree", checked(commit))
    tree: dict[bytes, Entry] = {}
    for line in filter(None, out.split(b"\0")):
        meta, _, path = line.partition(b"\t")
        mode, _, oid = meta.decode().split(" ")
        tree[path] = Entry(mode, oid)
    return tree


async def index(git: Repository, tree: Mapping[bytes, Entry]) -> None:
    """Fill the index file of ``git`` with these entries; it must not exist yet."""
    lines = [
        f"{entry.mode} {entry.oid}\t".encode() + path + b"\0"
        for path, entry in tree.items()
    ]
    await git.run("update-index", "-z", "--index-info", stdin=b"".join(lines))


async def write(git: Repository, tree: Mapping[bytes, Entry]) -> str:
    """Store a tree and return its id."""
    with tempfile.TemporaryDirectory() as folder:
        git = replace(git, index=Path(folder) / "index")
        await index(git, tree)
        return await git.line("write-tree")


async def unpack(git: Repository, commit: str) -> None:
    """Write the files of a commit into the empty work tree of ``git``, and its index."""
    await git.run("read-tree", "--reset", "-u", checked(commit))


async def committed_at(git: Repository, commit: str) -> int:
    """Return when a commit was made, in seconds since 1970."""
    return int(await git.line("show", "-s", "--format=%ct", checked(commit)))


async def commit(
    git: Repository, tree: str, parent: str | None, message: str, *, seconds: int
) -> str:
    """Commit a tree. The same tree, parent, message and seconds make the same commit."""
    date = f"{seconds} +0000"
    parents = [] if parent is None else ["-p", checked(parent)]
    text = message.replace("\0", " ").encode(errors="replace")
    out = await git.run(
        *("commit-tree", tree, *parents, "-F", "-"),
        stdin=text,
        env={"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
    )
    return out.decode().strip()


async def changes(
    git: Repository, base: str, after: str
) -> tuple[DiffStat, list[bytes]]:
    """Size of the change between two commits, and its paths. Binary files count no lines."""
    out = await git.run(
        *("diff-tree", "-r", "-z", "--numstat", "--no-renames", "--no-ext-diff"),
        *("--no-textconv", checked(base), checked(after)),
    )
    insertions = deletions = 0
    paths: list[bytes] = []
    for line in filter(None, out.split(b"\0")):
        added, removed, path = line.split(b"\t", 2)
        insertions += int(added) if added != b"-" else 0
        deletions += int(removed) if removed != b"-" else 0
        paths.append(path)
    stat = DiffStat(files=len(paths), insertions=insertions, deletions=deletions)
    return stat, paths


def checked(commit_id: str) -> str:
    """Return a full object id as it is; anything else could be read as an option."""
    if not _COMMIT.fullmatch(commit_id):
        raise WorkspaceError(f"{commit_id[:80]!r} is not a commit id")
    return commit_id


def text(path: bytes) -> str:
    r"""Return a path as text that can be stored anywhere; odd bytes become ``\xNN``."""
    return path.decode("utf-8", "backslashreplace")
