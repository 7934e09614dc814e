"""Whether a test runner finished, and which tests it ran.

An exit code alone can lie: ``os._exit(0)`` in the tested code makes a failing pytest end
with 0. So for known runners a pass also needs the report that a runner writes at its end,
and in it the tests that ran on the base. The tested code shares the runner's process and
could forge that report; see docs/explanation/verification.md for what this cannot prove.
"""

import hashlib
import re
from collections.abc import Iterable
from xml.etree import ElementTree as ET

import msgspec

JUNIT_NAME = "report.xml"
MAX_REPORT_BYTES = 64 * 1024 * 1024

_RUNNERS = {
    "pytest": re.compile(r"(?:^|[\s/])(?:pytest|py\.test)(?:$|[\s;&|])"),
    "unittest": re.compile(r"(?:^|\s)unittest(?:$|[\s;&|.])"),
    "node": re.compile(r"(?:^|[\s/])node(?:\s\S+)*\s--test"),
    "go": re.compile(r"(?:^|[\s/])go\s+test(?:$|\s)"),
    "cargo": re.compile(r"(?:^|[\s/])cargo\s+(?:\S+\s+)*test(?:$|\s)"),
}
_UNITTEST_LINE = re.compile(
    r"^(\w+) \(([\w.]+)\)(?:\n[^\n]*)? \.\.\. (.*)$", re.MULTILINE
)
_UNREADABLE = "unittest.loader._FailedTest"


class TestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete report says. ``ran`` does not count skipped tests.

    ``ids``: short digests of the tests that ran and of the modules they are in; None
    where the runner names no tests. ``needs``: what a later report must have among its
    ``ids`` (the tests that ran, the modules that could not be read).
    """

    __test__ = False  # for pytest, which collects what is called Test…

    ran: int
    skipped: int = 0
    ids: list[str] | None = None
    needs: list[str] = []


def runner_of(run: str | list[str]) -> str | None:
    """Name the test runner of a command line; None for one we do not know."""
    line = run if isinstance(run, str) else " ".join(run)
    return next((name for name, seen in _RUNNERS.items() if seen.search(line)), None)


def read_report(
    runner: str | None, junit: bytes | None, output: str
) -> TestReport | None:
    """Read the report; None when there is no complete one.

    ``junit`` is the file that pytest writes as its last act.
    """
    if junit is not None:
        return _junit(junit)
    match runner:
        case "unittest":
            return _unittest(output)
        case "node":
            return _node(output)
        case "go":
            return _go(output)
        case "cargo":
            return _cargo(output)
    return None


def _junit(data: bytes) -> TestReport | None:
    # The tested code can write this file too, so it is hostile: no entities (also not
    # in UTF-16, which is full of NUL bytes), bounded.
    if len(data) > MAX_REPORT_BYTES or any(
        word in data for word in (b"<!DOCTYPE", b"<!ENTITY", b"\0")
    ):
        return None
    try:
        root = ET.fromstring(data)  # noqa: S314 - entities were refused above
        suites = [root] if root.tag == "testsuite" else root.findall("testsuite")
        tests = sum(int(suite.get("tests", 0)) for suite in suites)
        skipped = sum(int(suite.get("skipped", 0)) for suite in suites)
    except (ET.ParseError, ValueError):
        return None
    ran, unreadable, cases = [], [], 0
    for case in root.iter("testcase"):
        cases += 1
        module, name = case.get("classname", ""), case.get("name", "")
        error = case.find("error")
        if error is not None and error.get("message") == "collection failure":
            unreadable.append(".".join(part for part in (module, name) if part))
        elif case.find("skipped") is None:
            ran.append((module, name))
    if cases < tests:  # cut off
        return None
    return _report(ran, unreadable, skipped=skipped)


def _unittest(output: str) -> TestReport | None:
    total = re.findall(r"^Ran (\d+) tests? in ", output, re.MULTILINE)
    end = re.findall(
        r"^(?:OK|FAILED|NO TESTS RAN)(?: \(([^)]*)\))?\s*$", output, re.MULTILINE
    )
    if not total or not end:
        return None
    said = re.search(r"skipped=(\d+)", end[-1])
    skipped = int(said[1]) if said else 0
    named = _UNITTEST_LINE.findall(output)
    if len(named) < int(total[-1]):  # without -v no test is named
        return TestReport(ran=int(total[-1]) - skipped, skipped=skipped)
    unreadable = [name for name, where, _ in named if where.startswith(_UNREADABLE)]
    ran = [
        (where.removesuffix(f".{name}"), name)
        for name, where, how in named
        if not where.startswith(_UNREADABLE) and not how.startswith("skipped")
    ]
    return _report(ran, unreadable, skipped=skipped)


def _report(
    ran: list[tuple[str, str]], unreadable: list[str], *, skipped: int
) -> TestReport:
    tests = {_id("test", module, _stable(name)) for module, name in ran}
    modules = {
        _id("module", ".".join(parts[:count]))
        for module in {module for module, _ in ran}
        for parts in [module.split(".")]
        for count in range(1, len(parts) + 1)
    }
    needs = tests | {_id("module", module) for module in unreadable}
    return TestReport(
        ran=len(ran), skipped=skipped, ids=sorted(tests | modules), needs=sorted(needs)
    )


def _id(*parts: str) -> str:
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=6).hexdigest()


def _stable(name: str) -> str:
    """A parameter's address differs from run to run."""
    return re.sub(r"0x[0-9a-f]+", "0x", name)


def missing(needs: Iterable[str], report: TestReport) -> int:
    """Count the tests (or unreadable modules) of the base that the report has not."""
    return len(set(needs) - set(report.ids or ()))


def _node(output: str) -> TestReport | None:
    def total(word: str) -> int | None:
        found = re.findall(rf"^(?:#|ℹ) {word} (\d+)\s*$", output, re.MULTILINE)  # noqa: RUF001
        return int(found[-1]) if found else None

    tests = total("tests")
    if tests is None:
        return None
    skipped = (total("skipped") or 0) + (total("todo") or 0)
    return TestReport(ran=tests - skipped, skipped=skipped)


def _go(output: str) -> TestReport | None:
    packages = len(re.findall(r"^(?:ok|FAIL)\s+\S+", output, re.MULTILINE))
    ran = len(re.findall(r"^\s*--- (?:PASS|FAIL): ", output, re.MULTILINE))
    skipped = len(re.findall(r"^\s*--- SKIP: ", output, re.MULTILINE))
    if not packages:
        return None
    return TestReport(ran=ran or packages, skipped=skipped)


def _cargo(output: str) -> TestReport | None:
    started = re.findall(r"^running (\d+) tests?$", output, re.MULTILINE)
    ended = re.findall(
        r"^test result: \w+\. (\d+) passed; (\d+) failed(?:; (\d+) ignored)?",
        output,
        re.MULTILINE,
    )
    if not started or len(started) != len(ended):
        return None
    ran = sum(int(passed) + int(failed) for passed, failed, _ in ended)
    return TestReport(ran=ran, skipped=sum(int(n or 0) for *_, n in ended))
