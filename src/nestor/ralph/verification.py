"""Run sealed checks on a fresh checkout, in the sandbox, and believe only what they say."""

import asyncio
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from nestor.errors import WorkspaceError
from nestor.model.task import Check, Network, TaskSpec, Verdict
from nestor.ports.sandbox import Mount, Sandbox, SandboxResult, SandboxRun
from nestor.ports.workspace import Workspaces
from nestor.ralph.reports import (
    JUNIT_NAME,
    MAX_REPORT_BYTES,
    TestReport,
    missing,
    read_report,
    runner_of,
)
from nestor.telemetry.redact import redact

WORKSPACE = "/workspace"
SETUP = "/setup"
_REPORT = "/report"
_TAIL_CHARS = 8_000
_MAX_READ_ONLY = 400
_LINK = "link:"
_NOT_FOUND = (126, 127)
_NO_RUNNER = re.compile(r"No module named '?(?:pytest|unittest)'?\s*$", re.MULTILINE)
_ABSENT = re.compile(
    r"can't open file '([^']*)': \[Errno 2\]"
    r"|^ERROR: file or directory not found: (\S+)"
    r"|Cannot find module '(/workspace/[^']*)'"
    r"|No module named '(\w+)'",
    re.MULTILINE,
)
_HASH_BLOCK = 1024 * 1024


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks said about one commit."""

    verdicts: list[Verdict]
    reports: dict[str, TestReport] = {}
    """By check, where its runner wrote a complete one."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The commit to check and what it is compared with."""

    task_id: str
    spec: TaskSpec
    commit: str
    """Its protected paths are as on the base."""
    is_protected: Callable[[str], bool]
    phase: str
    """``base`` or ``after``."""
    label: str
    """Names the run's folders; the same label never runs twice at once."""
    setup: str | None = None
    """Host folder of the prepared environment."""


class Verifier:
    """Each check gets its own fresh checkout, so that none can prepare the next one."""

    def __init__(self, workspaces: Workspaces, sandbox: Sandbox) -> None:
        self._workspaces = workspaces
        self._sandbox = sandbox

    async def run(
        self, subject: Subject, *, before: Mapping[str, TestReport] | None = None
    ) -> Verified:
        """Run every check; ``before``: what was reported on the base.

        Raises ``WorkspaceError`` when a check cannot start on the base.
        """
        verdicts: list[Verdict] = []
        reports: dict[str, TestReport] = {}
        for number, check in enumerate(subject.spec.all_checks, 1):
            verdict, report = await self._check(
                subject, check, f"{subject.label}-{number}", before or {}
            )
            verdicts.append(verdict)
            if report is not None:
                reports[check.name] = report
        return Verified(verdicts=verdicts, reports=reports)

    async def _check(
        self,
        subject: Subject,
        check: Check,
        label: str,
        before: Mapping[str, TestReport],
    ) -> tuple[Verdict, TestReport | None]:
        folder = self._workspaces.folder(subject.task_id)
        tree, written = folder / f"checkout-{label}", folder / f"report-{label}"
        run_dir = folder / "runs" / label
        await self._sandbox.kill(run_dir)
        try:
            await self._workspaces.remove(written)
            written.mkdir(parents=True, mode=0o700)
            await self._workspaces.checkout(subject.task_id, subject.commit, tree)
            guarded = await asyncio.to_thread(_digests, tree, subject.is_protected)
            result = await self._sandbox.run(
                self._run(subject, check, run_dir, tree, written, guarded)
            )
            touched = await asyncio.to_thread(_touched, tree, guarded)
            report = await asyncio.to_thread(_read, written, check, result)
        finally:
            await self._workspaces.remove(tree, written)
        if subject.phase == "base":
            _refuse_if_unstartable(check, result)
        verdict = judge(
            check,
            subject.phase,
            result,
            report=report,
            touched=touched,
            before=before.get(check.name),
            # Who turned the default off lets the agent change the tests themselves.
            by_name=subject.spec.protected is None,
        )
        return verdict, report

    def _run(
        self,
        subject: Subject,
        check: Check,
        run_dir: Path,
        tree: Path,
        written: Path,
        guarded: Mapping[str, str],
    ) -> SandboxRun:
        spec = subject.spec
        mounts = [
            Mount(host=tree, inside=WORKSPACE, writable=True),
            Mount(host=written, inside=_REPORT, writable=True),
            *environment_mounts(spec, subject.setup),
            # The tested code runs before all tests are read; it must not rewrite them.
            # (Links cannot be mounted over; ``_touched`` looks at them afterwards.)
            *(
                Mount(host=tree / path, inside=f"{WORKSPACE}/{path}")
                for path in islice(
                    (p for p, digest in guarded.items() if digest[:5] != _LINK),
                    _MAX_READ_ONLY,
                )
            ),
        ]
        addopts = (
            f"{check.env.get('PYTEST_ADDOPTS', '')} --junitxml={_REPORT}/{JUNIT_NAME}"
        )
        return SandboxRun(
            name=f"{subject.task_id}/{subject.label}/{check.name}",
            argv=_argv(check.run),
            cwd=_cwd(spec),
            mounts=mounts,
            env={
                "NESTOR_SETUP": SETUP,
                **check.env,
                "PYTEST_ADDOPTS": addopts.strip(),
            },
            network=Network.NONE,
            timeout_s=check.timeout_s,
            run_dir=run_dir,
            memory_bytes=spec.sandbox.memory_bytes,
            processes=spec.sandbox.processes,
        )


