"""``nestor kb`` as a process beside a stack that answers as it is told."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.faces.fake_stack import HOSTILE, Cli, FakeStack, Reply, refusal

NOTHING: dict[str, Any] = {"documents": [], "counts": {}, "next": None}


CLIENT = "0123456789abcdef" * 2


def mark(folder: Path) -> str:
    return hashlib.sha256(f"{CLIENT}\0{folder}".encode()).hexdigest()[:16]


def known(folder: Path, path: str, content: bytes, **how: Any) -> dict[str, Any]:
    return {
        "id": f"id-{path}",
        "project": folder.name,
        "path": path,
        "collection": "codebase-context",
        "content_hash": hashlib.sha256(content).hexdigest(),
        "metadata": {"folder": mark(folder)},
        **how,
    }


@pytest.fixture
def docs(cli: Cli) -> Path:
    folder = cli.cwd / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# A\n\ntext")
    (folder / "sub" / "b.py").write_text("x = 1\n")
    (cli.home / "client-id").write_text(f"{CLIENT}\n")
    return folder


def sent(stack: FakeStack) -> list[tuple[str, str]]:
    return [(one["method"], one["path"].partition("?")[0]) for one in stack.asked]


def added(count: int) -> Reply:
    return Reply(200, {"items": [{"unchanged": False}] * count})


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_file_that_is_refused_by_its_name_ends_with_1(
    stack: FakeStack, cli: Cli, docs: Path, flags: tuple[str, ...]
) -> None:
    (docs / "empty.md").write_bytes(b"")
    stack.says("GET", "/documents", Reply(200, NOTHING))
    stack.says("POST", "/documents", added(1))
    done = cli("kb", "add", "docs/empty.md", "docs/a.md", *flags)
    assert done.returncode == 1, done.stdout
    assert str(docs / "empty.md") in done.stdout
    assert "empty" in done.stdout


def test_what_can_be_read_is_sent_and_the_rest_is_named_with_its_reason(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    (docs / ".hidden").mkdir()
    (docs / "binary.txt").write_bytes(b"\0\1")
    (docs / "empty.md").write_bytes(b"")
    (docs / "link.md").symlink_to("/etc/passwd")
    (docs / "latin.md").write_bytes("Grüße".encode("latin-1"))
    stack.says("GET", "/documents", Reply(200, NOTHING))
    stack.says("POST", "/documents", added(2))
    stack.says("PUT", "/documents/file", Reply(201, {"unchanged": False}))

    done = cli("kb", "add", "docs")

    assert done.returncode == 0, done.stderr
    assert "3 added, 0 unchanged, 0 removed" in done.stdout
    for counted in ("1 hidden", "1 binary", "1 empty", "1 links that lead out"):
        assert counted in done.stdout, counted
    assert "link.md: a link that leads out of the folder" in done.stdout
    (batch,) = [one for one in stack.asked if one["method"] == "POST"]
    assert batch["body"]["items"] == [
        {
            "project": "docs",
            "path": path,
            "content": content,
            "collection": "codebase-context",
            "metadata": {"folder": mark(docs)},
        }
        for path, content in (("a.md", "# A\n\ntext"), ("sub/b.py", "x = 1\n"))
    ]
    (file,) = [one for one in stack.asked if one["method"] == "PUT"]
    assert file["body"] == "Grüße".encode("latin-1")
    assert "path=latin.md" in file["path"]


def test_only_what_changed_is_sent_and_what_is_gone_is_forgotten(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    elsewhere = {"metadata": {"folder": "of another"}}
    page = [
        known(docs, "a.md", b"# A\n\ntext"),
        known(docs, "gone.md", b"gone"),
        known(docs, "other.md", b"other", **elsewhere),
        known(docs, "by-hand.md", b"by hand", metadata={}),
    ]
    more = [known(docs, "sub/b.py", b"x = 0\n"), known(docs, "sub/gone.py", b"")]
    stack.says(
        "GET",
        "/documents",
        Reply(200, {**NOTHING, "documents": page, "next": "token"}),
        Reply(200, {**NOTHING, "documents": more}),
    )
    stack.says("POST", "/documents", added(1))
    stack.says("DELETE", "/documents/id-gone.md", Reply(200, {}))
    stack.says("DELETE", "/documents/id-sub%2Fgone.py", Reply(200, {}))

    done = cli("kb", "add", "docs", "--json")

    told = json.loads(done.stdout)
    assert (told["added"], told["unchanged"], told["removed"]) == (1, 1, 2)
    assert "after=token" in stack.asked[1]["path"]
    (batch,) = [one for one in stack.asked if one["method"] == "POST"]
    assert [item["path"] for item in batch["body"]["items"]] == ["sub/b.py"]
    gone = [path for method, path in sent(stack) if method == "DELETE"]
    assert gone == ["/documents/id-gone.md", "/documents/id-sub%2Fgone.py"]


def test_a_folder_that_cannot_be_opened_takes_nothing_away(
    stack: FakeStack, cli: Cli, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nestor.cli import adding, folder  # noqa: PLC0415 - the part itself: root opens any folder

    stack.says(
        "GET",
        "/documents",
        Reply(200, {**NOTHING, "documents": [known(docs, "shut/x.md", b"x")]}),
    )
    stack.says("POST", "/documents", added(2))
    walk = folder.walk

    def shut(root: Path, summary: Any) -> Any:
        summary.skip("shut", folder.CLOSED, "Permission denied")
        yield from walk(root, summary)

    monkeypatch.setattr(adding, "walk", shut)
    from nestor.cli.client import Stack  # noqa: PLC0415
    from nestor.cli.render import Screen  # noqa: PLC0415

    reached = Stack("127.0.0.1", {"aidb": stack.port}, "key")
    done = adding.Adding(reached, Screen()).add([docs], quiet=True)

    assert done["removed"] == 0
    assert not [path for method, path in sent(stack) if method == "DELETE"]


def test_a_dry_run_changes_nothing(stack: FakeStack, cli: Cli, docs: Path) -> None:
    found = {**NOTHING, "documents": [known(docs, "gone.md", b"gone")]}
    stack.says("GET", "/documents", Reply(200, found))

    done = cli("kb", "add", "docs", "--dry-run")

    assert "2 would be added, 0 unchanged, 1 would be removed" in done.stdout
    assert {method for method, _ in sent(stack)} == {"GET"}


def test_one_that_cannot_be_read_holds_up_no_other(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    why = f"a line is too long {HOSTILE}"
    stack.says("GET", "/documents", Reply(200, NOTHING))
    stack.says(
        "POST", "/documents", refusal(400, "items.0: no", ("items.0.content", why))
    )
    stack.says(
        "PUT",
        "/documents/file",
        refusal(400, f"a.md: {why}", ("content", why)),
        Reply(201, {"unchanged": False}),
    )

    done = cli("kb", "add", "docs")

    assert done.returncode == 0
    assert "1 added" in done.stdout
    assert "a.md: a line is too long" in done.stdout
    assert "\x1b" not in done.stdout


def test_two_files_of_one_name_in_one_project_are_told(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    other = cli.cwd / "other"
    other.mkdir()
    (other / "a.md").write_text("another")
    stack.says("GET", "/documents", Reply(200, NOTHING))
    stack.says("POST", "/documents", added(2))

    done = cli("kb", "add", "docs", "other", "--project", "p")

    assert "another file of this name" in done.stdout
    (batch,) = [one for one in stack.asked if one["method"] == "POST"]
    assert [item["path"] for item in batch["body"]["items"]] == ["a.md", "sub/b.py"]


def test_many_files_go_in_batches_with_a_bar_on_a_terminal_only(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    for number in range(248):
        (docs / f"n{number}.md").write_text("n" * 10)
    stack.says("GET", "/documents", Reply(200, NOTHING))
    stack.says("POST", "/documents", added(1))

    quiet = cli("kb", "add", "docs")
    sizes = [len(a["body"]["items"]) for a in stack.asked if a["method"] == "POST"]
    _, shown = cli.on_a_terminal("kb", "add", "docs")

    assert sizes == [100, 100, 50]
    assert "250" not in quiet.stdout
    assert "/250" in shown


def test_search_sends_its_filters_and_shows_where_a_hit_stands(
    stack: FakeStack, cli: Cli
) -> None:
    item = {
        "source": "p/a.pdf#One",
        "text": f"Words {HOSTILE}",
        "score": 1.5,
        "provenance": {"page": 3, "first_line": 7},
    }
    degraded = ["index: full-text search in SQL used"]
    answer = Reply(200, {"items": [item], "degraded": degraded})
    stack.says("POST", "/context", answer)
    stack.says("POST", "/search", answer)

    done = cli("kb", "search", "x", "--project", "p", "--where", "lang=en")
    cli("kb", "search", "x", "--leg", "dense", "--path-prefix", "src/")

    assert "p/a.pdf#One, page 3  (score 1.500)" in done.stdout
    assert "degraded: index" in done.stdout
    assert "\x1b" not in done.stdout
    first, second = stack.asked
    assert first["body"] == {
        "query": "x",
        "limit": 5,
        "projects": ["p"],
        "metadata": {"lang": "en"},
    }
    assert second["body"]["leg"] == "dense"
    assert second["body"]["path_prefix"] == "src/"
    assert cli("kb", "search", "x", "--where", "nonsense").returncode == 2
    assert cli("kb", "search", "x", "--leg", "nonsense").returncode == 2


@pytest.mark.parametrize(
    ("problem", "missing", "says_how"),
    [
        (None, [], False),
        ("2 chunks are not in the search index", ["a", "b"], True),
        ("those of minilm are still being made", [], False),
    ],
)
def test_verify_ends_with_1_when_something_differs_and_says_what_to_do(
    stack: FakeStack,
    cli: Cli,
    problem: str | None,
    missing: list[str],
    says_how: bool,
) -> None:
    told = {
        "consistent": problem is None,
        "documents": 1,
        "chunks": 3,
        "indexed": 1,
        "waiting": 0,
        "without_vector": None,
        "missing": missing,
        "extra": [],
        "vectors_lost": [],
        "problems": [] if problem is None else [problem],
    }
    stack.says("POST", "/verify", Reply(200, told))

    done = cli("kb", "verify")

    assert done.returncode == (0 if problem is None else 1)
    assert ("nestor kb reindex" in done.stdout) is says_how
    assert problem is None or problem in done.stdout
    assert json.loads(cli("kb", "verify", "--json").stdout) == told


def test_list_reads_every_page(stack: FakeStack, cli: Cli) -> None:
    row = {"project": "p", "size_bytes": 1, "chunks": 1, "added_at": "now"}
    stack.says(
        "GET",
        "/documents",
        Reply(200, {**NOTHING, "documents": [row | {"id": "1"}], "next": "t"}),
        Reply(200, {**NOTHING, "documents": [row | {"id": "2"}]}),
    )
    told = json.loads(cli("kb", "list", "--project", "p", "--json").stdout)
    assert [one["id"] for one in told["documents"]] == ["1", "2"]
    assert "project=p" in stack.asked[0]["path"]
