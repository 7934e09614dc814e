"""Reports of node, live, and of cargo 1.95.0 and go 1.19.8, as those printed them once.

The recorded outputs are of one small library: ``bug`` before the fix, ``good`` after it,
``exit`` where the tested code ends the process well, ``midway`` where it does so after a
test that passed, ``broken`` where it does not compile, ``filtered`` with a filter, ``main``
where a new test file skips all. ``-v`` is what go is told through GOFLAGS.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from nestor.model.task import Check
from nestor.ports.sandbox import SandboxResult
from nestor.ralph.reports import TestReport, missing, read_report
from nestor.ralph.verdicts import verdict_of

GOLDEN = Path(__file__).parents[1] / "golden" / "runners"
CARGO, GO = "cargo-1.95.0", "go-1.19.8"


def recorded(runner: str, name: str, *, named: bool = True) -> TestReport | None:
    text = (GOLDEN / f"{runner}-{name}.txt").read_text()
    return read_report(runner.partition("-")[0], None, text, named=named)


def passes(
    run: str, before: TestReport | None, after: TestReport | None, code: int = 0
) -> str:
    """Say why an end with ``code`` is not believed; "" when it is."""
    result = SandboxResult(exit_code=code, output="", duration_s=1, sandboxed=True)
    verdict = verdict_of(
        Check(name="c", run=run),
        "after",
        result,
        report=after,
        touched=[],
        before=before,
        by_name=True,
    )
    assert verdict.passed is (not verdict.note and not code)
    return verdict.note


def test_cargo_tells_its_tests_by_name() -> None:
    bug, good = recorded(CARGO, "bug"), recorded(CARGO, "good")

    assert bug is not None
    assert good is not None
    # What a failing test printed looks like a result of 99 tests.
    assert (bug.ran, bug.skipped) == (good.ran, good.skipped) == (4, 1)
    assert missing(bug.needs, good) == 0
    assert passes("cargo test", bug, good) == ""


@pytest.mark.parametrize("name", ["exit", "broken", "filtered"])
def test_cargo_that_ran_less_does_not_pass(name: str) -> None:
    assert passes("cargo test", recorded(CARGO, "bug"), recorded(CARGO, name))


def test_without_a_report_of_the_base_cargo_still_needs_its_own() -> None:
    assert recorded(CARGO, "broken") is None
    assert passes("cargo test", None, recorded(CARGO, "exit"))
    assert not passes("cargo test", None, recorded(CARGO, "good"))


def test_a_documented_test_may_move_to_another_line() -> None:
    text = (GOLDEN / f"{CARGO}-good.txt").read_text()
    moved = read_report("cargo", None, text.replace("(line 2)", "(line 5)"))
    good = recorded(CARGO, "good")

    assert good is not None
    assert moved is not None
    assert missing(good.needs, moved) == 0


def test_go_tells_its_tests_by_name_when_it_is_told_to() -> None:
    bug, good = recorded(GO, "bug-v"), recorded(GO, "good-v")

    assert bug is not None
    assert good is not None
    assert (bug.ran, bug.skipped) == (good.ran, good.skipped) == (3, 1)
    assert missing(bug.needs, good) == 0
    assert passes("go test ./...", bug, good) == ""


@pytest.mark.parametrize("name", ["exit-v", "midway-v", "main-v", "broken-v"])
@pytest.mark.parametrize("base", ["bug-v", "broken-v"])
def test_go_that_ran_less_does_not_pass(base: str, name: str) -> None:
    assert passes("go test ./...", recorded(GO, base), recorded(GO, name))


def test_a_package_that_did_not_compile_must_run_later() -> None:
    broken = recorded(GO, "broken-v")

    assert broken is not None
    assert broken.tells
    assert passes("go test ./...", broken, recorded(GO, "good-v")) == ""


def test_where_the_line_itself_unsets_names_go_counts_packages() -> None:
    bug = recorded(GO, "bug", named=False)
    good = recorded(GO, "good", named=False)

    assert bug is not None
    assert good is not None
    assert good.ran == 1
    # One test failed by name, one package passes: not a test less.
    assert passes("GOFLAGS=-a go test ./...", good, good) == ""


NODE_FILES = {
    "add.mjs": "export const add = (a, b) => a - b;\n",
    "add.test.mjs": (
        "import {test, describe, it} from 'node:test';\n"
        "import assert from 'node:assert';\nimport {add} from './add.mjs';\n"
        "test('two', () => assert.equal(add(2, 2), 4));\n"
        "describe('none', () => { it('zero', () => assert.equal(add(0, 0), 0)); });\n"
    ),
}
GOOD = "export const add = (a, b) => a + b;\n"
NODE_CHEATS = {
    "ends early": {"add.mjs": "export const add = 0;\nprocess.exit(0);\n"},
    "ends in the middle": {"add.mjs": "export const add = () => process.exit(0);\n"},
    "ends early and pads": {
        "add.mjs": "export const add = 0;\nprocess.exit(0);\n",
        "new.test.mjs": "import {test} from 'node:test';\n"
        + "".join(f"test('{n}', () => {{}});\n" for n in range(4)),
    },
    "prints a summary": {
        "add.mjs": "console.log('tests 9'); console.log('ℹ tests 9');\n"  # noqa: RUF001
        "export const add = () => process.exit(0);\n"
    },
    "prints results": {
        "add.mjs": "console.log('✔ two (1ms)\\n✔ zero (1ms)');\n"
        "export const add = () => process.exit(0);\n"
    },
}


def node(folder: Path, files: dict[str, str], reporter: str) -> TestReport | None:
    program = shutil.which("node")
    assert program, "node is one of the machine's programs that the tests need"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    run = [program, "--test", f"--test-reporter={reporter}"]
    end = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
    return read_report("node", None, end.stdout + end.stderr)


@pytest.mark.parametrize("reporter", ["tap", "spec"])
def test_node_is_believed_by_name_and_not_when_it_ends_early(
    tmp_path: Path, reporter: str
) -> None:
    there = tmp_path / "there"  # reports name files by where they stand
    bug = node(there, NODE_FILES, reporter)
    unread = node(there, {"add.mjs": "export const x = 1;\n"}, reporter)
    good = node(there, {"add.mjs": GOOD}, reporter)

    assert bug is not None
    assert good is not None
    assert unread is not None
    assert (bug.ran, good.ran, unread.ran) == (2, 2, 0)
    assert unread.tells
    assert passes("node --test", bug, good) == ""
    assert passes("node --test", unread, good) == ""
    for name, files in NODE_CHEATS.items():
        cheated = node(there, files, reporter)
        assert passes("node --test", bug, cheated), name
        assert passes("node --test", unread, cheated), name


def test_a_summary_that_tested_code_prints_is_one_too_many() -> None:
    real = "Ran 2 tests in 0.001s\n\nOK (skipped=2)\n"
    forged = "Ran 2 tests in 0.001s\n\nOK\n"
    before = read_report("unittest", None, forged)
    after = read_report("unittest", None, real + forged)

    run = "python3 -m unittest"
    assert "summaries" in passes(run, before, after)
    assert "summaries" in passes(run, None, after)
    # Two runs in one line print two.
    twice = read_report("unittest", None, forged * 2)
    assert twice is not None
    assert twice.ran == 4
    assert passes(f"{run} a && {run} b", None, twice) == ""


def test_of_an_unknown_runner_the_exit_code_is_all_there_is() -> None:
    assert read_report(None, None, "Ran 2 tests in 0.1s\n\nOK\n") is None
    assert passes("python setup.py test", None, None) == ""