def judge(
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
    runner = runner_of(check.run)
    note = ""
    if result.timed_out:
        note = f"still running after {check.timeout_s:g} s"
    elif result.exit_code is None:
        note = f"killed by signal {result.signal}"
    elif result.exit_code == check.expect_exit:
        if touched:
            named = ", ".join(touched[:5])
            note = f"protected files were changed while it ran: {named}"
        else:
            note = _incomplete(runner, report, before, by_name=by_name)
    passed = result.exit_code == check.expect_exit and not note
    return Verdict(
        check=check.name,
        phase=phase,
        passed=passed,
        exit_code=result.exit_code,
        duration_s=round(result.duration_s, 3),
        tests=None if report is None else report.ran,
        output_tail=redact(result.output[-_TAIL_CHARS:]),
        telling=report is None or bool(report.ran or report.needs),
        note=note,
    )


def failure_signature(verdicts: Sequence[Verdict]) -> str:
    """Digest what fails, without durations and addresses; "" when nothing fails."""
    failing = [verdict for verdict in verdicts if not verdict.passed]
    if not failing:
        return ""
    return signature(*(f"{v.check}:{v.exit_code}:{v.output_tail}" for v in failing))


def signature(*texts: str) -> str:
    """Digest texts so that two runs of the same failure agree."""
    plain = (re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "0", text) for text in texts)
    return hashlib.sha256("\x1f".join(plain).encode("utf-8", "replace")).hexdigest()[
        :16
    ]


def environment_mounts(spec: TaskSpec, setup: str | None) -> list[Mount]:
    """Return what checks and agent see besides the tree: ``/setup`` and declared mounts."""
    mounts = [Mount(host=Path(setup), inside=SETUP)] if setup else []
    mounts.extend(Mount(host=Path(path), inside=path) for path in spec.mounts)
    return mounts


def _incomplete(
    runner: str | None,
    report: TestReport | None,
    before: TestReport | None,
    *,
    by_name: bool,
) -> str:
    """Say why a report does not back the exit code; "" when it does."""
    if report is None:
        if runner is None and before is None:
            return ""
        return f"{runner or 'the test runner'} ended without a complete report"
    if report.ran < 1:
        return "no test was run"
    return "" if before is None else _fewer(report, before, by_name=by_name)


def _fewer(report: TestReport, before: TestReport, *, by_name: bool) -> str:
    if report.ran < before.ran:
        return f"{report.ran} tests were run, {before.ran} on the base"
    if report.ids is None or before.ids is None:
        if report.skipped > before.skipped:
            return f"{report.skipped} tests were skipped, {before.skipped} on the base"
    elif by_name and (gone := missing(before.needs, report)):
        return f"{gone} of the tests of the base did not run"
    return ""


def _refuse_if_unstartable(check: Check, result: SandboxResult) -> None:
    if result.exit_code == check.expect_exit:
        return
    if result.exit_code in _NOT_FOUND or _is_absent(check, result.output):
        last = result.output.strip().splitlines()[-1:] or ["it printed nothing"]
        message = (
            f"check {check.name!r} cannot start on the base (exit {result.exit_code}): "
            f"{redact(last[0])[:300]}. Install what it needs in setup[], or correct it"
        )
        raise WorkspaceError(message)


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


def _argv(run: str | list[str]) -> list[str]:
    return ["/bin/sh", "-c", run] if isinstance(run, str) else list(run)


def _cwd(spec: TaskSpec) -> str:
    inside = spec.workspace.path if spec.workspace else None
    return f"{WORKSPACE}/{inside}" if inside else WORKSPACE


def _digests(tree: Path, is_protected: Callable[[str], bool]) -> dict[str, str]:
    files = sorted(
        os.path.relpath(Path(folder) / name, tree)
        for folder, folders, names in os.walk(tree)
        for name in (*names, *(n for n in folders if (Path(folder) / n).is_symlink()))
    )
    return {path: _digest(tree / path) for path in files if is_protected(path)}


def _touched(tree: Path, guarded: Mapping[str, str]) -> list[str]:
    return [path for path, digest in guarded.items() if _digest(tree / path) != digest]


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"{_LINK}{path.readlink()}"
    seen = hashlib.sha256()
    # Whatever the checked code put there: never a link, never a pipe that waits.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return "not a file"
        while block := file.read(_HASH_BLOCK):
            seen.update(block)
    return seen.hexdigest()


def _read(written: Path, check: Check, result: SandboxResult) -> TestReport | None:
    """Read the report of a check; tested code may have put anything in its place."""
    junit: bytes | None = None
    try:
        handle = os.open(
            written / JUNIT_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        )
    except OSError:
        handle = -1
    if handle >= 0:
        with os.fdopen(handle, "rb") as file:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                junit = file.read(MAX_REPORT_BYTES + 1)
    return read_report(runner_of(check.run), junit, result.output)
