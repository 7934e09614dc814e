"""The first page: what this is and where its parts are. No script, no private data."""

import base64
import hashlib
from html import escape
from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.handlers import HTTPRouteHandler

from nestor import __version__

_LAYERS = {
    "ralph": "runs tasks: submit, follow, stop",
    "aidb": "finds context in what it was given to read",
    "coordinator": "sends each query to the model that should answer it",
    "learning": "tells what was recorded to learn from",
    "dashboard": "this page",
}
_COMMANDS = {
    "nestor status": "what runs, what waits, what ended",
    "nestor submit TASK.yaml": "hand in a task; verified or not, it says which",
    "nestor watch TASK_ID": "follow it live",
    "nestor ask “…”": "ask the models, with sources",
    "nestor kb add FOLDER": "give it something to read",
    "nestor doctor": "what works here, and how to mend what does not",
    "nestor key": "print the admin key that the interfaces want",
}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CSP = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@get("/", opt={"scope": None}, media_type=MediaType.HTML, sync_to_thread=False)
def page(request: Request[Any, Any, Any]) -> Response[str]:
    """Show the layers' addresses and the commands to use."""
    state = request.app.state
    layers = "".join(
        _row(_address(layer, state.ports, state.nestor.settings), f"{layer}: {what}")
        for layer, what in _LAYERS.items()
    )
    commands = "".join(_row(name, what) for name, what in _COMMANDS.items())
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Nestor</title><style>{_STYLE}</style></head><body>"
        f"<h1>Nestor <small>{escape(__version__)}</small></h1>"
        "<p>It runs coding agents on your repositories and believes only what it"
        " verified: a task is done when its checks pass, not when an agent says so.</p>"
        f"<h2>Layers</h2><table>{layers}</table>"
        f"<h2>Commands</h2><table>{commands}</table>"
        "<p>Each layer answers <code>/health/ready</code> to all, and everything else"
        " to those with a key.</p></body></html>"
    )
    return Response(
        html,
        media_type=MediaType.HTML,
        headers={"content-security-policy": _CSP},
    )


def handlers() -> list[HTTPRouteHandler]:
    """Return the routes of this layer."""
    return [page]


def _row(name: str, what: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(what)}</td></tr>"


def _address(layer: str, ports: dict[str, int], settings: Any) -> str:
    """``ports``: where layers of this process do listen; the others by their setting."""
    port = ports.get(layer) or getattr(settings, f"{layer}_port")
    host = "[::1]" if settings.host == "::1" else settings.host
    return f"http://{host}:{port}" if port else "not known here"
