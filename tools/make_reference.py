"""Write docs/reference/ from the code: `python -m tools.make_reference [FOLDER]`.

Settings from their fields and docstrings, commands from their help, HTTP calls from the
route handlers. A test compares the committed pages with what this writes.
"""

import ast
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from tools.http_reference import details

from nestor import settings
from nestor.cli.main import EXIT_CODES, app
from nestor.resilience.rate_limit import MovingWindow
from nestor.web import aidb, coordinator, dashboard, health, learning, proxy, ralph
from nestor.web.client_address import ClientAddresses

FOLDER = Path("docs/reference")
NOTE = "<!-- Written by `make docs`; do not edit. -->\n"
SETTINGS_INTRO = """\
Names in `nestor.toml` are in lower case and without the prefix.
`nestor doctor --config` prints what is in force and where it comes from.
"""
HTTP_INTRO = """\
Every layer listens on its own port, of the loopback address unless set otherwise. A key goes into
`Authorization: Bearer KEY` or `X-API-Key: KEY`; `nestor key` prints the admin key.
Errors are RFC 9457 problem documents: `type`, `title`, `status`, `detail`, `errors[]`
with `field` and `message`, `trace_id`.
The examples print the reply and end with an error when the call is refused.
"""
EVERYWHERE = """\
| `GET /metrics` | `metrics` or `service` | Prometheus metrics. |
| `GET /schema/openapi.json` | `read` | This layer's calls, for programs. |
| `GET /docs` | `read` | The same, for people. |
"""


def settings_page() -> str:
    """Every setting: environment name, type, default, meaning."""
    source = inspect.getsource(settings.Settings)
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    docs = dict(_field_docs(tree))
    lines = [
        NOTE,
        "# Settings\n",
        f"{_clean(settings.__doc__)}\n",
        SETTINGS_INTRO,
        "| environment | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in settings.Settings.model_fields.items():
        variable = f"`{settings.PREFIX}{name.upper()}`"
        if name in settings.SECRETS:
            variable += f", `{settings.PREFIX}{name.upper()}_FILE`"
        default = "" if field.default is None else _default(field)
        lines.append(f"| {variable} | {default} | {_cell(docs.get(name, ''))} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command: what it does, its arguments and options, examples."""
    lines = [NOTE, "# Command line\n"]
    lines.append("| exit code | when |\n|---|---|\n| 0 | done |")
    by_code: dict[int, list[str]] = {}
    for kind, code in EXIT_CODES.items():
        by_code.setdefault(code, []).append(f"`{kind.__name__}`")
    for code in sorted(by_code):
        also = ", or a task that did not end `verified`" if code == 1 else ""
        lines.append(f"| {code} | {', '.join(by_code[code])}{also} |")
    lines.append("| 130 | interrupted |")
    for path, command in _commands(typer.main.get_command(app), ()):
        lines.append(f"\n## nestor {' '.join(path)}\n")
        lines.append(f"{_clean(command.help)}\n")
        lines.extend(_parameters(command))
        if command.epilog:
            lines.append(f"\n```text\n{_examples(command.epilog)}\n```")
    return "\n".join(lines) + "\n"


def http_page() -> str:
    """Every call of every layer: method, path, the scope it needs, what it does."""
    lines = [
        NOTE,
        "# HTTP\n",
        HTTP_INTRO,
    ]
    layers = {
        "ralph": (8090, ralph),
        "aidb": (8091, aidb),
        "coordinator": (8092, coordinator),
        "learning": (8093, learning),
        "dashboard": (8888, dashboard),
    }
    for name, (port, module) in layers.items():
        routes = module.handlers()
        if module is dashboard:
            routes = [*routes, *_proxied()]
        lines += [f"## {name} (port {port})\n", *_routes(routes)]
        for handler in routes:
            lines += details(name, _call(handler), handler)
    lines += ["## on every layer\n", *_routes(_health())[:-1], EVERYWHERE]
    return "\n".join(lines).rstrip() + "\n"


def _health() -> list[Any]:
    class _Unused:
        """The handlers are described here, never called."""

        def __getattr__(self, name: str) -> Any:
            return None

    return list(health.handlers(_Unused()))  # type: ignore[arg-type]


def _proxied() -> list[Any]:
    """Return the proxy's routes; they are described here, not asked."""
    aidb_of_nobody = proxy.Aidb(("127.0.0.1", 9), "not-asked")
    return proxy.handlers(aidb_of_nobody, MovingWindow(1, 1), ClientAddresses([]))


def _routes(handlers: Sequence[Any]) -> list[str]:
    lines = ["| call | key | what it does |", "|---|---|---|"]
    for handler in handlers:
        methods = "/".join(sorted(m for m in handler.http_methods if m != "OPTIONS"))
        paths = " = ".join(f"`{methods} {path}`" for path in _paths(handler))
        scope = handler.opt.get("scope", "admin")
        key = "none" if scope is None else _either(scope)
        text = (handler.fn.__doc__ or "").strip().partition("\n\n")[0]
        lines.append(f"| {paths} | {key} | {_cell(text)} |")
    return [*lines, ""]


def _call(handler: Any) -> str:
    (method,) = (m for m in handler.http_methods if m not in {"OPTIONS", "HEAD"})
    paths = _paths(handler)
    return f"{method} {'/submit' if '/submit' in paths else paths[0]}"


def _paths(handler: Any) -> list[str]:
    return [path.replace(":str}", "}") for path in sorted(handler.paths)]


def _either(scope: str | Sequence[str]) -> str:
    names = [scope] if isinstance(scope, str) else list(scope)
    return " or ".join(f"`{name}`" for name in names)


def _commands(
    command: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if path and (not children or getattr(command, "invoke_without_command", False)):
        yield path, command
    for name, child in (children or {}).items():
        yield from _commands(child, (*path, name))


def _parameters(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        if parameter.param_type_name == "argument":
            shown = f"`{parameter.name.upper()}`"
        else:
            shown = ", ".join(f"`{name}`" for name in parameter.opts)
        needed = " (needed)" if parameter.required else ""
        text = getattr(parameter, "help", None) or ""
        rows.append(f"| {shown}{needed} | {_cell(text)} |")
    return ["| | |", "|---|---|", *rows] if rows else []


def _examples(epilog: str) -> str:
    lines = [line.rstrip() for line in epilog.splitlines() if line.strip()]
    return "\n".join(line.removeprefix("  ") for line in lines)


def _field_docs(tree: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            yield before.target.id, str(after.value.value)


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "the platform's data folder"
    if field.default in ([], ""):
        return ""
    return f"`{field.default}`"


def _clean(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(_clean(text).split()).replace("|", "\\|")


PAGES = {"settings.md": settings_page, "cli.md": cli_page, "http.md": http_page}


def main(folder: Path) -> None:
    """Write the pages into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
