"""Which repositories a key without ``admin`` may name, at submit and when the task runs."""

from pathlib import Path

import pytest
from tests.faces.whole import Whole, whole
from tests.system.workbench import git, repository

from nestor.errors import Misconfigured
from nestor.settings import Settings


async def placed(face: Whole, key: str, repo: str, **place: str) -> tuple[int, str]:
    body = {"task": "x", "workspace": {"repo": repo, **place}}
    reply = await face.call("ralph", "POST", "/submit", key=key, json=body)
    return reply.status, str(reply.json.get("detail"))


async def test_only_an_admin_names_a_repository_outside_the_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "srv" / "repos"
    inside = repository(root / "app", {"src/a.py": "", "README.md": ""})
    outside = repository(tmp_path / "srv" / "repos-evil" / "app")
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to(root / "circle")
    (tmp_path / "alias").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    roots = "srv/nothing,alias"  # relative, and through a link
    async with whole(tmp_path / "home", workspace_roots=roots) as face:
        key = await face.key("submit")
        for repo in (
            str(outside),
            str(root / "link"),
            f"{root}/../repos-evil/app",
            f"{root}-evil/app",
            str(tmp_path / "nothing-there"),
            "~no-such-user-here/app",
            str(root / "circle"),
            "/",
            "/" + "x" * 5000,
        ):
            status, why = await placed(face, key, repo)
            assert status == 403, (repo, why)
            assert "NESTOR_WORKSPACE_ROOTS" in why
        for repo, place in (
            (str(inside), {"path": ".."}),
            (str(inside), {"path": "/etc"}),
            (str(inside), {"path": "src/../.."}),
            (str(inside), {"path": "README.md"}),
            (str(inside), {"base": "--upload-pack=x"}),
            ("srv/repos/app", {}),
        ):
            assert (await placed(face, key, repo, **place))[0] == 400, (repo, place)
        assert await face.nestor.ralph.counts() == {}
        assert (await placed(face, key, str(inside), path="src"))[0] == 202
        assert (await placed(face, key, str(tmp_path / "alias" / "app")))[0] == 202
        admin = await face.key("admin")
        assert (await placed(face, admin, str(outside)))[0] == 202


async def test_without_roots_no_other_key_names_a_repository(tmp_path: Path) -> None:
    repo = repository(tmp_path / "app")
    async with whole(tmp_path / "home") as face:
        assert (await placed(face, await face.key("submit"), str(repo)))[0] == 403


def test_a_root_that_leads_nowhere_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NESTOR_WORKSPACE_ROOTS", "~no-such-user-here/repos")
    with pytest.raises(Misconfigured, match="NESTOR_WORKSPACE_ROOTS"):
        Settings.load()


def lead_out(repo: Path, victim: Path, how: str) -> None:
    """Make git read the victim's repository where ``repo`` stands."""
    if how == "gitdir":
        git_dir = repo / ".git"
        git_dir.rename(repo.parent / "old.git")
        git_dir.write_text(f"gitdir: {victim}/.git\n")
    elif how == "git folder is a link":
        (repo / ".git").rename(repo.parent / "old.git")
        (repo / ".git").symlink_to(victim / ".git")
    elif how == "objects are a link":
        (repo / ".git" / "objects").rename(repo.parent / "objects.old")
        (repo / ".git" / "objects").symlink_to(victim / ".git" / "objects")
    elif how == "one pack is a link":
        git(victim, "repack", "-adq")
        for pack in (victim / ".git/objects/pack").iterdir():
            (repo / ".git/objects/pack" / pack.name).symlink_to(pack)
    elif how == "commondir":
        (repo / ".git" / "commondir").write_text(f"{victim}/.git\n")
    else:
        quote = '"' if how == "quoted alternates" else ""
        line = f"{quote}{victim}/.git/objects{quote}\n"
        (repo / ".git/objects/info").mkdir(exist_ok=True)
        (repo / ".git/objects/info/alternates").write_text(line)


