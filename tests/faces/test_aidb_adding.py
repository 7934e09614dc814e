"""``nestor kb add`` beside what other folders and other machines have added."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.faces.fake_stack import Cli, FakeStack, Reply
from tests.faces.test_aidb_cli import CLIENT, NOTHING, added, docs, known, mark, sent

__all__ = ["docs"]  # the fixture
TEXT = b"# A\n\ntext"
"""What ``docs/a.md`` says."""


def has(stack: FakeStack, *documents: dict[str, Any]) -> None:
    stack.says("GET", "/documents", Reply(200, {**NOTHING, "documents": documents}))
    stack.says("POST", "/documents", added(1))
    for one in documents:
        stack.says("DELETE", f"/documents/{one['id']}", Reply(200, {}))


def told(cli: Cli, *arguments: str) -> dict[str, Any]:
    done = cli("kb", "add", *arguments, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def changed(stack: FakeStack) -> list[str]:
    """What was sent, and what was deleted."""
    items = [
        item["path"]
        for one in stack.asked
        if one["method"] == "POST"
        for item in one["body"]["items"]
    ]
    return items + [path for method, path in sent(stack) if method == "DELETE"]


@pytest.mark.parametrize("what", ["docs", "docs/a.md"])
def test_another_folders_document_is_not_replaced_and_the_remedy_is_told(
    stack: FakeStack, cli: Cli, docs: Path, what: str
) -> None:
    (docs / "sub" / "b.py").unlink()
    of_another = {"metadata": {"folder": mark(docs.parent / "one" / "docs")}}
    has(stack, known(docs, "a.md", b"of another", **of_another))

    done = told(cli, what)

    assert (done["added"], done["unchanged"], done["removed"]) == (0, 0, 0)
    [(path, why)] = done["skipped"]
    assert path == str(docs / "a.md")
    assert "--project" in why
    assert "--replace" in why
    assert bool(done["refused"]) is (what == "docs/a.md")
    assert changed(stack) == []


def test_what_another_folder_added_just_so_is_unchanged_and_stays_its_own(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    (docs / "sub" / "b.py").unlink()
    has(stack, known(docs, "a.md", TEXT, metadata={"folder": "of another"}))
    done = told(cli, "docs")
    assert (done["added"], done["unchanged"], done["skipped"]) == (0, 1, [])
    assert changed(stack) == []


def test_replace_takes_its_place(stack: FakeStack, cli: Cli, docs: Path) -> None:
    (docs / "sub" / "b.py").unlink()
    has(stack, known(docs, "a.md", b"other", metadata={"folder": "x", "k": "v"}))
    done = told(cli, "docs", "--replace")
    assert (done["added"], done["skipped"]) == (1, [])
    [item] = next(a["body"]["items"] for a in stack.asked if a["method"] == "POST")
    assert item["metadata"] == {"folder": mark(docs), "k": "v"}

    assert told(cli, "docs/a.md", "--replace")["added"] == 1
    [item] = [a["body"]["items"] for a in stack.asked if a["method"] == "POST"][-1]
    assert item["metadata"] == {"k": "v"}, "it is of no folder now"


def test_a_file_of_ones_own_folder_and_one_added_by_name_are_replaced_by_name(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    for metadata in ({"folder": mark(docs)}, {}):
        has(stack, known(docs, "a.md", b"before", metadata=metadata))
        stack.asked.clear()
        assert told(cli, "docs/a.md")["added"] == 1
        [item] = next(a["body"]["items"] for a in stack.asked if a["method"] == "POST")
        assert item["metadata"] == metadata


def test_the_same_path_on_another_machine_takes_nothing_away(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    """Two containers that have each their ``/workspace/docs``."""
    has(stack, known(docs, "gone.md", b"gone"), known(docs, "a.md", b"theirs"))
    (cli.home / "client-id").write_text("f" * 32)

    done = told(cli, "docs")

    assert done["removed"] == 0
    assert [path for path, _ in done["skipped"]] == [str(docs / "a.md")]
    assert changed(stack) == ["sub/b.py"]


def test_the_id_of_a_client_is_made_once_and_is_its_own(
    stack: FakeStack, cli: Cli, docs: Path
) -> None:
    file = cli.home / "client-id"
    file.unlink()
    has(stack)
    told(cli, "docs", "--dry-run")
    assert not file.exists(), "a dry run writes nothing"

    told(cli, "docs")
    made = file.read_text()
    told(cli, "docs")

    assert file.read_text() == made != CLIENT
    marks = {
        item["metadata"]["folder"]
        for one in stack.asked
        if one["method"] == "POST"
        for item in one["body"]["items"]
    }
    assert len(marks) == 1
    assert marks != {mark(docs)}
    assert [p.name for p in cli.home.iterdir() if "client" in p.name] == ["client-id"]

    file.write_text("nonsense")
    done = cli("kb", "add", "docs")
    assert done.returncode != 0
    assert "client-id" in done.stderr
    assert "Traceback" not in done.stderr
