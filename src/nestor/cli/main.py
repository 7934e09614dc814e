"""The entry point: commands by noun, and the one table from errors to exit codes.

``nestor --version`` must stay cheap, so command modules import what they need where
they need it: no HTTP server, no HTTP client, no settings before a command runs.
"""

import os
import sys
from typing import Annotated

import typer

import nestor
from nestor.cli import (
    agents,
    ask,
    bench,
    demo,
    doctor,
    hook,
    keys,
    knowledge,
    logs,
    mcp,
    merge,
    models,
    page,
    spend,
    stack,
    steering,
    tasks,
)
from nestor.cli.inert import inert
from nestor.errors import (
    BudgetExceeded,
    InvalidInput,
    Misconfigured,
    NestorError,
    RateLimited,
    Unauthorized,
    Unavailable,
)

EXIT_CODES: dict[type[NestorError], int] = {
    NestorError: 1,  # the thing failed
    InvalidInput: 2,  # usage
    Misconfigured: 2,
    Unavailable: 3,  # unreachable
    Unauthorized: 4,  # refused
    BudgetExceeded: 4,
    RateLimited: 4,
}
"""Error → exit code; the nearest class in the error's ancestry counts.

Beside these: 0 done, 1 a task that is not verified, 130 interrupted.
"""

app = typer.Typer(
    name="nestor",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 the thing failed (or is not verified), 2 usage,"
    " 3 unreachable, 4 refused, 130 interrupted.",
)
for module in (stack, page, tasks, logs, merge, steering, ask, spend, mcp):
    module.add_to(app)
app.add_typer(knowledge.app)
app.add_typer(models.app)
app.add_typer(agents.app)
app.add_typer(keys.app)
app.add_typer(bench.app)
app.add_typer(hook.app)
for module in (doctor, demo):
    module.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nestor {nestor.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Run coding agents, and believe only what was verified."""


def exit_code(error: NestorError) -> int:
    """Return the exit code of ``error``: that of its nearest class in the table."""
    return next(EXIT_CODES[c] for c in type(error).__mro__ if c in EXIT_CODES)


def main() -> None:
    """Run the command line of this process; always ends in ``SystemExit``."""
    try:
        app()
    except NestorError as error:
        _say(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (``head``, ``less``) has seen enough. Python would complain
        # again while it flushes stdout at exit, so give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # What a command did not explain itself: a full disk behind stdout, a file.
        typer.echo(f"error: {error.strerror or error}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _say(error: NestorError) -> None:
    message = inert(str(error), multiline=True)
    typer.echo(f"error: {message}", err=True)
    for field in getattr(error, "errors", ()):
        line = f"{inert(field.field)}: {inert(field.message)}"
        if line not in message:
            typer.echo(f"  {line}", err=True)
