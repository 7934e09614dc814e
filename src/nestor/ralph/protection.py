"""Which files the agent may write but verification does not believe."""

import posixpath
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from nestor.model.task import TaskSpec
from nestor.ralph.globs import Globs

RUNNER_FILES = tuple(
    f"**/{name}"
    for name in (
        *("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml"),
        *("sitecustomize.py", "usercustomize.py", "*.pth", ".coveragerc"),
        *("pytest.py", "pytest/**", "_pytest/**", "unittest.py", "unittest/**"),
        *("jest.config.*", "vitest.config.*", ".mocharc*", ".cargo/config*"),
    )
)
"""Files that only configure or shadow a test runner: taken from the base, and removed
where the base has none, because a new ``conftest.py`` can make any test pass."""

BUILD_FILES = tuple(
    f"**/{name}"
    for name in (
        *("tox.ini", "setup.cfg", "noxfile.py", "pyproject.toml", "package.json"),
        *("Makefile", "makefile", "GNUmakefile", "*.mk", "justfile", "Justfile"),
        *("Taskfile.y*ml", "Rakefile", "CMakeLists.txt", "build.gradle*", "pom.xml"),
    )
)
"""Files that also say what "test" means. Where the base has tests they are taken from
there; in a repository without tests a new one is the agent's to write."""

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
    builds = Globs(BUILD_FILES).match
    build_files: Sequence[str] = BUILD_FILES
    if not tests:
        build_files = [_escape(path) for path in base_files if builds(path)]
    named = _named_by_checks(spec, base_files)
    return Globs([*RUNNER_FILES, *build_files, *tests, *named]).match


def _named_by_checks(spec: TaskSpec, base_files: Sequence[str]) -> list[str]:
    known = set(base_files)
    inside = PurePosixPath(
        (spec.workspace.path or "") if spec.workspace is not None else ""
    )
    found = set()
    for check in spec.all_checks:
        folder = inside
        words = _words(check.run)
        for before, word in zip(["", *words], words, strict=False):
            if before == "cd":
                folder = _joined(folder, word)
            for part in (word, word.partition("=")[2]):
                path = str(_joined(folder, part.partition("::")[0]))
                if path in known:
                    found.add(_escape(path))
    return sorted(found)


def _words(run: str | list[str]) -> list[str]:
    if not isinstance(run, str):
        return [word for part in run for word in (part, *part.split())]
    try:
        lexer = shlex.shlex(run, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        return list(lexer)
    except ValueError:  # an unbalanced quote: the shell will say so
        return run.split()


def _joined(folder: PurePosixPath, word: str) -> PurePosixPath:
    """Resolve a word of a command line against the folder it runs in."""
    if word.startswith("/workspace/"):
        folder, word = PurePosixPath(), word.removeprefix("/workspace/")
    return PurePosixPath(posixpath.normpath(folder / word))


def _escape(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)
