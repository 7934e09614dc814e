"""Reports of real runners: complete or not, and how many tests they ran."""

import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from nestor.ralph.reports import (
    TestReport,
    asks_for_its_own,
    kept,
    missing,
    read_report,
    runner_of,
)

GOOD = "def test_a():\n    assert True\n\ndef test_b():\n    assert True\n"
EXITS = (
    "import os\n\ndef test_a():\n    assert True\n\ndef test_b():\n    os._exit(0)\n"
)
SKIPS = "import pytest\n\ndef test_a():\n    assert True\n\ndef test_b():\n    pytest.skip()\n"


def ran(runner: str, junit: bytes | None, output: str) -> int | None:
    report = read_report(runner, junit, output)
    return None if report is None else report.ran


@pytest.mark.parametrize(
    ("run", "runner"),
    [
        (["python", "-m", "pytest", "-q"], "pytest"),
        ("pytest -q && echo done", "pytest"),
        (["/setup/venv/bin/pytest"], "pytest"),
        ("python -m unittest discover", "unittest"),
        (["python", "-m", "unittest", "tests.test_a"], "unittest"),
        ("node --test", "node"),
        ("go test ./...", "go"),
        (["cargo", "test", "--all"], "cargo"),
        ("make check", None),
        ("echo mypytests", None),
        ("grep -q pytest requirements.txt", None),
        ("! grep -q pytest a && pytest", "pytest"),
        ("pip install pytest; python -m pip install pytest | cat", None),
        ("echo go test ./...", None),
        ("test -e x && node --test", "node"),
    ],
)
def test_runners_are_known_by_their_command_line(
    run: str | list[str], runner: str | None
) -> None:
    assert runner_of(run) == runner


@pytest.mark.parametrize(
    ("run", "own"),
    [
        ("pytest --junitxml=out.xml", True),
        (["python", "-m", "pytest", "--junit-xml", "a b.xml"], True),
        ("pytest -q tests/junitxml", False),
        ("make test --junitxml=x", False),
    ],
)
def test_a_report_of_the_checks_own_is_seen(run: str | list[str], own: bool) -> None:
    assert asks_for_its_own(run) is own


@pytest.mark.parametrize(
    ("source", "tests"), [(GOOD, 2), (EXITS, None), (SKIPS, 1)], ids=str
)
def test_pytest_writes_its_report_as_its_last_act(
    tmp_path: Path, source: str, tests: int | None
) -> None:
    (tmp_path / "test_it.py").write_text(source)
    report = tmp_path / "report.xml"
    run = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "test_it.py"]
    end = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert end.returncode == 0
    junit = report.read_bytes() if report.exists() else None
    assert ran("pytest", junit, end.stdout) == tests


@pytest.mark.parametrize(("body", "tests"), [("pass", 1), ("os._exit(0)", None)])
def test_unittest_says_how_many_it_ran(
    tmp_path: Path, body: str, tests: int | None
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, unittest\nclass T(unittest.TestCase):\n"
        f"    def test_a(self):\n        {body}\n"
    )
    run = [sys.executable, "-m", "unittest", "test_it"]
    end = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert end.returncode == 0
    assert ran("unittest", None, end.stdout + end.stderr) == tests


@pytest.mark.parametrize(("body", "tests"), [("", 2), ("process.exit(0)", None)])
def test_node_says_how_many_it_ran(
    tmp_path: Path, body: str, tests: int | None
) -> None:
    node = shutil.which("node")
    assert node, "node is one of the machine's programs that the tests need"
    (tmp_path / "it.test.mjs").write_text(
        "import {test} from 'node:test';\n"
        f"test('a', () => {{}});\ntest('b', () => {{ {body} }});\n"
    )
    run = [node, "--test", "--test-reporter=tap", "it.test.mjs"]
    end = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)

    reported = ran("node", None, end.stdout)
    assert reported == tests or end.returncode != 0 or (reported or 0) < 2


def test_cargo_needs_an_end_for_every_beginning() -> None:
    whole = (
        "running 2 tests\ntest a ... ok\ntest b ... ok\n\n"
        "test result: ok. 2 passed; 0 failed; 0 ignored\n"
    )
    assert ran("cargo", None, whole) == 2
    assert ran("cargo", None, "running 2 tests\ntest a ... ok\n") is None


def junit_of(folder: Path, source: str) -> TestReport:
    folder.mkdir(exist_ok=True)
    (folder / "test_it.py").write_text(source)
    written = folder / "report.xml"
    run = [sys.executable, "-m", "pytest", "-q", f"--junitxml={written}", "test_it.py"]
    subprocess.run(run, cwd=folder, capture_output=True, check=False)
    report = read_report("pytest", written.read_bytes(), "")
    assert report is not None
    return report


def test_a_report_names_the_tests_that_ran(tmp_path: Path) -> None:
    base = junit_of(tmp_path / "base", "def test_a(): assert 0\ndef test_b(): pass\n")
    same = junit_of(tmp_path / "same", "def test_b(): pass\ndef test_a(): pass\n")
    other = junit_of(tmp_path / "other", "def test_b(): pass\ndef test_c(): pass\n")
    skips = junit_of(
        tmp_path / "skips",
        "import pytest\ndef test_a(): pytest.skip()\ndef test_b(): pass\n",
    )

    assert missing(base.needs, same) == 0
    assert missing(base.needs, other) == 1
    assert missing(base.needs, skips) == 1


