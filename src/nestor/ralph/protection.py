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
        *("*.dist-info/**", "*.egg-info/**"),  # their entry points are pytest's plugins
        *("nose2.cfg", "unittest.cfg", "behave.ini", ".behaverc", "robot.toml"),
        # npm, pnpm, yarn and bun: the shell of their scripts, files read before any code
        *(".npmrc", ".pnpmfile.[cm]js", ".yarnrc*", ".yarn/releases/**"),
        *(".yarn/plugins/**", ".pnp.*", "bunfig.toml", "node_modules/.bin/**"),
        *("jest.config.*", "jest.setup.*", "jest.preset.*", "setupTests.*"),
        *("vitest.config.*", "vitest.setup.*", "vitest.workspace.*", ".mocharc*"),
        *("playwright.config.*", "cypress.config.*", "cypress.json", "karma.conf.*"),
        *("wdio.conf.*", "ava.config.*", ".taprc", "jasmine.json", "jasmine.mjs"),
        *("node_modules/jest*/**", "node_modules/@jest/**", "node_modules/mocha/**"),
        *("node_modules/vitest/**", "node_modules/@vitest/**", ".nycrc*", ".c8rc*"),
        *(".cargo/config*", ".config/nextest.toml", "rust-toolchain*", "go.work"),
        *(".mvn/**", "gradle.properties", ".jvmopts", ".sbtopts", ".bazelrc"),
        *("tools/bazel", "*.runsettings", "xunit.runner.json", "Directory.Build.*"),
        *(".rspec*", "phpunit.xml*", "phpunit.dist.xml", "vendor/bin/**"),
        *("vendor/phpunit/**", "codeception.y*ml", "behat.y*ml", ".proverc"),
        *(".busted", "dart_test.yaml", "CTestCustom.cmake", "CTestTestfile.cmake"),
    )
)
"""Files that only configure or shadow a test runner, or what starts it: taken from the
base, and removed where the base has none, because a new ``conftest.py`` can make any test
pass, and a new ``.npmrc`` any script."""

BUILD_FILES = tuple(
    tuple(f"**/{name}" for name in names)
    for names in (
        ("tox.ini", "setup.cfg", "noxfile.py", "pyproject.toml"),
        ("package.json", "pnpm-workspace.yaml", "vite.config.*", "babel.config.*",
         ".babelrc*", "deno.json*"),
        ("Makefile", "makefile", "GNUmakefile", "*.mk"),
        ("justfile", "Justfile", ".justfile"),
        ("[Tt]askfile*.y*ml",),
        ("[Rr]akefile", "[Rr]akefile.rb", "*.rake"),
        ("CMakeLists.txt", "CMake*Presets.json"),
        ("build.gradle*", "settings.gradle*", "gradlew", "gradle/wrapper/**"),
        ("pom.xml", "mvnw"),
        ("build.xml",),
        ("build.sbt",),
        ("mix.exs",),
        ("composer.json",),
    )
)  # fmt: skip
"""Files that also say what "test" means, by tool. Where the base has tests they are taken
from there. In a repository without tests a new one is the agent's to write, but not beside
one of the same tool on the base: make would rather read a ``GNUmakefile``."""

LINTER_FILES = {
    "ruff": ("ruff.toml", ".ruff.toml"),
    "mypy": ("mypy.ini", ".mypy.ini"),
    "flake8": (".flake8",),
    "pylint": (".pylintrc", "pylintrc", ".pylintrc.toml", "pylintrc.toml"),
    "pyright": ("pyrightconfig.json",),
    "eslint": (".eslintrc*", "eslint.config.*", ".eslintignore"),
    "prettier": (".prettierrc*", "prettier.config.*", ".prettierignore"),
    "biome": ("biome.json*", ".biome.json*"),
    "tsc": ("tsconfig*.json",),
    "golangci-lint": (".golangci.*",),
    "clippy": ("clippy.toml", ".clippy.toml"),
    "rubocop": (".rubocop*",),
    "shellcheck": (".shellcheckrc", "shellcheckrc"),
    "pre-commit": (".pre-commit-config.yaml",),
}
"""By the word of a check's command line: what could have it look away."""

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
    (new ones are the agent's to write), the runner's configuration, the files in the
    checks' own command lines and the configuration of linters named there.
    """
    if spec.protected is not None:
        return Globs(spec.protected).match
    tests = [_escape(path) for path in base_files if is_test_file(path)]
    build_files = [
        pattern
        for tool in BUILD_FILES
        if tests or any(map(_anywhere(tool).search, base_files))
        for pattern in tool
    ]
    anywhere = _anywhere([*RUNNER_FILES, *build_files, *_linters(spec)])
    exactly = Globs([*tests, *_named_by_checks(spec, base_files)])
    return lambda path: bool(anywhere.search(path)) or exactly.match(path)


def _anywhere(patterns: Sequence[str]) -> re.Pattern[str]:
    """Compile globs ``**/…`` of ``*`` and ``[…]`` to one expression.

    Asked of every path of a tree, so it must be fast. A folder of a pattern that is a path
    itself is covered, too: it is a link, and leads to what the agent put elsewhere.
    """
    found = []
    for pattern in patterns:
        inside = pattern.removeprefix("**/").removesuffix("/**")
        names = [
            re.escape(name)
            .replace(r"\*", "[^/]*")
            .replace(r"\[", "[")
            .replace(r"\]", "]")
            for name in inside.split("/")
        ]
        found.append("/".join(names) + r"(?:/|\Z)")
        found += ["/".join(names[:n]) + r"\Z" for n in range(1, len(names))]
    return re.compile(rf"(?:\A|/)(?:{'|'.join(found)})")


def _linters(spec: TaskSpec) -> list[str]:
    names = {
        PurePosixPath(word).name
        for check in spec.all_checks
        for word in _words(check.run)
    }
    return [
        f"**/{file}"
        for linter, files in LINTER_FILES.items()
        if linter in names
        for file in files
    ]


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
