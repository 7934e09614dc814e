"""Walking real trees: what is taken, what is left out, and that it is said."""

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nestor.cli import folder as walking
from nestor.cli.folder import Summary, walk
from nestor.cli.ignore_rules import IgnoreRules


def put(root: Path, *names: str, text: str = "walrus\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root: Path, *args: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *args], check=True, capture_output=True, text=True
    ).stdout


def taken(root: Path) -> tuple[list[str], Summary]:
    summary = Summary()
    found = [file.relative for file in walk(root, summary)]
    assert summary.taken == len(found)
    return found, summary


@pytest.fixture(params=["no git", "git"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    if request.param == "git":
        git(path, "init", "-q")
    return path


def test_files_come_in_order_with_their_size(root: Path) -> None:
    put(root, "b.md", "a/z.py", "a/b/c.txt", "c/d.html")

    found = list(walk(root, summary := Summary()))

    assert [(f.relative, f.path, f.size) for f in found] == [
        (name, root / name, 7) for name in ("b.md", "a/z.py", "a/b/c.txt", "c/d.html")
    ]
    assert (summary.taken, summary.taken_bytes) == (4, 28)
    assert not summary.named


def test_what_ignore_files_name_is_left_out_and_counted(root: Path) -> None:
    put(root, ".gitignore", text="*.log\n/build/\n!keep.log\ndocs/*.txt\n")
    put(root, "sub/.gitignore", text="secret*\n!a.log\n")
    put(root, ".nestorignore", text="*.csv\nold/\n")
    put(root, "a.log", "keep.log", "build/a.md", "sub/build/a.md", "docs/a.txt")
    put(root, "docs/b/a.txt", "sub/secret.md", "sub/a.log", "a.csv", "sub/old/a.md")

    found, summary = taken(root)

    assert sorted(found) == ["docs/b/a.txt", "keep.log", "sub/a.log", "sub/build/a.md"]
    assert summary.skipped[walking.IGNORED] == 4
    assert summary.skipped[walking.IGNORED_BY_US] == 2


def test_what_is_tracked_is_taken_though_it_is_ignored(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    put(tmp_path, "a.log", "b.log", "new.md")
    put(tmp_path, ".gitignore", text="*.log\n")
    git(tmp_path, "add", "-f", "a.log")

    assert taken(tmp_path)[0] == ["a.log", "new.md"]


def test_dependencies_caches_and_hidden_names_are_left_out(root: Path) -> None:
    put(root, "node_modules/a/b.js", "x/__pycache__/a.py", ".venv/a.py", "venv/a.py")
    put(root, ".env", ".github/a.md", ".hidden.md", "x/a.md")

    found, summary = taken(root)

    assert found == ["x/a.md"]
    assert summary.skipped[walking.NEVER] >= 4
    assert summary.skipped[walking.HIDDEN] == 3


def test_what_is_no_text_is_left_out_by_its_name_or_its_content(root: Path) -> None:
    put(root, "a.png", "b.md", "c.zip", text="text")
    (root / "d.md").write_bytes(b"walrus\0")
    (root / "e.pdf").write_bytes(b"%PDF-1.7\0")
    (root / "f.txt").write_bytes("walrus".encode("utf-16"))
    (root / "g.md").touch()

    found, summary = taken(root)

    assert found == ["b.md", "e.pdf", "f.txt"]
    assert summary.skipped == {walking.BINARY: 3, walking.EMPTY: 1} | (
        {walking.NEVER: 1} if (root / ".git").exists() else {}
    )


def test_links_pipes_sockets_and_large_files_are_left_out_by_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = root.parent / "outside"
    put(outside, "secret.md")
    put(root, "a.md", "in/b.md")
    (root / "inside.md").symlink_to("a.md")
    (root / "out.md").symlink_to(outside / "secret.md")
    (root / "out-folder").symlink_to(outside)
    (root / "in-folder").symlink_to("in")
    (root / "zero.md").symlink_to("/dev/zero")
    (root / "circle.md").symlink_to("circle.md")
    os.mkfifo(root / "pipe.md")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.md")
    with (root / "large.md").open("wb") as file:
        file.truncate(1 << 30)

    found, summary = taken(root)

    assert found == ["a.md", "in/b.md"]
    counts = dict(summary.skipped)
    if not (root / ".git").exists():  # git lists no pipe and no socket
        assert counts[walking.NO_FILE] == 2
    assert counts[walking.LINK] == 3
    assert counts[walking.LINK_OUT] == 3
    assert counts[walking.TOO_LARGE] == 1
    assert ("large.md", "over 32 MiB: 1,073,741,824 bytes") in summary.named
    assert ("zero.md", "a link that leads out of the folder") in summary.named


def test_names_that_would_harm_a_terminal_are_left_out_and_shown_harmless(
    root: Path,
) -> None:
    put(root, "a.md", "b\x1b[31m.md", "c\n.md", "gpj.\u202e.md", "ok é 🦭.md")
    (root / os.fsdecode(b"bad\xff.md")).write_text("x")

    found, summary = taken(root)

    assert found == ["a.md", "ok é 🦭.md"]
    assert summary.skipped[walking.BAD_NAME] == 4
    assert all(path.isprintable() for path, _ in summary.named)


def test_a_repository_in_the_folder_has_rules_of_its_own(root: Path) -> None:
    inner = root / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    put(inner, ".gitignore", text="/b.md\n")
    put(root, ".gitignore", text="a.log\n")
    put(root, "inner/a.md", "inner/b.md", "inner/sub/c.md", "d.md")

    assert taken(root)[0] == ["d.md", "inner/a.md", "inner/sub/c.md"]


def test_a_folder_below_the_top_of_a_repository_follows_its_rules(
    tmp_path: Path,
) -> None:
    git(tmp_path, "init", "-q")
    put(tmp_path, ".gitignore", text="*.log\n/out/\n")
    put(tmp_path, "docs/a.log", "docs/a.md", "out/a.md", "out/a.log")

    assert taken(tmp_path / "docs")[0] == ["a.md"]
    # Ignored as a whole, but asked for by name.
    assert "a.md" in taken(tmp_path / "out")[0]


def test_a_repository_starts_no_program(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    git(root, "init", "-q")
    put(root, "a.md")
    git(root, "add", "a.md")
    proof = tmp_path / "proof"
    git(root, "config", "core.fsmonitor", f"touch {proof} #")
    git(root, "config", "core.hooksPath", str(root))

    assert taken(root)[0] == ["a.md"]
    assert not proof.exists()


def test_a_missing_git_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q")
    put(tmp_path, ".gitignore", text="*.log\n")
    put(tmp_path, "a.log", "a.md")
    monkeypatch.setenv("PATH", "/nonexistent")

    assert taken(tmp_path)[0] == ["a.md"]


def test_what_cannot_be_opened_is_named(root: Path) -> None:
    deep = root
    for _ in range(40):  # over PATH_MAX in the end
        deep = deep / ("d" * 120)
    here = os.open(root, os.O_RDONLY)
    for part in deep.relative_to(root).parts:
        os.mkdir(part, dir_fd=here)
        inner = os.open(part, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    handle = os.open("deep.md", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(handle, b"walrus")
    os.close(handle)
    os.close(here)
    put(root, "a.md")

    found, summary = taken(root)

    assert found == ["a.md"]
    assert summary.skipped[walking.CLOSED] or summary.skipped[walking.IGNORED]
    shutil.rmtree(root, ignore_errors=True)


def test_a_folder_that_is_not_there_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(walk(tmp_path / "absent", Summary()))


def test_a_pattern_cannot_take_long() -> None:
    rules = IgnoreRules(["*a" * 60 + "b", "**/" * 60 + "x"])

    assert rules.ignores(["a" * 250], folder=False) is None
    assert rules.ignores(["a"] * 200, folder=False) is None


NAMES = ["a", "b", "ab", "a.b", "foo", "[x]", "#c", "!d", "e f", "z*"]
PATTERNS = ["a", "*", "**", "a*", "*b", "?", "[ab]", "[!a]", "[^b]", "foo", "a.b"]


def _pattern(chance: random.Random) -> str:
    pattern = "/".join(
        chance.choice([*PATTERNS, r"\#c", r"\!d", "e f", r"z\*", r"\[x\]"])
        for _ in range(chance.choice([1, 1, 1, 2, 2, 3]))
    )
    return (
        chance.choice(["", "", "", "!"])
        + chance.choice(["", "", "/"])
        + pattern
        + chance.choice(["", "", "/", " "])
    )


def test_patterns_mean_what_git_says_they_do(
    tmp_path: Path,
    counted: Callable[[str, int, int], Iterator[tuple[int, random.Random]]],
) -> None:
    git(tmp_path, "init", "-q")
    for number, chance in counted("ignore_rules", 60, 2_000):
        lines = [_pattern(chance) for _ in range(chance.randint(1, 4))]
        (tmp_path / ".gitignore").write_text("\n".join(lines) + "\n")
        paths = {
            "/".join(chance.choice(NAMES) for _ in range(chance.randint(1, 4)))
            for _ in range(20)
        }
        told = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "-z", "--stdin"],
            input="\0".join(sorted(paths)),
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        rules = IgnoreRules.read(tmp_path / ".gitignore")
        assert rules is not None
        ours = {path for path in paths if _ignored(rules, path.split("/"))}
        assert ours == set(filter(None, told.split("\0"))), (number, lines)


def _ignored(rules: IgnoreRules, names: list[str]) -> bool:
    return any(
        rules.ignores(names[:count], folder=count < len(names))
        for count in range(1, len(names) + 1)
    )
