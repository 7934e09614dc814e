"""``nestor page``: sign a browser in to the page."""

import sys
from datetime import datetime
from typing import Annotated

import typer

from nestor.cli.client import Stack
from nestor.cli.inert import inert
from nestor.cli.render import Screen
from nestor.errors import InvalidInput

_EPILOG = """Examples:

  nestor page

  nestor page --end

Behind a reverse proxy, put the part from # on after the proxy's address."""


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog=_EPILOG)(page)


def page(
    end: Annotated[
        bool,
        typer.Option(
            "--end", help="Sign every browser out instead; unused links end as well."
        ),
    ] = False,
) -> None:
    """Print a link that signs one browser in to the page, once, within five minutes."""
    screen = Screen()
    if end:
        Stack.find().call("dashboard", "DELETE", "/sessions")
        screen.line("every browser is signed out, and links not yet used open nothing")
        return
    if not screen.terminal:
        raise InvalidInput(
            "the link is printed to a terminal only, because it signs in whoever reads"
            " it, and a file or a pipe keeps it — run: nestor page"
        )
    made = Stack.find().call("dashboard", "POST", "/session/links")
    show(screen, made["url"], datetime.fromisoformat(made["expires_at"]))


def show(screen: Screen, url: str, expires_at: datetime) -> None:
    """Print a link. Never wrapped: half of it opens nothing."""
    until = expires_at.astimezone().strftime("%H:%M")
    screen.line(f"sign a browser in, once, until {until}:")
    sys.stdout.write(f"{inert(url)}\n")
    sys.stdout.flush()
