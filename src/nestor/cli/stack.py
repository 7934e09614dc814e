"""``nestor up``: all layers in one process."""

import sys
from collections.abc import Sequence
from datetime import datetime

import typer

from nestor.cli import doctor
from nestor.cli.client import load_settings
from nestor.cli.page import show
from nestor.cli.render import Screen

_EPILOG = """Examples:

  nestor up

  NESTOR_LOCAL_BASE_URL=http://127.0.0.1:11434/v1 NESTOR_LOCAL_MODEL=qwen3 nestor up"""


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog=_EPILOG)(up)


def up() -> None:
    """Run all layers in one process until SIGTERM or Ctrl-C, then finish what is open; a second one ends at once."""
    settings = load_settings()

    # `nestor --version` does without these.
    from nestor.telemetry import logs  # noqa: PLC0415
    from nestor.web import stack  # noqa: PLC0415

    logs.configure(settings.log_format, sys.stderr)
    screen = Screen()
    # Looked at before the start: it takes a moment, in which nobody would be answered.
    warnings = list(doctor.warnings(settings))

    def ready(addresses: dict[str, str]) -> None:
        for layer, address in addresses.items():
            screen.line(f"{layer:<12} {address}")
        screen.line("ready — stop with Ctrl-C", "ok")
        for warning in warnings:
            screen.line(f"warning: {warning}", "warn", hang=2)

    def page_link(url: str, expires_at: datetime) -> None:
        show(screen, url, expires_at)

    def stopping(running: Sequence[str]) -> None:
        screen.line("stopping: running tasks go on at the next start", "note")
        if running and settings.drain_s:
            named = ", ".join(running[:5]) + (" …" if len(running) > 5 else "")  # noqa: PLR2004 - a line of them
            screen.line(
                f"waiting up to {settings.drain_s:g} s for the current step of {named};"
                " Ctrl-C again ends at once",
                "note",
                hang=2,
            )

    stack.run(
        settings,
        ready=ready,
        stopping=stopping,
        # The link signs in whoever reads it: no file and no pipe gets one.
        page_link=page_link if screen.terminal else None,
    )
