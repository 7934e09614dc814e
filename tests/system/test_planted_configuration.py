"""A new file that has the check's program look elsewhere does not count as work."""

import sys
from pathlib import Path

import pytest
from tests.system.workbench import ended, repository, stack, task

from nestor.model.task import TaskStatus

NPM = {
    "package.json": '{"name": "a", "version": "1.0.0", "scripts": {"test": "node --test"}}',
    "sum.js": "module.exports = (a, b) => a - b\n",
    "test/sum.test.js": (
        "require('node:test')('sum', () => {\n"
        "  require('node:assert').equal(require('../sum.js')(2, 2), 4)\n})\n"
    ),
}
MAKE = {
    "Makefile": "check:\n\tgrep -q 'a + b' calc.sh\n",
    "calc.sh": "echo a - b\n",
}
PLANTED: dict[str, tuple[dict[str, str], str | list[str], str, str, str]] = {
    "another shell for npm": (
        NPM,
        "npm test",
        "printf 'script-shell=/bin/true\n' > .npmrc",
        "sed -i 's/a - b/a + b/' sum.js",
        ".npmrc",
    ),
    "what make would rather read": (
        MAKE,
        "make check",
        "printf 'check:\n\t@true\n' > GNUmakefile",
        "sed -i 's/a - b/a + b/' calc.sh",
        "GNUmakefile",
    ),
    "a linter that looks away": (
        {"calc.py": "import os\n"},
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
        "printf 'exclude = [\"*\"]\n' > ruff.toml",
        "printf 'x = 1\n' > calc.py",
        "ruff.toml",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
async def test_it_is_never_verified_and_the_work_is(tmp_path: Path, name: str) -> None:
    files, check, cheat, work, planted = PLANTED[name]
    repo = repository(tmp_path / "repo", files)
    given = {"test_command": check, "mounts": [sys.prefix]}

    async with stack(tmp_path / "home") as nestor:
        cheated = await ended(nestor, task(repo, cheat, **given, max_iterations=1))
        (only,) = await nestor.ralph.iterations(cheated.task_id)
        honest = await ended(nestor, task(repo, f"{cheat}; {work}", **given))

    assert cheated.status is TaskStatus.EXHAUSTED
    assert only.protected_restored == [planted]
    assert honest.status is TaskStatus.VERIFIED, honest.detail
