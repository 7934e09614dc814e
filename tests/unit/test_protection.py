"""Which files verification takes from the base."""

import pytest

from nestor.model.task import Check, TaskSpec, WorkspaceSpec
from nestor.ralph.protection import is_test_file, protected

BASE = ["src/app.py", "tests/test_app.py", "check.sh", "pyproject.toml", "a[1]_test.py"]


def kept(spec: TaskSpec, *paths: str) -> list[str]:
    is_protected = protected(spec, BASE)
    return [path for path in paths if is_protected(path)]


def test_by_default_the_tests_of_the_base_are_protected_and_new_ones_are_not() -> None:
    spec = TaskSpec(task="x")
    assert kept(spec, "tests/test_app.py", "tests/test_new.py", "src/app.py") == [
        "tests/test_app.py"
    ]
    assert kept(spec, "a[1]_test.py", "a1_test.py") == ["a[1]_test.py"]


@pytest.mark.parametrize(
    "path",
    [
        "conftest.py",
        "src/deep/conftest.py",
        "pytest.ini",
        "pytest.py",
        "pytest/__init__.py",
        "sitecustomize.py",
        "x.pth",
        "pyproject.toml",
        "package.json",
        "x.dist-info/entry_points.txt",
        "src/x.egg-info/entry_points.txt",
        ".npmrc",
        "deep/.npmrc",
        ".yarnrc.yml",
        ".pnpmfile.cjs",
        ".yarn/releases/yarn.cjs",
        "bunfig.toml",
        "node_modules/.bin/jest",
        "node_modules",  # a link to such a folder
        "node_modules/jest-circus/index.js",
        "jest.setup.ts",
        "vite.config.mts",
        "playwright.config.ts",
        ".mvn/maven.config",
        ".mvn",
        ".cargo/config.toml",
        ".cargo",
        "gradle.properties",
        "settings.gradle.kts",
        "go.work",
        "rust-toolchain.toml",
        ".rspec",
        ".rspec-local",
        "phpunit.xml.dist",
        "vendor/bin/phpunit",
        "GNUmakefile",
        "taskfile.yml",
        ".justfile",
        "CMakeUserPresets.json",
        "tools/bazel",
        ".bazelrc",
    ],
)
def test_a_runner_configuration_is_protected_also_when_it_is_new(path: str) -> None:
    assert kept(TaskSpec(task="x"), path) == [path]


def test_files_that_a_check_names_are_protected() -> None:
    spec = TaskSpec(task="x", checks=[Check(run="sh ./check.sh 'an open quote")])
    assert kept(spec, "check.sh", "src/app.py") == ["check.sh"]
    inside = TaskSpec(
        task="x",
        workspace=WorkspaceSpec(repo="/r", path="src"),
        test_command=["python", "app.py::test"],
    )
    assert kept(inside, "src/app.py") == ["src/app.py"]


def test_what_the_task_names_replaces_the_defaults() -> None:
    assert kept(TaskSpec(task="x", protected=[]), *BASE) == []
    only = TaskSpec(task="x", protected=["src/**"])
    assert kept(only, *BASE) == ["src/app.py"]
    flat = TaskSpec(task="x", protected=["*.py"])
    assert kept(flat, "top.py", "src/app.py") == ["top.py"]
    deep = TaskSpec(task="x", protected=["**/*.py"])
    assert kept(deep, "top.py", "src/app.py") == ["top.py", "src/app.py"]


@pytest.mark.parametrize(
    "path", ["tests/x.txt", "a/test_b.py", "b_test.go", "x.spec.ts", "__tests__/a.js"]
)
def test_what_a_person_calls_a_test_is_one(path: str) -> None:
    assert is_test_file(path)
    assert not is_test_file("src/contest.py")
    assert not is_test_file("src/latest/app.py")


@pytest.mark.parametrize(
    ("there", "new"),
    [
        ("Makefile", "GNUmakefile"),
        ("deep/makefile", "other/rules.mk"),
        ("pyproject.toml", "tox.ini"),
        ("package.json", "deep/package.json"),
        ("package.json", "vite.config.js"),
        ("justfile", ".justfile"),
        ("build.gradle", "settings.gradle.kts"),
        ("pom.xml", "mvnw"),
    ],
)
def test_without_tests_no_build_file_stands_before_one_of_the_base(
    there: str, new: str
) -> None:
    is_protected = protected(TaskSpec(task="x"), ["src/app.py", there])

    assert is_protected(there)
    assert is_protected(new)
    # The first one of its tool is the agent's to write.
    assert not protected(TaskSpec(task="x"), ["src/app.py"])(new)


def test_work_is_not_taken_for_configuration() -> None:
    work = ["src/npmrc.py", "vite.config/x.py", "a/Makefile.am", "tools/x.py"]
    assert kept(TaskSpec(task="x"), *work, "vendor/a.go", "node_modules/a/b.js") == []


@pytest.mark.parametrize(
    ("run", "path"),
    [
        ("ruff check . && echo ok", ".ruff.toml"),
        (["python", "-m", "mypy", "src"], "mypy.ini"),
        ("./node_modules/.bin/eslint .", "src/.eslintrc.json"),
        ("npx tsc --noEmit", "tsconfig.json"),
    ],
)
def test_a_linter_that_a_check_names_is_not_told_to_look_away(
    run: str | list[str], path: str
) -> None:
    assert kept(TaskSpec(task="x", checks=[Check(run=run)]), path) == [path]
    assert kept(TaskSpec(task="x", checks=[Check(run="make")]), path) == []
