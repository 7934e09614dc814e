"""What checks and judges said of a task, run by run, for people."""

from collections.abc import Mapping
from typing import Any

from nestor.cli.inert import one_line
from nestor.cli.render import Screen, seconds


def show_verdicts(screen: Screen, recorded: Mapping[str, Any]) -> None:
    """Print every verdict: on the base, then of each iteration, with all runs of a check.

    ``recorded``: the reply of ``/tasks/{id}/iterations``. What a judge said stands apart.
    """
    if base := recorded.get("base"):
        screen.line("  checks on the base")
        for verdict in base:
            _verdict(screen, verdict)
    for iteration in recorded.get("iterations") or []:
        said = [
            *(iteration.get("verdicts") or []),
            *(iteration.get("judgements") or []),
        ]
        if not said:
            continue
        screen.line(f"  iteration {iteration.get('n')}")
        for verdict in iteration.get("verdicts") or []:
            _verdict(screen, verdict)
        for judgement in iteration.get("judgements") or []:
            _judgement(screen, judgement, iteration.get("judge_model"))


def _verdict(screen: Screen, verdict: Mapping[str, Any]) -> None:
    passed = bool(verdict.get("passed"))
    tests = verdict.get("tests")
    seen = "by its exit code alone" if tests is None else f"{tests} tests"
    flaky = ", flaky" if verdict.get("flaky") else ""
    screen.line(
        f"    {one_line(verdict.get('check'))}: {_word(passed)}{flaky}"
        f" (exit {verdict.get('exit_code')}, {seconds(verdict.get('duration_s'))},"
        f" {seen})",
        "warn" if flaky else "passed" if passed else "failed",
    )
    if verdict.get("note"):
        screen.line(f"      {one_line(verdict['note'], 300)}", "note")
    for number, run in enumerate(verdict.get("each_run") or [], 1):
        screen.line(
            f"      run {number}: {_word(bool(run.get('passed')))}"
            f" (exit {run.get('exit_code')}, {seconds(run.get('duration_s'))})",
            "note",
        )


def _judgement(screen: Screen, judgement: Mapping[str, Any], model: object) -> None:
    met = judgement.get("met")
    word = "not judged" if met is None else "met" if met else "not met"
    who = f"judge {one_line(model)}" if model else "judge"
    screen.line(f"    {who}: {word}: {one_line(judgement.get('criterion'), 200)}")
    if judgement.get("why"):
        screen.line(f"      {one_line(judgement['why'], 300)}", "note")
    for quote in judgement.get("evidence") or []:
        text = one_line(quote.get("text"), 160)
        screen.line(f"      {one_line(quote.get('path'))}: “{text}”", "note")


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"
