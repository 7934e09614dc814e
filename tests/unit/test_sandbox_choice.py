"""Which sandbox ``auto`` takes, with a bubblewrap that is there and one that is not."""

import os
from pathlib import Path

import pytest

from nestor.backends.sandbox.choice import sandbox_of


@pytest.fixture
def no_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def chosen(kind: str, home: Path) -> str:
    return sandbox_of(kind, coordinator_url="", home=home).name


def test_bubblewrap_is_taken_where_it_works(tmp_path: Path) -> None:
    assert chosen("auto", tmp_path) == "bubblewrap"


@pytest.mark.usefixtures("no_bubblewrap")
@pytest.mark.parametrize(("user", "taken"), [(1000, "landlock"), (0, "bubblewrap")])
def test_without_it_landlock_is_but_never_by_itself_for_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, taken: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert chosen("auto", tmp_path) == taken
    assert chosen("landlock", tmp_path) == "landlock"
    assert chosen("none", tmp_path) == "none"
    if taken == "bubblewrap":
        why = sandbox_of("auto", coordinator_url="", home=tmp_path).probe()
        assert why is not None
        assert "NESTOR_SANDBOX=landlock" in why
