"""``nestor ask``, ``route`` and ``feedback``: a question, where it went, how it turned out."""

from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer

from nestor.cli.client import Stack
from nestor.cli.render import UNKNOWN, Screen, print_json, usd
from nestor.errors import InvalidInput, NotFound, Unavailable

_MODES = ("auto", "local", "remote")
_OUTCOMES = ("success", "partial", "failure")
_EPILOG = """Examples:

  nestor ask "how does our deploy work?"

  nestor ask "what is a guard-only task?" --mode local --json"""
_Mode = Annotated[
    str, typer.Option(help="auto, local or remote: which model is asked.")
]
_MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest answer, in tokens.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog=_EPILOG)(ask)
    app.command(
        epilog="""Examples:

  nestor route "how does our deploy work?"

  nestor route "why?" --mode local --json"""
    )(route)
    app.command(
        epilog="""Examples:

  nestor feedback ID success

  nestor feedback ID --score -0.5"""
    )(feedback)


def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    mode: _Mode = "auto",
    max_tokens: _MaxTokens = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Show the answer as it comes.",
            show_default="on a terminal",
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Ask a question; the knowledge base supplies context, and sources are named."""
    _check_mode(mode)
    screen, stack = Screen(), Stack.find()
    wanted = screen.terminal if stream is None else stream
    if wanted and not as_json and _has_models(stack):
        show_stream(screen, stack, question, mode=mode, max_tokens=max_tokens)
        return
    reply = _routed(stack, screen, question, mode, max_tokens, waiting=not as_json)
    if as_json:
        print_json(reply)
        return
    show_answer(screen, reply)
    _show_interaction(screen, reply)


def route(
    query: Annotated[str, typer.Argument(help="What is asked.")],
    mode: _Mode = "auto",
    max_tokens: _MaxTokens = None,
    as_json: _Json = False,
) -> None:
    """Ask, and show where the query went, why, and what that cost."""
    _check_mode(mode)
    screen, stack = Screen(), Stack.find()
    reply = _routed(stack, screen, query, mode, max_tokens, waiting=not as_json)
    if as_json:
        print_json(reply)
        return
    show_route(screen, reply)


def feedback(
    interaction: Annotated[
        str, typer.Argument(help="The id that an answer came with.")
    ],
    outcome: Annotated[
        str | None, typer.Argument(help="success, partial or failure.")
    ] = None,
    score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="From -1 (bad) to 1 (good).")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Say how an answer turned out; the newest word of a key counts."""
    if outcome is not None and outcome not in _OUTCOMES:
        wrong = f"{outcome!r} is not one of: {', '.join(_OUTCOMES)}"
        raise InvalidInput.at("OUTCOME", wrong)
    if outcome is None and score is None:
        raise InvalidInput.at("OUTCOME", f"one of {', '.join(_OUTCOMES)}, or --score")
    body = {
        "interaction_id": interaction,
        "outcome": outcome,
        "user_feedback": score,
        "source": "nestor feedback",
    }
    kept = Stack.find().call("coordinator", "POST", "/feedback", body=body)
    if as_json:
        print_json(kept)
        return
    given = [str(one) for one in (outcome, score) if one is not None]
    Screen().line(f"kept: {', '.join(given)}, said by the key {kept.get('source')}")


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise InvalidInput.at("--mode", f"{mode!r} is not one of: {', '.join(_MODES)}")


def _routed(
    stack: Stack,
    screen: Screen,
    query: str,
    mode: str,
    max_tokens: int | None,
    *,
    waiting: bool,
) -> dict[str, Any]:
    body: dict[str, Any] = {"query": query, "mode": mode}
    if max_tokens is not None:
        body |= {"max_tokens": max_tokens}

    def call() -> dict[str, Any]:
        found: dict[str, Any] = stack.call(
            "coordinator", "POST", "/route", body=body, timeout_s=600
        )
        return found

    if not waiting:
        return call()
    with screen.waiting("asking"):
        return call()


def _has_models(stack: Stack) -> bool:
    """Tell whether an answer can be streamed; one that quotes comes whole."""
    try:
        return bool(stack.call("coordinator", "GET", "/v1/models").get("data"))
    except NotFound:
        return False


