"""What an agent does to tests, to links and to git's own files counts for nothing."""

import asyncio
from pathlib import Path

from tests.system.workbench import (
    BUGGY,
    FIXED,
    TESTS,
    ended,
    git,
    repository,
    stack,
    task,
)

from nestor.model.task import TaskStatus

FIX = f"printf '%s' '{FIXED}' > calc.py"
CHECK = ["python3", "-m", "unittest", "-v", "tests.test_calc"]
FILES = {"calc.py": BUGGY, "tests/__init__.py": "", "tests/test_calc.py": TESTS}
EASY = f"printf '%s' '{TESTS.replace(', 4)', ', 0)')}'"
HOOKS = "post-checkout pre-commit post-commit post-index-change fsmonitor-watchman"
TRICKS = {
    "deletes all tests": "rm -rf tests",
    "a link for a test": (f"{EASY} > easy.py; ln -sf ../easy.py tests/test_calc.py"),
    "a link for the folder": (
        f"mkdir mine; touch mine/__init__.py; {EASY} > mine/test_calc.py;"
        " rm -rf tests; ln -s mine tests"
    ),
    "a folder for a test": "rm tests/test_calc.py; mkdir tests/test_calc.py",
    "a repository for the folder": (
        f"rm -rf tests; git init -q tests; touch tests/__init__.py;"
        f" {EASY} > tests/test_calc.py"
    ),
    "attributes and ignores": (
        f"{EASY} > tests/test_calc.py; printf 'tests export-ignore\\n* filter=evil\\n' >"
        " .gitattributes; echo tests > .gitignore; git rm -rq --cached tests;"
        " git config filter.evil.smudge 'true'; git config filter.evil.clean 'true'"
    ),
    "an index that looks away": (
        f"git update-index --assume-unchanged tests/test_calc.py;"
        f" {EASY} > tests/test_calc.py"
    ),
}


async def test_whatever_is_done_to_the_tests_is_undone(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo", FILES)

    async with stack(tmp_path / "home", workers=3) as nestor:
        found = await asyncio.gather(
            *(
                ended(
                    nestor,
                    task(repo, trick, test_command=CHECK, max_iterations=1),
                    within_s=240,
                )
                for trick in TRICKS.values()
            )
        )
        mended = await ended(
            nestor,
            task(
                repo,
                f"{TRICKS['a link for the folder']}; {FIX}",
                test_command=CHECK,
                task_id="mended",
            ),
        )

    for name, done in zip(TRICKS, found, strict=True):
        assert done.status is TaskStatus.EXHAUSTED, (name, done.detail)
    # Beside an honest change the tricks are undone, and the rest of it is kept.
    assert mended.status is TaskStatus.VERIFIED
    assert git(repo, "show", "nestor/mended:tests/test_calc.py") == TESTS
    assert git(repo, "show", "nestor/mended:calc.py") == FIXED


async def test_nothing_of_an_agents_git_is_run_or_written_outside(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo", FILES)
    outside, marker = tmp_path / "outside", tmp_path / "marker"
    outside.mkdir()
    own = {p.name: p.read_bytes() for p in (repo / ".git").rglob("*") if p.is_file()}
    plant = f"printf '#!/bin/sh\\ntouch {marker}\\n'"
    planted = (
        f"mkdir -p .git/hooks evil; for h in {HOOKS}; do {plant} > .git/hooks/$h;"
        " cp .git/hooks/$h evil/; done; chmod +x .git/hooks/* evil/*;"
        " git config core.hooksPath evil; git config core.fsmonitor evil/pre-commit;"
        f" git config core.sshCommand 'touch {marker}';"
        f" git config diff.external 'touch {marker}';"
        f" git config filter.x.clean 'touch {marker}; cat';"
        " echo '* filter=x' > .gitattributes"
    )
    escape = f"rm -rf tests; ln -s {outside} tests; ln -s {outside}/new.txt new.txt"

    async with stack(tmp_path / "home") as nestor:
        hooked = await ended(
            nestor,
            task(repo, f"{planted}; {FIX}", test_command=CHECK, task_id="hooked"),
        )
        linked = await ended(nestor, task(repo, f"{escape}; {FIX}", test_command=CHECK))
        flags = await ended(
            nestor, task(repo, "true", test_command="echo flags $GOFLAGS; : go test")
        )
        (base,) = await nestor.ralph.base_verdicts(flags.task_id)

    assert (hooked.status, linked.status) == (TaskStatus.VERIFIED,) * 2
    assert not marker.exists()
    assert list(outside.iterdir()) == []
    now = {p.name: p.read_bytes() for p in (repo / ".git").rglob("*") if p.is_file()}
    assert {name for name in own if now.get(name) != own[name]} <= {"index"}
    # go is told to name its tests; ended without them, it is not believed.
    assert "flags -v" in base.output_tail
    assert not base.passed
