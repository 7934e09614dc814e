"""The ``[[backend]]`` tables of nestor.toml: taken as written, or refused by their place."""

from pathlib import Path

import pytest

from nestor.errors import Misconfigured
from nestor.model.backend_table import BackendTable
from nestor.settings import Settings
from nestor.wiring import refuse_limits_of_nobody

CLAUDE = """
[[backend]]
name = "claude"
concurrency = 1
starts_per_minute = 6
memory_bytes = 1073741824
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NESTOR_HOME", str(tmp_path / "home"))


def loaded(text: str) -> Settings:
    Path("nestor.toml").write_text(text)
    found = Settings.load()
    refuse_limits_of_nobody(found)
    return found


def test_tables_are_taken_as_written_beside_the_plain_settings() -> None:
    text = "workers = 3\ndrain_s = 0\n" + CLAUDE + '[[backend]]\nname = "aider"\n'
    found = loaded(text)
    assert (found.workers, found.drain_s) == (3, 0)
    assert found.backends == (
        BackendTable(
            name="claude", concurrency=1, starts_per_minute=6, memory_bytes=1 << 30
        ),
        BackendTable(name="aider"),
    )


def test_without_a_file_there_are_none_and_draining_takes_twenty_seconds() -> None:
    assert Settings.load().backends == ()
    assert Settings.load().drain_s == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CLAUDE + "rpm = 3\n", "backend.0.rpm: unknown"),
        (
            CLAUDE.replace("concurrency", "concurency"),
            "backend.0.concurency: unknown (did you mean concurrency?)",
        ),
        (CLAUDE.replace("= 6", "= 0"), "backend.0.starts_per_minute: "),
        (CLAUDE.replace("= 6", '= "6"'), "backend.0.starts_per_minute: "),
        (CLAUDE.replace("1073741824", "5"), "backend.0.memory_bytes: "),
        ("[[backend]]\nconcurrency = 1\n", "backend.0.name: is missing"),
        (CLAUDE + CLAUDE, "backend.1.name: 'claude' is the name of backend.0 already"),
        (CLAUDE.replace('"claude"', '"claud"'), "(did you mean claude?)"),
        ("[backend]\nname = 'claude'\n", "write [[backend]]"),
        ("drain_s = -1\n", "drain_s"),
    ],
)
def test_what_is_wrong_is_said_by_its_place(text: str, said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        loaded(text)
    assert str(caught.value).startswith("nestor.toml: ")
    assert said in str(caught.value)
