"""``nestor kb``: what the knowledge base knows."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from nestor.cli.client import Stack
from nestor.cli.inert import inert, one_line
from nestor.cli.render import Screen, print_json
from nestor.errors import InvalidInput, NotFound

SUFFIXES = (".md", ".markdown", ".txt")
MAX_FILES = 10_000
MAX_FILE_BYTES = 4 * 1024 * 1024
_BATCH_BYTES = 512 * 1024
_BATCH_FILES = 100
_HIDDEN, _LINKS, _OTHERS = "hidden", "links", f"other than {', '.join(SUFFIXES)}"
_SHOWN = 20

app = typer.Typer(
    name="kb",
    no_args_is_help=True,
    help="Teach the knowledge base, and look into it.",
    epilog="Examples:\n\n  nestor kb add docs/ README.md"
    '\n\n  nestor kb search "retry policy"',
)
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(
    epilog="Examples:\n\n  nestor kb add docs/\n\n  nestor kb add notes.md --project ops"
)
def add(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders to walk.")],
    project: Annotated[
        str | None,
        typer.Option(help="Name of the collection of files; the folder's name."),
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Add Markdown and text files; adding a file again replaces it.

    Folders are walked for *.md, *.markdown and *.txt; hidden files, links and binary
    files are left out, and said so.
    """
    screen, stack = Screen(), Stack.find()
    with screen.waiting("adding"):
        done = add_files(stack, paths, project=project)
    if as_json:
        print_json(done)
        return
    screen.line(f"{done['added']} added, {done['unchanged']} unchanged")
    if left_out := done["left_out"]:
        counts = ", ".join(f"{number} {what}" for what, number in left_out.items())
        screen.line(f"left out: {counts}", "warn")
    for path, why in done["skipped"][:_SHOWN]:
        screen.line(f"  {path}: {why}", "warn")
    if (more := len(done["skipped"]) - _SHOWN) > 0:
        screen.line(f"  and {more} more; --json names them all", "warn")


def add_files(
    stack: Stack, paths: list[Path], *, project: str | None = None
) -> dict[str, Any]:
    """Send files to AIDB in batches; returns counts and what was left out, with why.

    ``left_out`` counts by reason; ``skipped`` names the files that should have been sent.
    """
    skipped: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    added = unchanged = 0
    batch: list[dict[str, str]] = []
    size = 0

    def send() -> None:
        nonlocal added, unchanged, size
        if batch:
            reply = stack.call(
                "aidb", "POST", "/documents", body={"items": batch}, timeout_s=300
            )
            same = sum(1 for item in reply["items"] if item.get("unchanged"))
            unchanged += same
            added += len(reply["items"]) - same
        batch.clear()
        size = 0

    for name, path, shown in _found(paths, project, left_out):
        text = _read(path, skipped)
        if text is None:
            left_out[skipped[-1][1]] += 1
            continue
        if batch and (size + len(text) > _BATCH_BYTES or len(batch) >= _BATCH_FILES):
            send()
        batch.append({"project": name, "path": shown, "content": text})
        size += len(text)
    send()
    return {
        "added": added,
        "unchanged": unchanged,
        "left_out": dict(left_out),
        "skipped": skipped,
    }


@app.command(epilog='Examples:\n\n  nestor kb search "retry policy" --limit 3')
def search(
    query: Annotated[str, typer.Argument()],
    limit: Annotated[int, typer.Option(min=1, max=50)] = 5,
    as_json: _JSON = False,
) -> None:
    """Show what the knowledge base would give as context for a query."""
    body = {"query": query, "limit": limit}
    found = Stack.find().call("aidb", "POST", "/context", body=body)
    if as_json:
        print_json(found)
        return
    screen = Screen()
    for item in found.get("items", []):
        screen.line(f"{item.get('source')}  (score {item.get('score'):.3f})", "heading")
        screen.line(f"  {one_line(item.get('text', ''), 240)}")
    if not found.get("items"):
        screen.line("nothing found — teach it with: nestor kb add", "note")
    for part in found.get("degraded") or []:
        screen.line(f"degraded: {part}", "warn")


