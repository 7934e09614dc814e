"""``nestor kb``: what the knowledge base knows."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from nestor.cli.client import Stack, load_settings
from nestor.cli.client_id import client_id
from nestor.cli.inert import inert, one_line
from nestor.cli.render import Screen, print_json
from nestor.errors import InvalidInput, NotFound

_SHOWN = 20

app = typer.Typer(
    name="kb",
    no_args_is_help=True,
    help="Teach the knowledge base, and look into it.",
    epilog="Examples:\n\n  nestor kb add docs/ README.md"
    '\n\n  nestor kb search "retry policy"',
)
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Shelf(StrEnum):
    """``model.knowledge.Collection``, which takes a while to import."""

    CODEBASE_CONTEXT = "codebase-context"
    SKILLS_PATTERNS = "skills-patterns"
    ERROR_SOLUTIONS = "error-solutions"
    INTERACTION_HISTORY = "interaction-history"
    BEST_PRACTICES = "best-practices"


class Leg(StrEnum):
    """Ways of searching."""

    FUSED = "fused"
    BM25 = "bm25"
    DENSE = "dense"
    FULLTEXT = "fulltext"


@app.command(
    epilog="Examples:\n\n  nestor kb add docs/\n\n  nestor kb add notes.md --project ops"
)
def add(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders to walk.")],
    project: Annotated[
        str | None,
        typer.Option(help="Name of the collection of files; the folder's name."),
    ] = None,
    collection: Annotated[
        Shelf, typer.Option(help="The shelf they go to.")
    ] = Shelf.CODEBASE_CONTEXT,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Take the place of files that other folders added."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")
    ] = False,
    as_json: _JSON = False,
) -> None:
    """Add files: Markdown, text, code, HTML, PDF; adding a file again replaces it.

    Folders are walked; what .gitignore or .nestorignore names, hidden files, links and
    binary files are left out, and said so. Only what changed is sent, and what is gone
    from a folder is forgotten. What another folder added stays, unless --replace is
    given. Ends with 1 when a file given by name was refused.
    """
    from nestor.cli.adding import Adding  # noqa: PLC0415 - it walks with git

    screen, settings = Screen(), load_settings()
    adding = Adding(
        Stack.find(settings),
        screen,
        client=client_id(settings.home, make=not dry_run),
        project=project,
        collection=collection.value,
        replace=replace,
        dry_run=dry_run,
    )
    done = adding.add(paths, quiet=as_json)
    if as_json:
        print_json(done)
        raise typer.Exit(1 if done["refused"] else 0)
    would = "would be " if dry_run else ""
    screen.line(
        f"{done['added']} {would}added, {done['unchanged']} unchanged,"
        f" {done['removed']} {would}removed"
    )
    if left_out := done["left_out"]:
        counts = ", ".join(f"{number} {what}" for what, number in left_out.items())
        screen.line(f"left out: {counts}", "warn")
    for path, why in done["skipped"][:_SHOWN]:
        screen.line(f"  {path}: {why}", "warn")
    if (more := len(done["skipped"]) - _SHOWN) > 0:
        screen.line(f"  and {more} more; --json names them all", "warn")
    if done["refused"]:
        raise typer.Exit(1)


def add_files(
    stack: Stack, paths: list[Path], *, project: str | None = None
) -> dict[str, Any]:
    """Send files to AIDB; returns counts and what was left out, with why."""
    from nestor.cli.adding import Adding  # noqa: PLC0415 - as above

    return Adding(stack, Screen(), project=project).add(paths, quiet=True)


@app.command(
    epilog='Examples:\n\n  nestor kb search "retry policy" --limit 3'
    "\n\n  nestor kb search retries --leg bm25 --path-prefix src/"
)
def search(
    query: Annotated[str, typer.Argument()],
    limit: Annotated[int, typer.Option(min=1, max=50)] = 5,
    leg: Annotated[
        Leg | None,
        typer.Option(help="Search this way alone, and show every hit as it is."),
    ] = None,
    project: Annotated[
        list[str] | None, typer.Option(help="Only these projects (repeat it).")
    ] = None,
    collection: Annotated[
        list[Shelf] | None, typer.Option(help="Only these shelves (repeat it).")
    ] = None,
    path_prefix: Annotated[
        str | None, typer.Option(help="Only paths that begin so.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--where", help="Only with NAME=VALUE.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Show what the knowledge base would give as context for a query."""
    body: dict[str, Any] = {"query": query, "limit": limit}
    body |= {
        name: value
        for name, value in (
            ("projects", project),
            ("collections", collection),
            ("path_prefix", path_prefix),
            ("metadata", _pairs(metadata or [])),
        )
        if value
    }
    if leg is not None:
        body["leg"] = leg.value
    path = "/context" if leg is None else "/search"
    found = Stack.find().call("aidb", "POST", path, body=body)
    if as_json:
        print_json(found)
        return
    screen = Screen()
    for item in found.get("items", []):
        screen.line(f"{_source(item)}  (score {item.get('score'):.3f})", "heading")
        screen.line(f"  {one_line(item.get('text', ''), 240)}")
    if not found.get("items"):
        screen.line("nothing found — teach it with: nestor kb add", "note")
    for part in found.get("degraded") or []:
        screen.line(f"degraded: {part}", "warn")