def test_a_module_that_could_not_be_read_must_run_later(tmp_path: Path) -> None:
    base = junit_of(tmp_path / "base", "import nothing_of_this_name\n")
    whole = junit_of(tmp_path / "whole", "def test_a(): pass\n")

    assert (base.ran, len(base.needs)) == (0, 1)
    assert missing(base.needs, whole) == 0
    assert missing(base.needs, TestReport(ran=1, ids=[])) == 1


def test_unittest_names_its_tests_when_it_is_verbose(tmp_path: Path) -> None:
    def report(body: str) -> TestReport:
        (tmp_path / "test_it.py").write_text(body)
        run = [sys.executable, "-m", "unittest", "-v", "test_it"]
        end = subprocess.run(
            run, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        found = read_report("unittest", None, end.stdout + end.stderr)
        assert found is not None
        return found

    head = "import unittest\nclass T(unittest.TestCase):\n"
    base = report(f"{head}    def test_a(self):\n        assert 0\n")
    good = report(f'{head}    def test_a(self):\n        """Says it."""\n')
    skips = report(f"{head}    def test_a(self):\n        self.skipTest('x')\n")
    broken = report("import nothing_of_this_name\n")

    assert (base.ran, good.ran, skips.ran, skips.skipped) == (1, 1, 0, 1)
    assert missing(base.needs, good) == 0
    assert missing(base.needs, skips) == 1
    assert missing(broken.needs, good) == 0
    assert broken.needs


def test_a_hostile_report_is_no_report() -> None:
    bomb = (
        b'<!DOCTYPE x [<!ENTITY a "b">]><testsuite tests="1"><testcase name="&a;"/>'
        b"</testsuite>"
    )
    assert ran("pytest", bomb, "") is None
    assert ran("pytest", b"<testsuites><testsuite tests='x'/>", "") is None
    assert ran("pytest", bomb.decode().encode("utf-16"), "") is None
    cut = b'<testsuites><testsuite tests="9" skipped="0"/></testsuites>'
    assert ran("pytest", cut, "") is None
    hidden = b'<?xml version="1.0" encoding="cp037"?>' + bomb.decode().encode("cp037")
    assert ran("pytest", hidden, "") is None
    unknown = b'<?xml version="1.0" encoding="none"?><testsuites/>'
    assert ran("pytest", unknown, "") is None


MIB = 1024**2


def filled(piece: bytes, size: int) -> bytes:
    return b'<testsuite tests="1">' + piece * (size // len(piece)) + b"</testsuite>"


@pytest.mark.parametrize(
    "report",
    [
        filled(b"<a/>", 7 * MIB),
        filled(b'<testcase name="x"/>', 7 * MIB),
        filled(b"<a>", 7 * MIB),
        filled(b"<testcase><skipped/></testcase>", 7 * MIB),
        filled(b" ", 7 * MIB),
        filled(b'<testcase name="x"/>', 9 * MIB),
    ],
    ids=["elements", "tests", "depth", "skipped", "blanks", "size"],
)
def test_a_report_without_end_is_none_and_takes_no_room(report: bytes) -> None:
    tracemalloc.start()
    try:
        assert not ran("pytest", report, "")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 100 * MIB, most / MIB


def test_a_large_report_is_read() -> None:
    failed = b'<testcase classname="t" name="n%d"><failure>' + b"x" * 200
    cases = b"".join(failed % n + b"</failure></testcase>" for n in range(25_000))
    whole = (
        b'<testsuites><testsuite tests="25000">' + cases + b"</testsuite></testsuites>"
    )

    report = read_report("pytest", whole, "")

    assert report is not None
    assert report.ran == len(report.needs) == 25_000
    # It is stored with every iteration: of so many no names.
    stored = kept(report)
    assert (stored.ran, stored.ids, len(stored.needs)) == (25_000, None, 1)
    assert stored.tells
    few = TestReport(ran=1, ids=["a"], needs=["b"])
    assert kept(few) == few


DIGITS = "9" * 5_000


@pytest.mark.parametrize(
    ("runner", "output"),
    [
        ("unittest", f"Ran {DIGITS} tests in 0.1s\n\nOK\n"),
        ("unittest", f"Ran 1 test in 0.1s\n\nOK (skipped={DIGITS})\n"),
        ("node", f"# tests {DIGITS}\n"),
        ("node", f"# tests 1\n# skipped {DIGITS}\n"),
        ("cargo", f"running {DIGITS} tests\ntest result: ok. 1 passed; 0 failed\n"),
        ("cargo", f"running 1 tests\ntest result: ok. {DIGITS} passed; 0 failed\n"),
        ("pytest", f'<testsuite tests="{DIGITS}"/>'),
        ("pytest", f'<testsuite tests="0" skipped="{DIGITS[:20]}"/>'),
    ],
)
def test_a_number_of_many_digits_is_none(runner: str, output: str) -> None:
    junit = output.encode() if runner == "pytest" else None

    report = read_report(runner, junit, output)

    # Whatever is made of it can be stored.
    assert msgspec.json.encode(report)
    assert report is None or abs(report.ran) < 10**9