def show_stream(
    screen: Screen, stack: Stack, question: str, *, mode: str, max_tokens: int | None
) -> None:
    """Ask with context from the knowledge base, and print the answer as it comes."""
    given = {"query": question, "agent_type": "nestor ask"}
    found = stack.call("coordinator", "POST", "/augment_query", body=given)
    body: dict[str, Any] = {
        "model": mode,
        "messages": [{"role": "user", "content": found["augmented_prompt"]}],
        "stream": True,
    }
    if max_tokens is not None:
        body |= {"max_tokens": max_tokens}
    with stack.answer("/v1/chat/completions", body) as (headers, chunks):
        try:
            for text in _texts(chunks):
                screen.piece(text)
        finally:
            screen.line()
    reply = {
        "response": "",
        "sources": found["sources"],
        "degraded": found["degraded"],
        "route": headers.get("x-nestor-route"),
        "model": headers.get("x-nestor-model"),
        "confidence": headers.get("x-nestor-confidence"),
        "fallback_from": headers.get("x-nestor-fallback-from"),
        "replayed": headers.get("x-nestor-replayed") == "true",
        "interaction_id": headers.get("x-nestor-interaction-id"),
    }
    show_answer(screen, reply | _settled(stack, reply["interaction_id"]))
    _show_interaction(screen, reply)


def _texts(chunks: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield the words of an answer; a line end in two pieces comes whole."""
    held = ""
    for chunk in chunks:
        for choice in chunk.get("choices") or []:
            text = held + ((choice.get("delta") or {}).get("content") or "")
            held = "\r" if text.endswith("\r") else ""
            yield text.removesuffix("\r")
    yield held


def _settled(stack: Stack, interaction_id: str | None) -> dict[str, Any]:
    """Return reason and cost of a call that has ended: its headers came before that."""
    if interaction_id is None:
        return {}
    path = f"/interactions/{quote(interaction_id, safe='')}"
    try:
        call = stack.call("coordinator", "GET", path).get("call") or {}
    except (NotFound, Unavailable):
        return {}  # the answer is there; what it cost is unknown
    return {"reason": call.get("reason"), "cost_usd": call.get("cost_usd")}


def show_answer(screen: Screen, reply: dict[str, Any]) -> None:
    """Print an answer, then where it came from and what it cost."""
    if reply["response"]:
        screen.line(str(reply["response"]).rstrip())
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
        screen.line(f"route: {_route(reply)}, model: {_model(reply)}")
        screen.line(f"why: {reply.get('reason') or UNKNOWN}", "note")
    screen.line(f"cost: {usd(reply.get('cost_usd'))}", "note")
    for part in reply.get("degraded") or []:
        screen.line(f"degraded: {part}", "warn")


def show_route(screen: Screen, reply: dict[str, Any]) -> None:
    """Print where a query went, then the answer."""
    ids = reply.get("context_ids") or []
    latency = reply.get("latency_ms")
    rows = (
        ("route", _route(reply)),
        ("confidence", _confidence(reply)),
        ("model", _model(reply)),
        ("why", reply.get("reason") or UNKNOWN),
        ("context", f"{len(ids)} pieces"),
        ("cost", usd(reply.get("cost_usd"))),
        ("took", UNKNOWN if latency is None else f"{latency:.0f} ms"),
        ("interaction", reply.get("interaction_id") or UNKNOWN),
    )
    for name, value in rows:
        screen.line(f"{name}: {value}")
    for source in reply.get("sources") or []:
        screen.line(f"source: {source}", "note")
    for part in reply.get("degraded") or []:
        screen.line(f"degraded: {part}", "warn")
    screen.line()
    screen.line(str(reply.get("response") or "").rstrip())


def _show_interaction(screen: Screen, reply: dict[str, Any]) -> None:
    if reply.get("interaction_id"):
        screen.line(f"confidence: {_confidence(reply)}", "note")
        screen.line(f"interaction: {reply['interaction_id']}", "note")


def _route(reply: dict[str, Any]) -> str:
    fallback = reply.get("fallback_from")
    after = f", after {fallback} failed" if fallback else ""
    return f"{reply.get('route') or UNKNOWN}{after}"


def _model(reply: dict[str, Any]) -> str:
    replayed = " (replayed model)" if reply.get("replayed") else ""
    return f"{reply.get('model') or 'none'}{replayed}"


def _confidence(reply: dict[str, Any]) -> str:
    found = reply.get("confidence")
    return "no evidence" if found is None else str(found)
