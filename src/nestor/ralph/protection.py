"""Which files the agent may write but verification does not believe."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from nestor.model.task import TaskSpec
from nestor.ralph.globs import Globs

RUNNER_FILES = (
    "**/conftest.py",
    "**/pytest.ini",
    "**/.pytest.ini",
    "**/pytest.toml",
    "**/.pytest.toml",
    "**/tox.ini",
    "**/setup.cfg",
    "**/noxfile.py",
    "**/sitecustomize.py",
    "**/usercustomize.py",
    "**/*.pth",
    "pytest.py",
    "pytest/**",
    "_pytest/**",
    "unittest/**",
    "unittest.py",
    "pyproject.toml",
    "package.json",
    "**/jest.config.*",
    "**/vitest.config.*",
    "**/.mocharc*",
    "**/.cargo/config*",
)
"""Runner configuration: restored from the base, and removed where the base has none,
because a new ``conftest.py`` can make any test pass."""

_TEST_FILE = re.compile(
    r"(^|/)(tests?|testing|__tests__|spec|specs)/"
    r"|(^|/)test_[^/]*\.[a-z]+$"
    r"|_test\.[a-z]+$"
    r"|\.(test|spec)\.[a-z]+$"
)


def is_test_file(path: str) -> bool:
    """Tell whether a path looks like a test to a person of the field."""
    return bool(_TEST_FILE.search(path))


def protected(spec: TaskSpec, base_files: Sequence[str]) -> Callable[[str], bool]:
    """Return what tells of a path whether verification takes it from the base.

    What ``protected`` names; where it is not given, the test files that exist on the base
    (new ones are the agent's to write), the runner's configuration and the files in the
    checks' own command lines.
    """
    if spec.protected is not None:
        return Globs(spec.protected).match
    tests = [_escape(path) for path in base_files if is_test_file(path)]
    named = _named_by_checks(spec, base_files)
    return Globs([*RUNNER_FILES, *tests, *named]).match


def _named_by_checks(spec: TaskSpec, base_files: Sequence[str]) -> list[str]:
    known = set(base_files)
    inside = (
        PurePosixPath(spec.workspace.path or "") if spec.workspace else PurePosixPath()
    )
    found = []
    for check in spec.all_checks:
        try:
            words = shlex.split(check.run) if isinstance(check.run, str) else check.run
        except ValueError:  # an unbalanced quote: the shell will say so
            words = check.run.split() if isinstance(check.run, str) else check.run
        for word in words:
            path = str(inside / word.partition("::")[0].removeprefix("./"))
            if path in known:
                found.append(_escape(path))
    return found


def _escape(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)
