"""What the end of a check means: passed, failed, or not to be believed."""

import re
from collections.abc import Sequence
from pathlib import Path

from nestor.errors import WorkspaceError
from nestor.model.task import Check, Verdict
from nestor.ports.sandbox import SandboxResult
from nestor.ralph.reports import (
    TestReport,
    asks_for_its_own,
    missing,
    runner_of,
    runs_of,
)
from nestor.ralph.shown import newest

_TAIL_CHARS = 8_000
_NOT_FOUND = (126, 127)
_OWN_REPORT = (
    "its --junitxml keeps from Nestor the report that tells whether the tests ran."
    " Leave that option out of the check"
)
_NO_RUNNER = re.compile(r"No module named '?(?:pytest|unittest)'?\s*$", re.MULTILINE)
_ABSENT = re.compile(
    r"can't open file '([^']*)': \[Errno 2\]"
    r"|^ERROR: file or directory not found: (\S+)"
    r"|Cannot find module '(/workspace/[^']*)'"
    r"|No module named '(\w+)'",
    re.MULTILINE,
)


def verdict_of(
    check: Check,
    phase: str,
    result: SandboxResult,
    *,
    report: TestReport | None,
    touched: Sequence[str],
    before: TestReport | None,
    by_name: bool,
) -> Verdict:
    """Turn the end of a check into a verdict; the exit code is needed, not enough."""
    note = ""
    if result.timed_out:
        note = f"still running after {check.timeout_s:g} s"
    elif result.limit is not None:
        note = f"killed: it used more than its {result.limit} limit"
    elif result.exit_code is None:
        note = f"killed by signal {result.signal}"
    elif result.exit_code == check.expect_exit:
        if touched:
            named = ", ".join(touched[:5])
            note = f"protected files were changed while it ran: {named}"
        else:
            note = _incomplete(check, report, before, by_name=by_name)
    passed = result.exit_code == check.expect_exit and not note
    return Verdict(
        check=check.name,
        phase=phase,
        passed=passed,
        exit_code=result.exit_code,
        duration_s=round(result.duration_s, 3),
        tests=None if report is None else report.ran,
        output_tail=newest(result.output, _TAIL_CHARS),
        telling=report is None or report.tells,
        note=note,
    )


def refuse_if_unstartable(
    check: Check, result: SandboxResult, report: TestReport | None
) -> None:
    """Raise ``WorkspaceError`` for a check that has nothing to run, or can never pass."""
    if report is None and asks_for_its_own(check.run):
        raise WorkspaceError(f"check {check.name!r}: {_OWN_REPORT}")
    if result.exit_code == check.expect_exit:
        if report is None and runner_of(check.run) == "pytest":
            message = (
                f"check {check.name!r} ends well on the base, but no pytest left a report"
                " there: it ended early, or the line only names it. Correct the check, or"
                " put the line in a script on the base"
            )
            raise WorkspaceError(message)
        return
    if result.exit_code in _NOT_FOUND or _is_absent(check, result.output):
        said = newest(result.output, _TAIL_CHARS).strip()
        last = said.splitlines()[-1:] or ["it printed nothing"]
        message = (
            f"check {check.name!r} cannot start on the base (exit {result.exit_code}): "
            f"{last[0][:300]}. Install what it needs in setup[], or correct it"
        )
        raise WorkspaceError(message)


def _incomplete(
    check: Check,
    report: TestReport | None,
    before: TestReport | None,
    *,
    by_name: bool,
) -> str:
    """Say why a report does not back the exit code; "" when it does."""
    runner = runner_of(check.run)
    if report is None:
        if asks_for_its_own(check.run):
            return _OWN_REPORT
        if runner is None and before is None:
            return ""
        return f"{runner or 'the test runner'} ended without a complete report"
    most = max(runs_of(check.run), 1 if before is None else before.parts)
    if report.parts > most:  # one of them was printed by what is tested
        return f"{report.parts} summaries were printed by {most} run(s) of {runner}"
    if report.ran < 1:
        return "no test was run"
    return "" if before is None else _fewer(report, before, by_name=by_name)


def _fewer(report: TestReport, before: TestReport, *, by_name: bool) -> str:
    if report.ran < before.ran:
        return f"{report.ran} tests were run, {before.ran} on the base"
    if ended := set(before.unread) & {*report.silent, *report.unread}:
        return f"{len(ended)} of the files of the base ended without a test"
    if report.ids is None or before.ids is None:
        if report.skipped > before.skipped:
            return f"{report.skipped} tests were skipped, {before.skipped} on the base"
    elif by_name and (gone := missing(before.needs, report)):
        return f"{gone} of the tests of the base did not run"
    return ""


def _is_absent(check: Check, output: str) -> bool:
    """Tell whether what the check itself names is not there.

    A test that starts a program which is still to be written fails with the same words;
    that is a failing test, and a good one.
    """
    output = output[-_TAIL_CHARS:]
    if runner_of(check.run) and _NO_RUNNER.search(output):
        return True
    words = check.run.split() if isinstance(check.run, str) else check.run
    named = {Path(word.partition("::")[0]).name for word in words}
    found = (next(filter(None, match)) for match in _ABSENT.findall(output))
    return any(Path(name.partition("::")[0]).name in named for name in found)
