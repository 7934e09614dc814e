"""The first page: what this is, where its parts are, and who is signed in.

It is open to all and holds no private data; the script only signs a browser in and out,
and without it everything else is there.
"""

from html import escape
from importlib import resources
from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.handlers import HTTPRouteHandler

from nestor import __version__
from nestor.model.network import in_url, reached_at
from nestor.ports.rate_limiter import RateLimiter
from nestor.web import auth, session
from nestor.web.client_address import ClientAddresses

_LAYERS = {
    "ralph": "runs tasks: submit, follow, stop",
    "aidb": "finds context in what it was given to read",
    "coordinator": "sends each query to the model that should answer it",
    "learning": "tells what was recorded to learn from",
    "dashboard": "this page",
}
_COMMANDS = {
    "nestor status": "what runs, what waits, what ended",
    "nestor submit --file TASK.yaml": "hand in a task; verified or not, it says which",
    "nestor watch TASK_ID": "follow it live",
    "nestor ask “…”": "ask the models, with sources",
    "nestor kb add FOLDER": "give it something to read",
    "nestor page": "print a link that signs a browser in here",
    "nestor doctor": "what works here, and how to mend what does not",
    "nestor key": "print the admin key that the interfaces want",
}
_STATIC = {
    "session.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Every file that is served, and as what."""
_CSP = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)


@get(
    "/",
    opt={"scope": None, "media": ["text/html"]},
    media_type=MediaType.HTML,
    sync_to_thread=False,
)
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
        '<title>Nestor</title><link rel="stylesheet" href="/static/page.css">'
        '<link rel="icon" href="/static/icon.svg">'
        '<script src="/static/session.js" defer></script></head><body><main>'
        f"<h1>Nestor <small>{escape(__version__)}</small></h1>"
        "<p>It runs coding agents on your repositories and believes only what it"
        " verified: a task is done when its checks pass, not when an agent says so.</p>"
        f"{_sign_in(request)}"
        f"<h2>Layers</h2><table>{layers}</table>"
        f"<h2>Commands</h2><table>{commands}</table>"
        "<p>Each layer answers <code>/health/ready</code> to all, and everything else"
        " to those with a key.</p></main></body></html>"
    )
    return Response(
        html,
        media_type=MediaType.HTML,
        headers={"content-security-policy": _CSP},
    )


def handlers(
    attempts: RateLimiter | None = None, clients: ClientAddresses | None = None
) -> list[HTTPRouteHandler]:
    """Return the routes of this layer; the static files are read here, once.

    ``attempts`` bounds how often each of ``clients`` fails to sign in; not given: ten
    times a minute.
    """
    folder = resources.files("nestor.web") / "static"
    files = [
        _static(f"/static/{name}", kind, (folder / name).read_bytes())
        for name, kind in _STATIC.items()
    ]
    return [page, *files, *session.handlers(attempts, clients)]


def _static(path: str, kind: str, content: bytes) -> HTTPRouteHandler:
    @get(
        path,
        opt={"scope": None, "replies": {200: str}, "media": [kind.partition(";")[0]]},
        sync_to_thread=False,
    )
    def static_file() -> Response[bytes]:
        """Send a file of the page."""
        return Response(content, headers={"content-type": kind})

    return static_file


def _sign_in(request: Request[Any, Any, Any]) -> str:
    """Say how to sign in; the script puts what it did in the same place."""
    settings = request.app.state.nestor.settings
    names = auth.page_hosts(settings)
    if auth.is_page_host([request.headers["host"].encode("latin-1")], names):
        return (
            '<section id="session" data-sign-in="here" role="status"><p>To sign in, run'
            " <code>nestor page</code> in a terminal and open the link it prints.</p>"
            "</section>"
        )
    url = escape(session.page_url(settings, session.page_port(request)))
    return (
        '<section id="session"><p>Nobody is signed in under this address, because'
        # No link: from here it would come as another site's, which is refused.
        " programs on other ports of it would be sent the cookie. Put"
        f" <code>{url}</code> in the address bar instead.</p></section>"
    )


def _row(name: str, what: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(what)}</td></tr>"


def _address(layer: str, ports: dict[str, int], settings: Any) -> str:
    """``ports``: where layers of this process do listen; the others by their setting."""
    port = ports.get(layer) or getattr(settings, f"{layer}_port")
    host = in_url(reached_at(settings.host))
    return f"http://{host}:{port}" if port else "not known here"
