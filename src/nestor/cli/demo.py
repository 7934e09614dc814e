"""``nestor demo``: the whole loop once, on a folder that is thrown away."""

import contextlib
import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from nestor.cli import doctor
from nestor.cli.ask import show_answer
from nestor.cli.client import ServerEvent, Stack, task_path
from nestor.cli.inert import one_line
from nestor.cli.knowledge import add_files
from nestor.cli.render import UNKNOWN, Screen, usd
from nestor.cli.watch import follow, show_end
from nestor.errors import Misconfigured

_EPILOG = """Examples:

  nestor demo

  NESTOR_LOCAL_BASE_URL=http://127.0.0.1:11434/v1 NESTOR_LOCAL_MODEL=qwen3 nestor demo"""
_Row = dict[str, Any]
_REPLAYED_S = 150.0
_REAL_S = 1800.0


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog=_EPILOG)(demo)


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the temporary folder for a look.")
    ] = False,
) -> None:
    """Run one real task through all layers; exit 0 only when it is verified.

    Uses the model you configured, or a replayed one. All else is real.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="nestor-demo-"))
    try:
        verified = run(Screen(), folder)
    finally:
        if keep:
            typer.echo(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            typer.echo("the folder of this demo is deleted; with --keep it stays")
    if not verified:
        raise typer.Exit(1)


def run(screen: Screen, folder: Path) -> bool:
    """Run the demo in ``folder``; tell whether its task ended ``verified``."""
    found = doctor.git()
    if found.state == doctor.FAIL:
        raise Misconfigured(f"git: {found.detail}; {found.remedy}")
    # The settings are slow to import, and `nestor --version` does without them.
    from nestor.cli import demo_sample, demo_stack  # noqa: PLC0415

    cassette = demo_sample.data_file("cassette.json")
    values, replayed = demo_stack.model_values(cassette, folder)
    repository, home = folder / "split-bill", folder / "data"
    demo_sample.make_repository(repository)
    screen.heading("1 Start the stack, in a folder of its own")
    if replayed:
        screen.line(
            "  replayed model: its answers were scripted and recorded; all else is real",
            "warn",
        )
    else:
        screen.line(
            f"  models: {values.get('local_model')}, {values.get('remote_model')}"
        )
    with contextlib.ExitStack() as parts:
        with screen.waiting("starting"):
            stack = parts.enter_context(demo_stack.ChildStack(home, values))
        for layer in ("ralph", "aidb", "coordinator"):
            screen.line(f"  {layer:<12} {stack.url(layer)}")
        _teach(screen, stack, demo_sample.texts(folder))
        _ask(screen, stack, demo_sample.QUESTION)
        limit_s = _REPLAYED_S if replayed else _REAL_S
        spec = demo_sample.task(repository, seconds=limit_s)
        task, base = _work(screen, stack, spec)
        events = home / "telemetry" / "unified-events.jsonl"
        _report(screen, stack, task, base, events)
    return task.get("status") == "verified"


def _teach(screen: Screen, stack: Stack, texts: list[Path]) -> None:
    screen.heading("2 Teach it the project's own docs")
    with screen.waiting("adding"):
        done = add_files(stack, texts, project="nestor")
    screen.line(f"  {done['added']} documents added")


def _ask(screen: Screen, stack: Stack, question: str) -> None:
    screen.heading(f"3 Ask: {question}")
    with screen.waiting("asking"):
        reply = stack.call(
            "coordinator", "POST", "/route", body={"query": question}, timeout_s=600
        )
    show_answer(screen, reply)


def _work(screen: Screen, stack: Stack, spec: _Row) -> tuple[_Row, list[_Row]]:
    """Submit and follow; returns the ended task and the verdicts on the base."""
    screen.heading("4 Submit a task on a small repository whose tests fail")
    screen.line(f"  {spec['task']}")
    screen.line(f"  done only when this passes: {' '.join(spec['checks'][0]['run'])}")
    made = stack.call("ralph", "POST", "/submit", body=spec)
    live: list[ServerEvent] = []
    task = follow(stack, screen, str(made["task_id"]), keep=live)
    verdicts = [event.data for event in live if event.kind == "verdict"]
    return task, [verdict for verdict in verdicts if verdict.get("phase") == "base"]


def _report(
    screen: Screen, stack: Stack, task: _Row, base: list[_Row], events_file: Path
) -> None:
    task_id = str(task["task_id"])
    recorded = stack.call("ralph", "GET", task_path(task_id, "/iterations"))
    iterations, made = recorded["iterations"], recorded["model_calls"]
    diff = stack.call("ralph", "GET", task_path(task_id, "/diff"))
    trace_id = str(task.get("trace_id") or "")
    events = read_events(events_file, trace_id)
    screen.heading("5 Each model call")
    screen.table(
        ("at", "iteration", "for", "route", "model", "tokens", "cost"), _calls(made)
    )
    screen.heading("6 The context that was used")
    for source, used in _sources(iterations).items():
        numbers = ", ".join(str(n) for n in used)
        screen.line(f"  {one_line(source)} (iteration {numbers})")
    screen.heading("7 The verdicts")
    screen.table(
        ("iteration", "check", "on", "verdict", "exit", "tests"),
        _verdicts(base, iterations),
    )
    screen.heading("8 The change")
    screen.diff(str(diff))
    screen.heading(f"9 What all layers said, under trace {trace_id}")
    screen.table(
        ("at", "layer", "event", "what"),
        [
            (_clock(e), e.get("source"), e.get("event_type"), _summary(e))
            for e in events
        ],
        empty="no events: that is a fault",
    )
    screen.line()
    show_end(screen, task)


def read_events(file: Path, trace_id: str) -> list[_Row]:
    """Read the telemetry events of one trace, oldest first."""
    found = []
    for line in file.read_text().splitlines():
        event = json.loads(line)
        if event.get("trace_id") == trace_id:
            found.append(event)
    return sorted(found, key=lambda e: str(e.get("timestamp")))


def _calls(made: list[_Row]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for call in made:
        usage = call.get("usage") or {}
        tokens = [usage.get("input_tokens"), usage.get("output_tokens")]
        known = [n for n in tokens if n is not None]
        replayed = " (replayed)" if call.get("replayed") else ""
        purpose = "agent" if call.get("purpose") == "gateway" else "guidance"
        rows.append(
            (
                str(call.get("at", ""))[11:23],
                call.get("iteration"),
                purpose,
                call.get("side"),
                f"{call.get('model')}{replayed}",
                sum(known) if known else UNKNOWN,
                usd(call.get("cost_usd")),
            )
        )
    return rows


def _sources(iterations: list[_Row]) -> dict[str, list[object]]:
    """Return each source with the iterations that it was given to."""
    found: dict[str, list[object]] = {}
    for iteration in iterations:
        for item in iteration.get("context_items") or []:
            found.setdefault(str(item.get("source")), []).append(iteration.get("n"))
    return found


def _verdicts(base: list[_Row], iterations: list[_Row]) -> list[tuple[object, ...]]:
    found = [(None, v) for v in base]
    found += [(i.get("n"), v) for i in iterations for v in i.get("verdicts") or []]
    return [
        (
            n,
            v.get("check"),
            "base" if v.get("phase") == "base" else "fresh checkout",
            "passed" if v.get("passed") else "failed",
            v.get("exit_code"),
            v.get("tests"),
        )
        for n, v in found
    ]


_TOLD = {
    "task_started": ("backend",),
    "task_iteration": ("iteration", "outcome"),
    "exit_blocked": ("iteration", "failing"),
    "task_completed": ("status", "reason"),
    "query_routed": ("iteration", "route", "model", "reason"),
    "model_called": ("iteration", "purpose", "side", "model", "cost_usd"),
    "context_retrieved": ("results_count", "degraded"),
}


def _summary(event: _Row) -> str:
    data = event.get("data") or {}
    names = _TOLD.get(str(event.get("event_type")), ())
    said = [f"{n}={data[n]}" for n in names if data.get(n) not in (None, [])]
    return one_line(" ".join(said), 110)


def _clock(event: _Row) -> str:
    """Return the time of day of an event, to the millisecond."""
    return str(event.get("timestamp", ""))[11:23]


def _interrupt(*_: object) -> NoReturn:
    """SIGTERM ends like Ctrl-C: through every ``finally``."""
    raise KeyboardInterrupt
