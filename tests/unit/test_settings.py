"""Settings that are wrong say which one, where it stands, and what to write instead."""

import os
from pathlib import Path

import pytest

from nestor.errors import Misconfigured
from nestor.settings import Settings


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NESTOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NESTOR_HOME", str(tmp_path / "home"))


def said() -> str:
    with pytest.raises(Misconfigured) as caught:
        Settings.load()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"workers = 2\nhost = \n", "nestor.toml: Invalid value (at line 2, column 8)"),
        (b"\nhosts = [", "nestor.toml: Invalid value (at line 2, the end)"),
        (b"a = 1\nb = '\xff'", "nestor.toml: not UTF-8 text (at line 2)"),
        (b"bogus = 1", "nestor.toml: bogus: unknown setting"),
        (b"[ralph]\nport = 1", "nestor.toml: ralph: unknown setting"),
        (b"local_model = 'm'", "nestor.toml: NESTOR_LOCAL_MODEL needs"),
    ],
)
def test_what_is_wrong_in_the_file_is_blamed_on_the_file(
    text: bytes, message: str
) -> None:
    Path("nestor.toml").write_bytes(text)
    assert said().startswith(message)


def test_a_wrong_value_is_blamed_on_the_place_it_comes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("nestor.toml").write_text("ralph_port = 'many'\n")
    assert said().startswith("nestor.toml: ralph_port: ")
    monkeypatch.setenv("NESTOR_RALPH_PORT", "lots")
    assert said().startswith("NESTOR_RALPH_PORT: ")


def test_a_folder_in_the_place_of_the_file_is_said() -> None:
    Path("nestor.toml").mkdir()
    assert said().startswith("nestor.toml: Is a directory")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("API_KEY", "abc", "NESTOR_API_KEY: too short: 3 characters, at least 16"),
        ("API_KEY", "a key with some spaces", "NESTOR_API_KEY: use ASCII"),
        (
            "DATABASE_URL",
            "postgresql+psycopg://a:hunter22@b/c",
            "NESTOR_DATABASE_URL: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        ),
        ("DATABASE_URL", "nestor.db", "NESTOR_DATABASE_URL: not a database that"),
        ("LOCAL_MODEL", "m", "NESTOR_LOCAL_MODEL needs NESTOR_LOCAL_BASE_URL"),
        ("LOCAL_BASE_URL", "http://x/v1", "NESTOR_LOCAL_BASE_URL needs NESTOR_LOCAL_"),
        ("REMOTE_MODEL", "m", "NESTOR_REMOTE_MODEL needs NESTOR_REMOTE_BASE_URL"),
        ("REMOTE_BASE_URL", "http://x/v1", "NESTOR_REMOTE_BASE_URL needs NESTOR_REM"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_the_full_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"NESTOR_{name}", value)
    assert said().startswith(message)
    assert value not in said() or name != "API_KEY"


def test_a_long_key_and_a_sqlite_url_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NESTOR_API_KEY", "k3yofTheseTests-")
    monkeypatch.setenv("NESTOR_DATABASE_URL", "sqlite:////data/nestor.db")
    assert Settings.load().database == "sqlite:////data/nestor.db"


def test_a_database_url_may_stand_in_a_file_that_only_its_owner_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "postgresql://u:fQ8zB1nV0sT4@h/x"
    Path("url").write_text(url + "\n")
    monkeypatch.setenv("NESTOR_DATABASE_URL_FILE", "url")
    Path("url").chmod(0o644)
    assert said().startswith("NESTOR_DATABASE_URL_FILE: ")
    Path("url").chmod(0o600)
    assert Settings.load().database == url
    assert Settings.origins()["database_url"] == "NESTOR_DATABASE_URL_FILE"


def test_a_password_in_the_file_of_settings_needs_a_closed_file() -> None:
    Path("nestor.toml").write_text("database_url = 'postgresql://u:fQ8zB1nV0sT4@h/x'")
    Path("nestor.toml").chmod(0o644)
    assert said().startswith("nestor.toml: database_url: ")
    assert "fQ8zB1nV0sT4" not in said()
    Path("nestor.toml").write_text("database_url = 'sqlite:////data/nestor.db'")
    assert Settings.load().database == "sqlite:////data/nestor.db"


@pytest.mark.parametrize(
    ("name", "said_"),
    [
        ("NESTOR_RALF_PORT", "NESTOR_RALF_PORT (did you mean NESTOR_RALPH_PORT?)"),
        ("NESTOR_APIKEY", "NESTOR_APIKEY (did you mean NESTOR_API_KEY?)"),
        ("NESTOR_API_KEYS", "did you mean NESTOR_API_KEY?"),
        ("NESTOR_REDIS_URL_FILES", "did you mean NESTOR_REDIS_URL_FILE?"),
        ("nestor_api_key", "nestor_api_key (did you mean NESTOR_API_KEY?)"),
        ("Nestor_Host", "Nestor_Host (did you mean NESTOR_HOST?)"),
        ("NESTOR_ZZZZZZ", "NESTOR_ZZZZZZ; nestor doctor"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, name: str, said_: str
) -> None:
    monkeypatch.setenv(name, "x")
    assert said().startswith("unknown setting: ")
    assert said_ in said()


@pytest.mark.parametrize(
    ("text", "said_"),
    [
        ("ralf_port = 1", "ralf_port: unknown setting (did you mean ralph_port?)"),
        ("API_KEY = 'x'", "API_KEY: unknown setting (did you mean api_key?)"),
        ("nestor_workers = 3", "unknown setting (did you mean workers?)"),
        ("api_key_file = 'k'", "only the environment has it: NESTOR_API_KEY_FILE"),
    ],
)
def test_an_unknown_name_in_the_file_is_said_with_the_nearest_one(
    text: str, said_: str
) -> None:
    Path("nestor.toml").write_text(text)
    assert said().startswith("nestor.toml: ")
    assert said_ in said()


def test_variables_of_other_programs_are_not_our_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AIDB_API_KEY", "MY_NESTOR_PORT", "NESTORX"):
        monkeypatch.setenv(name, "change_me_in_production")
    Settings.load()
