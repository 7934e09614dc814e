"""``nestor ask``: one question, answered with its sources."""

from typing import Annotated, Any

import typer

from nestor.cli.client import Stack
from nestor.cli.render import UNKNOWN, Screen, print_json, usd
from nestor.errors import InvalidInput

_MODES = ("auto", "local", "remote")
_EPILOG = """Examples:

  nestor ask "how does our deploy work?"

  nestor ask "what is a guard-only task?" --mode local --json"""


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog=_EPILOG)(ask)


def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    mode: Annotated[
        str, typer.Option(help="auto, local or remote: which model is asked.")
    ] = "auto",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a question; the knowledge base supplies context, and sources are named."""
    if mode not in _MODES:
        raise InvalidInput.at("--mode", f"{mode!r} is not one of: {', '.join(_MODES)}")
    screen = Screen()
    body: dict[str, Any] = {"query": question, "mode": mode}
    if max_tokens is not None:
        body |= {"max_tokens": max_tokens}
    stack = Stack.find()
    if as_json:
        print_json(
            stack.call("coordinator", "POST", "/route", body=body, timeout_s=600)
        )
        return
    with screen.waiting("asking"):
        reply = stack.call("coordinator", "POST", "/route", body=body, timeout_s=600)
    show_answer(screen, reply)


def show_answer(screen: Screen, reply: dict[str, Any]) -> None:
    """Print an answer, then where it came from and what it cost."""
    screen.line(str(reply.get("response", "")).rstrip())
    screen.line()
    sources, model = reply.get("sources") or [], reply.get("model")
    quoted = reply.get("route") == "extract" or not model
    # What quotes the knowledge base ends with its sources already.
    said = quoted and all(str(source) in reply["response"] for source in sources)
    if not sources:
        screen.line("sources: none found in the knowledge base", "note")
    elif not said:
        screen.line("sources:", "heading")
        for source in sources:
            screen.line(f"  {source}")
    if quoted:
        what = "quoted from the knowledge base" if sources else "nothing to quote"
        screen.line(f"no model configured: {what}", "warn")
    else:
        replayed = " (replayed model)" if reply.get("replayed") else ""
        fallback = reply.get("fallback_from")
        after = f", after {fallback} failed" if fallback else ""
        screen.line(f"route: {reply.get('route')}{after}, model: {model}{replayed}")
        screen.line(f"why: {reply.get('reason') or UNKNOWN}", "note")
    screen.line(f"cost: {usd(reply.get('cost_usd'))}", "note")
    for part in reply.get("degraded") or []:
        screen.line(f"degraded: {part}", "warn")
