"""Reports of real runners: complete or not, and how many tests they ran."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nestor.ralph.reports import count_tests, runner_of

GOOD = "def test_a():\n    assert True\n\ndef test_b():\n    assert True\n"
EXITS = (
    "import os\n\ndef test_a():\n    assert True\n\ndef test_b():\n    os._exit(0)\n"
)
SKIPS = "import pytest\n\ndef test_a():\n    assert True\n\ndef test_b():\n    pytest.skip()\n"


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
    ],
)
def test_runners_are_known_by_their_command_line(
    run: str | list[str], runner: str | None
) -> None:
    assert runner_of(run) == runner


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
    assert count_tests("pytest", junit, end.stdout) == tests


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
    assert count_tests("unittest", None, end.stdout + end.stderr) == tests


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

    reported = count_tests("node", None, end.stdout)
    assert reported == tests or end.returncode != 0 or (reported or 0) < 2


def test_cargo_needs_an_end_for_every_beginning() -> None:
    whole = (
        "running 2 tests\ntest a ... ok\ntest b ... ok\n\n"
        "test result: ok. 2 passed; 0 failed; 0 ignored\n"
    )
    assert count_tests("cargo", None, whole) == 2
    assert count_tests("cargo", None, "running 2 tests\ntest a ... ok\n") is None


def test_a_hostile_report_is_no_report() -> None:
    bomb = (
        b'<!DOCTYPE x [<!ENTITY a "b">]><testsuites><testsuite tests="9"/></testsuites>'
    )
    assert count_tests("pytest", bomb, "") is None
    assert count_tests("pytest", b"<testsuites><testsuite tests='x'/>", "") is None
