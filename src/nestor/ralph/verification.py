"""Run sealed checks on a fresh checkout, in the sandbox, and believe only what they say."""

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from nestor.errors import WorkspaceError
from nestor.model.task import Check, Network, TaskSpec, Verdict
from nestor.ports.sandbox import Mount, Sandbox, SandboxResult, SandboxRun
from nestor.ports.workspace import Workspaces
from nestor.ralph.protection import protected
from nestor.ralph.reports import JUNIT_NAME, count_tests, runner_of
from nestor.telemetry.redact import redact

WORKSPACE = "/workspace"
SETUP = "/setup"
_REPORT = "/report"
_TAIL_CHARS = 8_000
_MAX_READ_ONLY = 400
_NOT_FOUND = (126, 127)
_NO_RUNNER = re.compile(r"No module named '?(pytest|unittest)'?\s*$", re.MULTILINE)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks said about one commit."""

    verdicts: list[Verdict]
    restored: list[str] = []
    """Protected paths that differed from the base and were put back before the run."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The commit to check and what it is compared with."""

    task_id: str
    spec: TaskSpec
    commit: str
    base: str
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
        self, subject: Subject, *, base_verdicts: Sequence[Verdict] = ()
    ) -> Verified:
        """Run every check. Raises ``WorkspaceError`` when one cannot start on the base."""
        base_files = await self._workspaces.files(subject.task_id, subject.base)
        is_protected = protected(subject.spec, base_files)
        before = {verdict.check: verdict for verdict in base_verdicts}
        verdicts: list[Verdict] = []
        restored: list[str] = []
        for number, check in enumerate(subject.spec.all_checks, 1):
            verdict, restored = await self._check(
                subject, check, f"{subject.label}-{number}", is_protected, before
            )
            verdicts.append(verdict)
        return Verified(verdicts=verdicts, restored=restored)

    async def _check(
        self,
        subject: Subject,
        check: Check,
        label: str,
        is_protected: Callable[[str], bool],
        before: Mapping[str, Verdict],
    ) -> tuple[Verdict, list[str]]:
        folder = self._workspaces.folder(subject.task_id)
        tree, report = folder / f"checkout-{label}", folder / f"report-{label}"
        run_dir = folder / "runs" / label
        await self._sandbox.kill(run_dir)
        try:
            await self._workspaces.remove(report)
            report.mkdir(parents=True, mode=0o700)
            restored = await self._workspaces.checkout(
                subject.task_id,
                subject.commit,
                tree,
                restore=is_protected,
                base=subject.base,
            )
            guarded = await asyncio.to_thread(_digests, tree, is_protected)
            result = await self._sandbox.run(
                self._run(subject, check, run_dir, tree, report, list(guarded))
            )
            touched = await asyncio.to_thread(_touched, tree, guarded)
            junit = await asyncio.to_thread(_report, report)
        finally:
            await self._workspaces.remove(tree, report)
        if subject.phase == "base":
            _refuse_if_unstartable(check, result)
        verdict = judge(
            check,
            subject.phase,
            result,
            junit=junit,
            touched=touched,
            before=before.get(check.name),
        )
        return verdict, restored

    def _run(
        self,
        subject: Subject,
        check: Check,
        run_dir: Path,
        tree: Path,
        report: Path,
        guarded: Sequence[str],
    ) -> SandboxRun:
        spec = subject.spec
        mounts = [
            Mount(host=tree, inside=WORKSPACE, writable=True),
            Mount(host=report, inside=_REPORT, writable=True),
            *environment_mounts(spec, subject.setup),
            # The tested code runs before all tests are read; it must not rewrite them.
            *(
                Mount(host=tree / path, inside=f"{WORKSPACE}/{path}")
                for path in guarded[:_MAX_READ_ONLY]
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
    junit: bytes | None,
    touched: Sequence[str],
    before: Verdict | None,
) -> Verdict:
    """Turn the end of a check into a verdict; the exit code is needed, not enough."""
    runner = runner_of(check.run)
    tests = count_tests(runner, junit, result.output)
    note = ""
    if result.timed_out:
        note = f"still running after {check.timeout_s:g} s"
    elif result.exit_code != check.expect_exit:
        note = (
            "" if result.exit_code is not None else f"killed by signal {result.signal}"
        )
    elif touched:
        note = f"protected files were changed while it ran: {', '.join(touched[:5])}"
    else:
        note = _incomplete(runner, tests, before)
    passed = result.exit_code == check.expect_exit and not note
    return Verdict(
        check=check.name,
        phase=phase,
        passed=passed,
        exit_code=result.exit_code,
        duration_s=round(result.duration_s, 3),
        tests=tests,
        output_tail=redact(result.output[-_TAIL_CHARS:]),
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


def _incomplete(runner: str | None, tests: int | None, before: Verdict | None) -> str:
    expected = before.tests if before is not None else None
    if tests is None and (runner is not None or expected is not None):
        return f"{runner or 'the test runner'} ended without a complete report"
    if tests is not None and tests < 1:
        return "no test was run"
    if tests is not None and expected is not None and tests < expected:
        return f"{tests} tests were run, {expected} on the base"
    return ""


def _refuse_if_unstartable(check: Check, result: SandboxResult) -> None:
    missing = result.exit_code in _NOT_FOUND or _NO_RUNNER.search(result.output)
    if missing and result.exit_code != check.expect_exit:
        last = result.output.strip().splitlines()[-1:] or ["it printed nothing"]
        message = (
            f"check {check.name!r} cannot start on the base (exit {result.exit_code}): "
            f"{redact(last[0])[:300]}. Install what it needs in setup[], or correct it"
        )
        raise WorkspaceError(message)


def _argv(run: str | list[str]) -> list[str]:
    return ["/bin/sh", "-c", run] if isinstance(run, str) else list(run)


def _cwd(spec: TaskSpec) -> str:
    inside = spec.workspace.path if spec.workspace else None
    return f"{WORKSPACE}/{inside}" if inside else WORKSPACE


def _digests(tree: Path, is_protected: Callable[[str], bool]) -> dict[str, str]:
    files = sorted(
        os.path.relpath(Path(folder) / name, tree)
        for folder, _, names in os.walk(tree)
        for name in names
    )
    return {path: _digest(tree / path) for path in files if is_protected(path)}


def _touched(tree: Path, guarded: Mapping[str, str]) -> list[str]:
    return [path for path, digest in guarded.items() if _digest(tree / path) != digest]


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link:{path.readlink()}"
    if not path.is_file():
        return "gone"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _report(folder: Path) -> bytes | None:
    path = folder / JUNIT_NAME
    # Written by tested code: a link could point at anything on this machine.
    if path.is_symlink() or not path.is_file():
        return None
    return path.read_bytes()