@pytest.mark.parametrize(
    "how",
    [
        "gitdir",
        "git folder is a link",
        "objects are a link",
        "one pack is a link",
        "commondir",
        "alternates",
        "quoted alternates",
    ],
)
async def test_a_repository_inside_the_roots_cannot_lead_git_out_of_them(
    tmp_path: Path, how: str
) -> None:
    victim = repository(tmp_path / "private" / "app", {"secret.txt": "s3cr3t"})
    repo = repository(tmp_path / "repos" / "app", {"secret.txt": "s3cr3t"})
    (repo / ".git" / "hooks" / "post-commit").symlink_to("/usr/bin/true")
    roots = str(tmp_path / "repos")
    async with whole(tmp_path / "home", workspace_roots=roots) as face:
        key = await face.key("submit")
        assert (await placed(face, key, str(repo)))[0] == 202
        lead_out(repo, victim, how)
        status, why = await placed(face, key, str(repo))
        assert (status, "what git reads" in why) == (403, True), why


async def test_a_repository_that_became_a_link_before_the_task_ran_is_not_used(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repos" / "app")
    victim = repository(tmp_path / "private" / "app", {"secret.txt": "s3cr3t"})
    home = tmp_path / "home"
    async with whole(home, works=True, workspace_roots=str(repo.parent)) as face:
        key = await face.key("submit")
        body = {
            "task": "x",
            "task_id": "t",
            "backend": "command",
            "command": "cp secret.txt stolen.txt",
            "workspace": {"repo": str(repo)},
        }
        done = await face.call("ralph", "POST", "/submit", key=key, json=body)
        assert done.json["status"] == "awaiting_approval"
        repo.rename(repo.parent / "moved")
        repo.symlink_to(victim)
        yes = {"approved": True}
        await face.call("ralph", "POST", "/tasks/t/approve", json=yes)
        live = await face.call("ralph", "GET", "/tasks/t/events", key=key)
        task = (await face.call("ralph", "GET", "/tasks/t", key=key)).json
    assert b"event: end" in live.body
    assert (task["status"], task["reason"]) == ("failed", "workspace_error")
    assert "is a link" in task["detail"]
    assert not (home / "tasks" / "t" / "history.git").exists()


async def test_a_repository_that_leads_git_out_of_the_roots_after_submit_is_not_copied(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repos" / "app")
    victim = repository(tmp_path / "private" / "app", {"secret.txt": "s3cr3t"})
    home = tmp_path / "home"
    async with whole(home, works=True, workspace_roots=str(repo.parent)) as face:
        key = await face.key("submit")
        body = {
            "task": "x",
            "task_id": "t",
            "backend": "command",
            "command": "cp secret.txt stolen.txt",
            "workspace": {"repo": str(repo)},
        }
        await face.call("ralph", "POST", "/submit", key=key, json=body)
        lead_out(repo, victim, "gitdir")
        yes = {"approved": True}
        await face.call("ralph", "POST", "/tasks/t/approve", json=yes)
        await face.call("ralph", "GET", "/tasks/t/events", key=key)
        task = (await face.call("ralph", "GET", "/tasks/t", key=key)).json
    assert (task["status"], task["reason"]) == ("failed", "workspace_error"), task
    assert "NESTOR_WORKSPACE_ROOTS" in task["detail"]
    assert not (home / "tasks" / "t" / "history.git").exists()


async def test_a_repository_that_was_a_link_when_it_was_let_in_is_used_as_it_was(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repos" / "app")
    other = repository(tmp_path / "repos" / "other", {"other.txt": ""})
    link = tmp_path / "repos" / "current"
    link.symlink_to(repo)
    home = tmp_path / "home"
    async with whole(home, works=True, workspace_roots=str(repo.parent)) as face:
        body = {
            "task": "x",
            "task_id": "t",
            "backend": "command",
            "command": "true",
            "max_iterations": 1,
            "require_approval": True,
            "workspace": {"repo": str(link)},
        }
        assert (await face.call("ralph", "POST", "/submit", json=body)).status == 202
        link.unlink()
        link.symlink_to(other)
        yes = {"approved": True}
        await face.call("ralph", "POST", "/tasks/t/approve", json=yes)
        await face.call("ralph", "GET", "/tasks/t/events")
        task = (await face.call("ralph", "GET", "/tasks/t")).json
        again = await face.call("ralph", "POST", "/submit", json=body)
    assert (task["workspace"], task["status"]) == (str(repo), "unverified"), task
    assert again.status == 200, "the digest is of what was asked"