def _source(item: dict[str, Any]) -> str:
    """Name the place of an item: with its page or its first line, where that is known."""
    told = item.get("provenance") or {}
    if told.get("page"):
        return f"{item.get('source')}, page {told['page']}"
    if item.get("kind") != "document":  # a learned pattern is whole
        return str(item.get("source"))
    line = told.get("first_line")
    return f"{item.get('source')}, line {line}" if line else str(item.get("source"))


def _pairs(given: list[str]) -> dict[str, str]:
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput.at("--where", f"{pair!r} is not NAME=VALUE")
        found[name] = value
    return found


@app.command("list", epilog="Example:\n\n  nestor kb list --json")
def list_documents(
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    as_json: _JSON = False,
) -> None:
    """List the documents."""
    stack = Stack.find()
    query: dict[str, object] = {"project": project}
    found = stack.call("aidb", "GET", "/documents", query=query)
    page = found
    while page.get("next"):
        query["after"] = page["next"]
        page = stack.call("aidb", "GET", "/documents", query=query)
        found["documents"] += page["documents"]
    if as_json:
        print_json({**found, "next": None})
        return
    names = ("id", "project", "path", "size_bytes", "chunks", "added_at")
    Screen().table(
        ("id", "project", "path", "bytes", "chunks", "added"),
        [tuple(row.get(name) for name in names) for row in found["documents"]],
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


@app.command(epilog="Example:\n\n  nestor kb verify")
def verify(as_json: _JSON = False) -> None:
    """Compare the database, the search index and the vectors; exit 1 when they differ."""
    told = Stack.find().call("aidb", "POST", "/verify", timeout_s=600)
    if as_json:
        print_json(told)
        raise typer.Exit(0 if told["consistent"] else 1)
    screen = Screen()
    screen.line(
        f"{told['documents']} documents, {told['chunks']} chunks,"
        f" {told['indexed']} in the search index"
    )
    if told["waiting"]:
        screen.line(f"{told['waiting']} wait for the index", "note")
    if told["without_vector"]:
        screen.line(f"{told['without_vector']} wait for their vectors", "note")
    for problem in told["problems"]:
        screen.line(problem, "fail")
    if told["consistent"]:
        screen.line("all agree", "ok")
        return
    if told["missing"] or told["extra"] or told["vectors_lost"]:
        screen.line("mend it with: nestor kb reindex")
    raise typer.Exit(1)


@app.command(epilog="Example:\n\n  nestor kb reindex")
def reindex(as_json: _JSON = False) -> None:
    """Build the search index again from the stored texts; the old one answers meanwhile."""
    screen, stack = Screen(), Stack.find()
    if as_json:
        print_json(stack.call("aidb", "POST", "/reindex", timeout_s=3600))
        return
    with screen.waiting("building the search index"):
        reply = stack.call("aidb", "POST", "/reindex", timeout_s=3600)
    chunks = (reply or {}).get("chunks")
    typer.echo("reindexed" if chunks is None else f"reindexed {chunks} chunks")
