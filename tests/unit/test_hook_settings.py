"""The Stop hook in Claude Code's settings: beside what stands there, once."""

import json
import os
import shlex
from pathlib import Path

import pytest

from nestor.cli.hook_settings import MARGIN_S, with_hook
from nestor.errors import InvalidInput

OPTIONS = ["--check", "pytest -q"]
THEIRS = {
    "permissions": {"allow": ["Bash(ls)"]},
    "hooks": {
        "Stop": [{"hooks": [{"type": "command", "command": "say done"}]}],
        "PreToolUse": [{"matcher": "Bash", "hooks": []}],
    },
}


def test_what_stands_there_stays_and_a_second_time_changes_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text(json.dumps(THEIRS))
    path.chmod(0o640)
    change = with_hook(path, OPTIONS, limit_s=300, top=tmp_path)
    assert path.read_text() == json.dumps(THEIRS), "nothing is written yet"
    assert '+            "command": ' in change.diff
    change.write()
    found = json.loads(path.read_text())
    theirs, ours = found["hooks"].pop("Stop")
    assert theirs == THEIRS["hooks"]["Stop"][0]  # type: ignore[index]
    assert found["permissions"] == THEIRS["permissions"]
    assert list(found["hooks"]) == ["PreToolUse"]
    (hook,) = ours["hooks"]
    assert hook["timeout"] == 300 + MARGIN_S
    words = shlex.split(hook["command"])
    assert words[words.index("hook") :] == [
        *("hook", "stop", *OPTIONS, "--repo", "$CLAUDE_PROJECT_DIR")
    ]
    assert path.stat().st_mode & 0o777 == 0o640
    assert with_hook(path, OPTIONS, limit_s=300, top=tmp_path).diff == ""


def test_ours_from_before_is_replaced_and_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with_hook(path, OPTIONS, limit_s=300, top=tmp_path).write()
    with_hook(path, ["--check", "make test"], limit_s=60, top=tmp_path).write()
    (group,) = json.loads(path.read_text())["hooks"]["Stop"]
    (hook,) = group["hooks"]
    assert "make test" in hook["command"]
    assert hook["timeout"] == 90


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"hooks": []}', '{"hooks": {"Stop": {}}}', "// a comment\n{}"],
)
def test_settings_that_are_none_are_left_to_their_owner(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match="mend it first"):
        with_hook(path, OPTIONS, limit_s=300, top=tmp_path)
    assert path.read_text() == text


def test_a_link_that_waits_beside_the_settings_is_not_written_through(
    tmp_path: Path,
) -> None:
    """F2: whoever made the repository chose what lies in it."""
    top, victim = tmp_path / "top", tmp_path / "victim"
    (top / ".claude").mkdir(parents=True)
    victim.write_text("precious\n")
    path = top / ".claude" / "settings.json"
    path.write_text("{}")
    for name in ("settings.json.new", ".settings.json.new", ".settings.json."):
        (path.parent / name).symlink_to(victim)
    names = sorted(path.parent.iterdir())
    with_hook(path, OPTIONS, limit_s=300, top=top).write()
    assert victim.read_text() == "precious\n"
    assert not path.is_symlink()
    assert "hook stop" in path.read_text()
    assert sorted(path.parent.iterdir()) == names, "nothing is left over"


def test_settings_that_lie_elsewhere_are_refused_with_where(tmp_path: Path) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    other.mkdir()
    (other / "settings.json").write_text("{}")
    for link, to in ((".claude", other), ("file", other / "settings.json")):
        top.mkdir(exist_ok=True)
        (top / link).symlink_to(to)
    for path in (top / ".claude" / "settings.json", top / "file"):
        with pytest.raises(InvalidInput, match=f"to {other / 'settings.json'}"):
            with_hook(path, OPTIONS, limit_s=300, top=top)
    assert (other / "settings.json").read_text() == "{}"
    (top / "here").write_text("{}")
    (top / "within").symlink_to("here")
    with_hook(top / "within", OPTIONS, limit_s=300, top=top).write()
    assert "hook stop" in (top / "here").read_text()
    for odd in ("loop", "fifo"):
        os.mkfifo(top / odd) if odd == "fifo" else (top / odd).symlink_to(odd)
        with pytest.raises(InvalidInput):
            with_hook(top / odd, OPTIONS, limit_s=300, top=top)
