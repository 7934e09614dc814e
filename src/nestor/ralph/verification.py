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

from nestor.model.task import Check, Network, TaskSpec, Verdict
from nestor.ports.sandbox import Mount, Sandbox, SandboxResult, SandboxRun
from nestor.ports.workspace import Workspaces
from nestor.ralph import cut_short, flaky
from nestor.ralph.junit import MAX_REPORT_BYTES
from nestor.ralph.reports import (
    JUNIT_NAME,
    TestReport,
    kept,
    read_report,
    runner_of,
)
from nestor.ralph.verdicts import refuse_if_unstartable, verdict_of

WORKSPACE = "/workspace"
SETUP = "/setup"
_REPORT = "/report"
_MAX_READ_ONLY = 400
_LINK = "link:"
_HASH_BLOCK = 1024 * 1024
_VARIES = re.compile(r"nestor-blocked-\S+|0x[0-9a-f]+|\d+(\.\d+)?")
"""What differs between two runs of the same: markers, addresses, numbers."""


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


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    """How one run of a check ended, and what it left."""

    result: SandboxResult
    touched: list[str]
    report: TestReport | None


class Verifier:
    """Each check gets its own fresh checkout, so that none can prepare the next one."""

    def __init__(self, workspaces: Workspaces, sandbox: Sandbox) -> None:
        self._workspaces = workspaces
        self._sandbox = sandbox

    async def run(
        self,
        subject: Subject,
        *,
        before: Mapping[str, TestReport] | None = None,
        known: flaky.Known = flaky.NOTHING,
    ) -> Verified:
        """Run every check, and again those that ``flaky`` doubts.

        ``before``: what was reported on the base. Raises ``WorkspaceError`` when a check
        cannot start on the base, and ``SandboxError`` when one is cut short every time.
        """
        runs: dict[str, list[Verdict]] = {}
        reports: dict[str, TestReport] = {}
        for number, check in enumerate(subject.spec.all_checks, 1):
            verdict, report = await self._check(
                subject, check, f"{subject.label}-{number}", before or {}
            )
            runs[check.name] = [verdict]
            if report is not None:
                reports[check.name] = kept(report)
        left_s = flaky.allowance_s([first for first, *_ in runs.values()])
        for doubted in (flaky.failing, flaky.believed):
            names = doubted(subject.phase, _settled(runs), known)
            left_s = await self._again(subject, names, runs, before or {}, left_s)
        return Verified(verdicts=_settled(runs), reports=reports)

    async def _again(
        self,
        subject: Subject,
        names: Sequence[str],
        runs: dict[str, list[Verdict]],
        before: Mapping[str, TestReport],
        left_s: float,
    ) -> float:
        """Run these checks once more, and a third time where they differ."""
        for number, check in enumerate(subject.spec.all_checks, 1):
            if check.name not in names:
                continue
            done = runs[check.name]
            while flaky.wants_another(done) and flaky.affordable(done, left_s):
                limit = min(check.timeout_s, left_s)
                verdict, _ = await self._check(
                    subject,
                    msgspec.structs.replace(check, timeout_s=limit),
                    f"{subject.label}-{number}-again-{len(done)}",
                    before,
                )
                left_s -= verdict.duration_s
                if verdict.exit_code is None and limit < check.timeout_s:
                    break  # we cut it short: that says nothing about the check
                done.append(verdict)
        return left_s

    async def _check(
        self,
        subject: Subject,
        check: Check,
        label: str,
        before: Mapping[str, TestReport],
    ) -> tuple[Verdict, TestReport | None]:
        for _ in range(cut_short.TRIES):
            seen = await self._observe(subject, check, label)
            if not seen.result.cancelled:
                break
        else:
            raise cut_short.every_time(f"check {check.name!r}")
        if subject.phase == "base" and not label.partition("-again-")[1]:
            refuse_if_unstartable(check, seen.result, seen.report)
        verdict = verdict_of(
            check,
            subject.phase,
            seen.result,
            report=seen.report,
            touched=seen.touched,
            before=before.get(check.name),
            # Who turned the default off lets the agent change the tests themselves.
            by_name=subject.spec.protected is None,
        )
        return verdict, seen.report

    async def _observe(self, subject: Subject, check: Check, label: str) -> _Seen:
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
            return _Seen(
                result=result,
                touched=await asyncio.to_thread(_touched, tree, guarded),
                report=await asyncio.to_thread(_read, written, check, result),
            )
        finally:
            await self._workspaces.remove(tree, written)

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
                **_named_by_go(check),
            },
            network=Network.NONE,
            timeout_s=check.timeout_s,
            run_dir=run_dir,
            memory_bytes=spec.sandbox.memory_bytes,
            disk_bytes=spec.sandbox.disk_bytes,
            processes=spec.sandbox.processes,
        )


def failure_signature(verdicts: Sequence[Verdict]) -> str:
    """Digest what fails, without durations and addresses; "" when nothing fails."""
    failing = [verdict for verdict in verdicts if not verdict.passed]
    if not failing:
        return ""
    return signature(*(f"{v.check}:{v.exit_code}:{v.output_tail}" for v in failing))


def signature(*texts: str) -> str:
    """Digest texts so that two runs of the same failure agree."""
    plain = (_VARIES.sub("0", text) for text in texts)
    return hashlib.sha256("\x1f".join(plain).encode("utf-8", "replace")).hexdigest()[
        :16
    ]


def environment_mounts(spec: TaskSpec, setup: str | None) -> list[Mount]:
    """Return what checks and agent see besides the tree: ``/setup`` and declared mounts."""
    mounts = [Mount(host=Path(setup), inside=SETUP)] if setup else []
    mounts.extend(Mount(host=Path(path), inside=path) for path in spec.mounts)
    return mounts


def _settled(runs: Mapping[str, list[Verdict]]) -> list[Verdict]:
    return [flaky.settle(done) for done in runs.values()]


def _named_by_go(check: Check) -> dict[str, str]:
    """Have go name its tests: without that, one that never ends looks like a passing one."""
    if runner_of(check.run) != "go":
        return {}
    return {"GOFLAGS": f"{check.env.get('GOFLAGS', '')} -v".strip()}


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
    # Who sets GOFLAGS in the line itself unsets ours.
    named = "GOFLAGS=" not in " ".join(_argv(check.run))
    return read_report(runner_of(check.run), junit, result.output, named=named)
