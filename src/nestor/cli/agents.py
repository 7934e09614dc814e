"""``nestor agents``: the programs that do the work, which of them are here, and installing them."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from nestor.cli.client import load_settings
from nestor.cli.render import Screen, print_json
from nestor.errors import InvalidInput

if TYPE_CHECKING:
    from nestor.settings import Settings

app = typer.Typer(
    name="agents",
    no_args_is_help=True,
    help="Agents that work on tasks: list them, and install their programs.",
    epilog="""Examples:

  nestor agents list

  nestor agents install claude codex

  nestor submit task.json   (with "backend": "claude")""",
)
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_AT_ONCE = 4
READY, OTHER, MISSING = "ready", "with care", "not installed"


@dataclass(frozen=True, slots=True)
class Row:
    """One backend. ``version`` None: it has none, or did not say one."""

    name: str
    state: str
    version: str | None
    tested: str | None
    path: str | None
    needs_model: bool
    note: str | None
    remedy: str | None


@app.command(
    "list", epilog="Examples:\n\n  nestor agents list\n\n  nestor agents list --json"
)
def list_agents(as_json: _JSON = False) -> None:
    """Start each agent's program for its version, and say which can be used."""
    rows = found(load_settings())
    if as_json:
        print_json({"agents": [asdict(row) for row in rows]})
        return
    screen = Screen()
    screen.table(
        ("agent", "state", "version", "tested", "note"),
        [(r.name, r.state, r.version, r.tested, _note(r)) for r in rows],
    )


@app.command(
    epilog="""Examples:

  nestor agents install claude

  nestor agents install aider mini opencode"""
)
def install(
    names: Annotated[list[str], typer.Argument(help="aider, claude, codex, …")],
    as_json: _JSON = False,
) -> None:
    """Fetch agents' programs in the versions that are tested, with npm, and uv or pip."""
    # For this command only.
    from nestor.backends.agents.installing import install as put  # noqa: PLC0415
    from nestor.backends.agents.programs import PROGRAMS  # noqa: PLC0415

    known = [name for name, program in PROGRAMS.items() if program.source]
    for name in names:
        if name not in known:
            program = PROGRAMS.get(name)
            why = program.remedy if program else f"{name!r} is not known"
            raise InvalidInput.at("NAMES", f"{why}; known: {', '.join(known)}")
    settings, screen, done = load_settings(), Screen(), []
    folder = settings.agents_folder
    for name in dict.fromkeys(names):
        if as_json:
            new = put(name, folder, say=lambda _: None)
        else:
            with screen.waiting(f"looking for {name}") as say:
                new = put(name, folder, say=say)
            screen.line(
                f"{'installed' if new else 'already there'}: {folder / name}", "ok"
            )
        done.append({"name": name, "installed": new, "path": str(folder / name)})
    if as_json:
        print_json({"agents": done})


def found(settings: "Settings") -> list[Row]:
    """Look at every backend; starts their programs, some at the same time."""
    # For these commands only.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from nestor.backends.agents import backends  # noqa: PLC0415

    rows, every = [], sorted(backends(settings.agents_folder).items())
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        looks = list(threads.map(lambda one: one[1].look(), every))
    for (name, backend), look in zip(every, looks, strict=True):
        state = MISSING if look.path is None else OTHER if look.fault else READY
        rows.append(
            Row(
                name=name,
                state=state,
                version=look.version,
                tested=look.tested or None,
                path=look.path,
                needs_model=backend.needs_model,
                note=look.fault if look.path else None,
                remedy=look.remedy or None,
            )
        )
    return rows


def _note(row: Row) -> str | None:
    return "; ".join(part for part in (row.note, row.remedy) if part) or None