@app.command("list", epilog="Example:\n\n  nestor kb list --json")
def list_documents(as_json: _JSON = False) -> None:
    """List the documents."""
    found = Stack.find().call("aidb", "GET", "/documents")
    if as_json:
        print_json(found)
        return
    rows = found.get("documents", found.get("items", []))
    Screen().table(
        ("id", "project", "path", "bytes", "chunks", "added"),
        [
            tuple(
                row.get(name)
                for name in (
                    "id",
                    "project",
                    "path",
                    "size_bytes",
                    "chunks",
                    "added_at",
                )
            )
            for row in rows
        ],
        empty="no documents yet — add some with: nestor kb add docs/",
    )


@app.command(epilog="Example:\n\n  nestor kb rm DOCUMENT_ID")
def rm(
    document_id: Annotated[str, typer.Argument(help="From: nestor kb list")],
) -> None:
    """Forget a document."""
    path = f"/documents/{quote(document_id, safe='')}"
    try:
        Stack.find().call("aidb", "DELETE", path)
    except NotFound as error:
        message = f"no document has the id {document_id} — see: nestor kb list"
        raise NotFound(message) from error
    typer.echo(inert(f"removed {document_id}"))


@app.command(epilog="Example:\n\n  nestor kb reindex")
def reindex(as_json: _JSON = False) -> None:
    """Build the search index again from the stored texts."""
    reply = Stack.find().call("aidb", "POST", "/reindex", timeout_s=600)
    if as_json:
        print_json(reply)
    else:
        chunks = (reply or {}).get("chunks")
        typer.echo("reindexed" if chunks is None else f"reindexed {chunks} chunks")


def _found(
    paths: list[Path], project: str | None, left_out: Counter[str]
) -> Iterator[tuple[str, Path, str]]:
    """Yield project, file, and the file's name within the project."""
    count = 0
    for given in paths:
        if given.expanduser().is_symlink():
            message = f"{given} is a link, which is not followed; give what it leads to"
            raise InvalidInput.at("PATH", message)
        root = given.expanduser().resolve()
        if not root.exists():
            raise InvalidInput.at("PATH", f"{given} does not exist")
        inside = root if root.is_dir() else root.parent
        for path in _walk(root, left_out) if root.is_dir() else [root]:
            count += 1
            if count > MAX_FILES:
                raise InvalidInput.at(
                    "PATH", f"more than {MAX_FILES} files; add them folder by folder"
                )
            yield project or inside.name or "root", path, str(path.relative_to(inside))


def _walk(root: Path, left_out: Counter[str]) -> Iterator[Path]:
    for folder, names, files in os.walk(root, followlinks=False):
        inside = []
        for name in sorted(names):
            why = _why_not(Path(folder, name))
            if why is None:
                inside.append(name)
            else:
                left_out[why] += 1
        names[:] = inside
        for name in sorted(files):
            path = Path(folder, name)
            why = _why_not(path)
            if why is None and path.suffix.lower() not in SUFFIXES:
                why = _OTHERS
            if why is None:
                yield path
            else:
                left_out[why] += 1


def _why_not(path: Path) -> str | None:
    if path.name.startswith("."):
        return _HIDDEN
    return _LINKS if path.is_symlink() else None


def _read(path: Path, skipped: list[tuple[str, str]]) -> str | None:
    """Read a text file; None when it is no text, too large or empty, which is noted."""
    try:
        if not path.is_file():
            raise ValueError("not a regular file")  # noqa: TRY301 - one place notes all
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("larger than 4 MiB")  # noqa: TRY301
        raw = path.read_bytes()
        if b"\0" in raw:
            raise ValueError("binary")  # noqa: TRY301
        text = raw.decode("utf-8-sig")
        if not text.strip():
            raise ValueError("empty")  # noqa: TRY301
    except UnicodeDecodeError:
        skipped.append((str(path), "not UTF-8"))
    except (OSError, ValueError) as error:
        skipped.append((str(path), getattr(error, "strerror", None) or str(error)))
    else:
        return text
    return None
