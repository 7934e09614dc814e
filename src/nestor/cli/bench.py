"""``nestor bench``: measurements that anybody can repeat."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestor.cli.client import load_settings
from nestor.cli.render import Screen, print_json
from nestor.errors import InvalidInput, Misconfigured

if TYPE_CHECKING:
    from nestor.settings import Settings
    from nestor.wiring.evaluation import Report, Say
    from nestor.wiring.loop_cost import Cost

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    help="Measure on data of your own.",
    epilog="Example:\n\n  nestor bench retrieval --data scifact",
)
_STEPS = {
    "documents": "reading and storing documents",
    "vectors": "making vectors",
    "queries": "asking",
}
_LEGS = {"bm25": "BM25", "dense": "vectors", "fused": "both, as AIDB answers"}


@app.callback()
def _nouns() -> None:
    """One command a layer."""


@app.command(
    epilog="""Examples:

  nestor bench retrieval --data scifact

  nestor bench retrieval --data nfcorpus --embeddings minilm --json"""
)
def retrieval(
    data: Annotated[
        Path,
        typer.Option(
            help="A folder as BEIR has them: corpus.jsonl, queries.jsonl and"
            " qrels/test.tsv, each perhaps gzipped."
        ),
    ],
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="minilm, or a folder with an ONNX model; else what the settings name."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask only the first so many queries.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how well AIDB finds what people judged relevant: nDCG@10 and recall@100.

    The documents are remembered in a scratch folder, which is removed afterwards; the
    running stack and its data are not touched.
    """
    import asyncio  # noqa: PLC0415 - `nestor --version` does without

    from nestor.telemetry.logs import configure  # noqa: PLC0415 - as below

    settings = load_settings()
    configure(settings.log_format, sys.stderr, level=logging.ERROR)
    with _progress() as say:
        report = asyncio.run(_measured(settings, data, embeddings, limit, say))
    if as_json:
        print_json(_plain(report))
    else:
        _show(report)


@app.command(
    epilog="Examples:\n\n  nestor bench ralph\n\n  nestor bench ralph --iterations 50 --json"
)
def ralph(
    iterations: Annotated[
        int, typer.Option(min=1, max=100, help="Turns of the loop to take.")
    ] = 30,
    starts: Annotated[
        int, typer.Option(min=1, max=100, help="Tasks whose start is timed.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what an iteration of the loop costs besides its agent, and how soon one starts.

    It runs in a stack of its own in a scratch folder; the running one is not touched.
    """
    # Heavy libraries: for this command only.
    import asyncio  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    from nestor.telemetry.logs import configure  # noqa: PLC0415
    from nestor.web.serve import event_loop  # noqa: PLC0415
    from nestor.wiring.loop_cost import measure  # noqa: PLC0415

    configure("console", sys.stderr, level=logging.ERROR)
    screen = Screen()
    with (
        tempfile.TemporaryDirectory(prefix="nestor-bench-") as folder,
        screen.waiting("starting") as going_on,
    ):
        home = Path(folder) / "home"
        say = (lambda _: None) if as_json else going_on
        # On the event loop of `nestor up`: what a child process costs depends on it.
        with asyncio.Runner(loop_factory=event_loop) as runner:
            cost = runner.run(
                measure(home, iterations=iterations, starts=starts, say=say)
            )
    if as_json:
        print_json(_plain(cost))
        return
    screen.table(
        ("what", "CPU, ms an iteration"),
        [
            ("the engine: loop, steps, SQL", f"{cost.engine_cpu_ms:.1f}"),
            ("git, guardian, sandbox", f"{cost.children_cpu_ms:.1f}"),
            ("  of these, the sandbox", f"{cost.sandbox_cpu_ms:.1f}"),
        ],
    )
    waits = sorted(cost.starts_ms)
    screen.line(
        f"submit to start: {waits[len(waits) // 2]:.0f} ms"
        f" ({waits[0]:.0f} to {waits[-1]:.0f}); an iteration took {cost.wall_ms:.0f} ms;"
        f" idle: {cost.idle_cpu_share:.1%} of a core",
        "note",
    )


async def _measured(
    settings: "Settings",
    data: Path,
    embeddings: str | None,
    limit: int | None,
    say: "Say",
) -> "Report":
    # Heavy libraries: for this command only.
    import asyncio  # noqa: PLC0415

    from nestor.backends.files.judged_collection import (  # noqa: PLC0415
        JudgedCollection,
    )
    from nestor.wiring.evaluation import embedder_for, measure  # noqa: PLC0415

    collection = await asyncio.to_thread(JudgedCollection.read, data)
    try:
        async with embedder_for(settings, embeddings) as embedder:
            return await measure(collection, embedder, limit=limit, say=say)
    except Misconfigured as error:
        if embeddings is None:
            raise
        why = str(error).removeprefix("NESTOR_EMBEDDINGS_MODEL: ")
        raise InvalidInput.at("--embeddings", why) from error


def _plain(report: "Report | Cost") -> dict[str, Any]:
    import msgspec  # noqa: PLC0415 - as above

    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def _show(report: "Report") -> None:
    screen = Screen()
    rows = []
    for name, what in _LEGS.items():
        quality = report.legs[name]
        rows.append(
            (what, None, None)
            if quality is None
            else (what, f"{quality.ndcg_at_10:.4f}", f"{quality.recall_at_100:.4f}")
        )
    screen.heading(report.collection)
    screen.table(("searched by", "nDCG@10", "recall@100"), rows)
    if report.missing is not None:
        screen.line(report.missing, "warn")
    counted = f"{report.queries} queries, {report.documents} documents, {report.chunks} chunks"
    took = ", ".join(f"{name} {value:.1f} s" for name, value in report.seconds.items())
    screen.line(counted, "note")
    screen.line(f"vectors by {report.embedder or 'nobody'}; {took}", "note")
    if report.documents_left_out:
        left_out = f"{report.documents_left_out} documents were refused"
        screen.line(f"{left_out}: {report.refused}", "warn")
    if report.chunks_without_vector:
        screen.line(f"{report.chunks_without_vector} chunks got no vector", "warn")
    if report.queries_left_out:
        left_out = f"{report.queries_left_out} judged queries"
        screen.line(f"{left_out} are not in the file of queries", "warn")


@contextmanager
def _progress() -> Iterator["Say"]:
    """Show a bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _step, _done, _of: None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("opening", total=None)

        def say(step: str, done: int, of: int | None) -> None:
            bars.update(task, description=_STEPS[step], completed=done, total=of)

        yield say
