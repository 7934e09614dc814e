"""Whether a test runner finished, and how many tests it ran.

An exit code alone can lie: ``os._exit(0)`` in the tested code makes a failing pytest end
with 0. So for known runners a pass also needs the report that a runner writes at its end.
"""

import re
from xml.etree import ElementTree as ET

JUNIT_NAME = "report.xml"
_MAX_REPORT_BYTES = 64 * 1024 * 1024

_RUNNERS = {
    "pytest": re.compile(r"(?:^|[\s/])(?:pytest|py\.test)(?:$|[\s;&|])"),
    "unittest": re.compile(r"(?:^|\s)unittest(?:$|[\s;&|.])"),
    "node": re.compile(r"(?:^|[\s/])node(?:\s\S+)*\s--test"),
    "go": re.compile(r"(?:^|[\s/])go\s+test(?:$|\s)"),
    "cargo": re.compile(r"(?:^|[\s/])cargo\s+(?:\S+\s+)*test(?:$|\s)"),
}


def runner_of(run: str | list[str]) -> str | None:
    """Name the test runner of a command line; None for one we do not know."""
    line = run if isinstance(run, str) else " ".join(run)
    return next((name for name, seen in _RUNNERS.items() if seen.search(line)), None)


def count_tests(runner: str | None, junit: bytes | None, output: str) -> int | None:
    """Return how many tests a *complete* report says were run (skipped ones do not count).

    None: there is no complete report. ``junit`` is the file pytest writes as its last act.
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


def _junit(data: bytes) -> int | None:
    # The tested code can write this file too, so it is hostile: no entities, bounded.
    if len(data) > _MAX_REPORT_BYTES or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        return None
    try:
        root = ET.fromstring(data)  # noqa: S314 - entities were refused above
        suites = [root] if root.tag == "testsuite" else root.findall("testsuite")
        return sum(
            int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
            for suite in suites
        )
    except (ET.ParseError, ValueError):
        return None


def _unittest(output: str) -> int | None:
    ran = re.findall(r"^Ran (\d+) tests? in ", output, re.MULTILINE)
    end = re.findall(
        r"^(?:OK|FAILED|NO TESTS RAN)(?: \(([^)]*)\))?\s*$", output, re.MULTILINE
    )
    if not ran or not end:
        return None
    skipped = re.search(r"skipped=(\d+)", end[-1])
    return int(ran[-1]) - (int(skipped[1]) if skipped else 0)


def _node(output: str) -> int | None:
    def total(word: str) -> int | None:
        found = re.findall(rf"^(?:#|ℹ) {word} (\d+)\s*$", output, re.MULTILINE)  # noqa: RUF001
        return int(found[-1]) if found else None

    tests = total("tests")
    if tests is None:
        return None
    return tests - (total("skipped") or 0) - (total("todo") or 0)


def _go(output: str) -> int | None:
    packages = len(re.findall(r"^(?:ok|FAIL|---\s+\S+)\s+\S+", output, re.MULTILINE))
    passed = len(re.findall(r"^\s*--- (?:PASS|FAIL): ", output, re.MULTILINE))
    return (passed or packages) or None


def _cargo(output: str) -> int | None:
    started = [
        int(n) for n in re.findall(r"^running (\d+) tests?$", output, re.MULTILINE)
    ]
    ended = re.findall(
        r"^test result: \w+\. (\d+) passed; (\d+) failed", output, re.MULTILINE
    )
    if not started or len(started) != len(ended):
        return None
    return sum(int(passed) + int(failed) for passed, failed in ended)
