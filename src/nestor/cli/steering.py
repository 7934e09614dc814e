"""``nestor cancel|resume|retry|rollback|fork|approve|grant|audit``: what people decide."""

from typing import Annotated, Any

import typer

from nestor.cli.asked import show_question, show_questions
from nestor.cli.client import Stack, task_path
from nestor.cli.inert import inert, one_line
from nestor.cli.render import Screen, print_json
from nestor.cli.standing import ended, standing
from nestor.cli.tasks import money
from nestor.errors import InvalidInput

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_TASK = Annotated[str, typer.Argument(help="Task id, as `nestor submit` printed it.")]
_NOTE = Annotated[str | None, typer.Option(help="Kept in the audit log.")]
_MORE = Annotated[
    int | None,
    typer.Option(min=1, help="So many more; left out: as the task file says."),
]
_USD = Annotated[
    str | None, typer.Option(help="New limit in USD for all of it; none: no limit.")
]
_TOKENS = Annotated[
    str | None, typer.Option(help="New limit in tokens for all of it; none: no limit.")
]
_SECONDS = Annotated[
    str | None, typer.Option(help="New limit in seconds for all of it; none: no limit.")
]
_ITERATION = Annotated[
    int, typer.Argument(min=0, help="Number of an iteration; 0 is the base.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog="Example:\n\n  nestor cancel TASK")(cancel)
    app.command(
        epilog="Examples:\n\n  nestor resume TASK\n\n"
        "  nestor resume TASK --iterations 5 --budget-usd 2.50"
    )(resume)
    app.command(
        epilog="Examples:\n\n  nestor retry TASK\n\n  nestor retry TASK --iterations 3"
    )(retry)
    app.command(
        epilog="Examples:\n\n  nestor rollback TASK 2\n\n  nestor rollback TASK 0"
    )(rollback)
    app.command(
        epilog="Examples:\n\n  nestor fork TASK 2\n\n"
        '  nestor fork TASK 0 --id other-way --prompt "do it with a table"'
    )(fork)
    app.command(
        epilog="Examples:\n\n  nestor approve TASK\n\n"
        '  nestor approve TASK --reject --note "not here"\n\n'
        "  nestor approve TASK --action host-3f9a0c11d2b4"
    )(approve)
    app.command(
        epilog="Examples:\n\n  nestor grant TASK --host pypi.org:443\n\n"
        "  nestor grant TASK --path /data\n\n  nestor grant TASK --network full"
    )(grant)
    app.command(
        epilog="Examples:\n\n  nestor audit\n\n  nestor audit --after 120 --json\n\n"
        "  nestor audit --verify"
    )(audit)


def cancel(task_id: _TASK, as_json: _JSON = False) -> None:
    """Stop a task; it counts as cancelled once its processes are gone."""
    reply = _post(task_id, "cancel", None) or {}
    if as_json:
        print_json(reply)
        return
    now = standing({"cancel_requested": True, "status": "running"} | reply)
    wait = "" if now == "cancelled" else f" — see its end with: nestor watch {task_id}"
    typer.echo(inert(f"task {task_id}: {now}{wait}"))


def resume(
    task_id: _TASK,
    iterations: _MORE = None,
    budget_usd: _USD = None,
    budget_tokens: _TOKENS = None,
    budget_seconds: _SECONDS = None,
    note: _NOTE = None,
    as_json: _JSON = False,
) -> None:
    """Let an ended task go on with its next iteration, from where its work stood."""
    budget = _budget(budget_usd, budget_tokens, budget_seconds)
    body = _given(iterations=iterations, budget=budget, note=note)
    _say(task_id, _post(task_id, "resume", body), as_json=as_json)


def retry(
    task_id: _TASK,
    iterations: _MORE = None,
    budget_usd: _USD = None,
    budget_tokens: _TOKENS = None,
    budget_seconds: _SECONDS = None,
    note: _NOTE = None,
    as_json: _JSON = False,
) -> None:
    """Let an ended task begin again from its base; what it did before stays recorded."""
    budget = _budget(budget_usd, budget_tokens, budget_seconds)
    body = _given(iterations=iterations, budget=budget, note=note)
    _say(task_id, _post(task_id, "retry", body), as_json=as_json)


def rollback(task_id: _TASK, iteration: _ITERATION, as_json: _JSON = False) -> None:
    """Put the work and the branch of an ended or waiting task back to an iteration."""
    reply = _post(task_id, "rollback", {"iteration": iteration})
    _say(task_id, reply, as_json=as_json)


def fork(
    task_id: _TASK,
    iteration: _ITERATION,
    new_id: Annotated[
        str | None, typer.Option("--id", help="Own id; the same again is safe.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to do instead; left out: the same.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Make a new task that starts from an iteration of this one, under the same checks."""
    body = _given(iteration=iteration, task_id=new_id, prompt=prompt)
    reply = _post(task_id, "fork", body)
    _say(str(reply.get("task_id")), reply, as_json=as_json)


def approve(
    task_id: _TASK,
    reject: Annotated[bool, typer.Option("--reject", help="Say no.")] = False,
    action: Annotated[
        str | None, typer.Option(help="Which question, where several are open.")
    ] = None,
    note: _NOTE = None,
    as_json: _JSON = False,
) -> None:
    """Answer what a task asks a person: let it, or refuse it."""
    if not as_json:
        action = _shown(task_id, action)
    body: dict[str, Any] = {"approved": not reject, "note": note}
    if action is not None:
        body["action"] = action
    done = "refused" if reject else "approved"
    _say(task_id, _post(task_id, "approve", body), as_json=as_json, done=done)


def grant(
    task_id: _TASK,
    host: Annotated[
        str | None, typer.Option(help="Let it reach name:port, e.g. pypi.org:443.")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help="Show it a host path, read-only.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Another network mode: none, coordinator, full.")
    ] = None,
    note: _NOTE = None,
    as_json: _JSON = False,
) -> None:
    """Allow a task's sandbox more than its file says, from its next iteration on."""
    body = _given(host=host, path=path, network=network, note=note)
    done = f"granted {one_line(host or path or network or '', 200)}"
    _say(task_id, _post(task_id, "grant", body), as_json=as_json, done=done)


def audit(
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute every digest; exit 1 if wrong.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="Only entries after this one.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 200,
    as_json: _JSON = False,
) -> None:
    """Show who decided what about which task, oldest first."""
    stack, screen = Stack.find(), Screen()
    if verify:
        state = stack.call("ralph", "GET", "/audit/verify")
        if as_json:
            print_json(state)
        elif state["broken_at"] is None:
            screen.line(f"{state['entries']} entries, each as it was written")
            screen.line(f"  newest digest: {state['head']}", "note")
        else:
            screen.line(f"broken at entry {state['broken_at']}", "failed")
        if state["broken_at"] is not None:
            raise typer.Exit(1)
        return
    query = {"after": after, "limit": limit}
    found = stack.call("ralph", "GET", "/audit", query=query)
    if as_json:
        print_json(found)
        return
    screen.table(
        ("entry", "at", "who", "what", "task", "more"),
        [
            (
                one["seq"],
                one["at"],
                one["actor"],
                one["action"],
                one["task_id"],
                one_line(_told(one["data"]), 60),
            )
            for one in found["entries"]
        ],
        empty=f"nothing after entry {after}"
        if after
        else "nobody has decided anything yet",
    )
    if found.get("next") is not None:
        screen.line(f"more with: nestor audit --after {found['next']}", "note")


def _shown(task_id: str, action: str | None) -> str | None:
    """Print what is answered before it is; returns its id, so that no other one is."""
    task = Stack.find().call("ralph", "GET", task_path(task_id))
    asked = [
        one for one in task.get("questions") or [] if action in {None, one.get("id")}
    ]
    if len(asked) > 1:
        show_questions(Screen(), task)
        raise InvalidInput.at(
            "--action", f"task {task_id} asks several things; name one, as shown above"
        )
    for one in asked:
        show_question(Screen(), task, one)
    # Of none the stack says so.
    return asked[0].get("id") if asked else action


def _post(task_id: str, what: str, body: dict[str, Any] | None) -> dict[str, Any]:
    reply: dict[str, Any] = Stack.find().call(
        "ralph", "POST", task_path(task_id, f"/{what}"), body=body
    )
    return reply


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _say(task_id: str, reply: dict[str, Any], *, as_json: bool, done: str = "") -> None:
    """Print where a task stands now; ``done``: what was decided of it in its past form."""
    if as_json:
        print_json(reply)
        return
    screen = Screen()
    now = standing(reply)
    screen.line(f"task {task_id}: {f'{done}; it is {now}' if done else now}")
    if done and ended(reply):
        # Why it ended long before would read as the answer to this.
        if done != "refused":
            go_on = f"nestor resume {task_id}"
            screen.line(f"  it has ended: let it go on with that by: {go_on}", "note")
    elif reply.get("detail"):
        screen.line(f"  {one_line(str(reply['detail']), 400)}", "note")
    elif done.startswith("granted") and now == "running":
        screen.line("  it holds from its next iteration on", "note")
    show_questions(screen, {"task_id": task_id, **reply})


def _budget(
    usd: str | None, tokens: str | None, seconds: str | None
) -> dict[str, Any] | None:
    """Return the limits that were given; null: no limit. Raises ``InvalidInput``."""
    given: dict[str, Any] = {}
    for name, text in (("usd", usd), ("tokens", tokens), ("seconds", seconds)):
        if text is None:
            continue
        if text == "none":
            given[name] = None
        elif name == "usd":
            given[name] = money(text)
        else:
            given[name] = _number(name, text)
    return given or None


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if name == "tokens" else float(text)
    except ValueError:
        at = f"--budget-{name}"
        raise InvalidInput.at(at, f"{text!r} is no number; or say none") from None


def _told(data: dict[str, Any]) -> str:
    shown = [f"{name}={value}" for name, value in data.items() if value is not None]
    return " ".join(shown)
