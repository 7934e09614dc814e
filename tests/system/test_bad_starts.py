"""What keeps the stack from starting: said in one line, exit 2, nothing half-made."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.child import Child

from nestor.settings import Settings

LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")


def up(home: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """``nestor up`` that is expected to refuse."""
    ports = {f"{layer}_port": 0 for layer in LAYERS}
    return subprocess.run(
        [sys.executable, "-m", "nestor.cli", "up"],
        env=Settings.environment_for({"home": home, **ports, **settings}),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_port_in_use_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = up(home, coordinator_port=port)

    refused(done, "NESTOR_COORDINATOR_PORT", str(port), "another port")
    assert not home.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("x")

    refused(up(in_the_way / "home"), "NESTOR_HOME", "a folder you may write")
    assert in_the_way.read_text() == "x"


def test_a_second_start_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with Child(tmp_path / "home") as child:
        child.start()
        assert child.process is not None
        done = up(tmp_path / "home")
        again = up(tmp_path / "home", ralph_port=child.port("ralph"))

    for second in (done, again):
        refused(second, "NESTOR_HOME", f"pid {child.process.pid}", "stop that one")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ralf_port": 1}, ("NESTOR_RALF_PORT",)),
        ({"ralph_port": "many"}, ("NESTOR_RALPH_PORT",)),
        ({"ralph_port": 70000}, ("NESTOR_RALPH_PORT",)),
        ({"host": "0.0.0.0"}, ("NESTOR_HOST", "127.0.0.1")),
        ({"api_key": "change_me_in_production"}, ("NESTOR_API_KEY", "placeholder")),
        ({"default_backend": "nobody"}, ("NESTOR_DEFAULT_BACKEND", "builtin")),
        ({"local_model": "/no/such.gguf"}, ("LOCAL_MODEL", "/no/such.gguf")),
        ({"local_model": "{made}/no.gguf"}, ("LOCAL_MODEL", "not a GGUF")),
        ({"database_url": "mysql://localhost/x"}, ("NESTOR_DATABASE_URL", "sqlite")),
        ({"remote_model": "m"}, ("NESTOR_REMOTE_MODEL", "NESTOR_REMOTE_BASE_URL")),
        (
            {"replay_cassette": "/no/such.json", "remote_model": "m"},
            ("NESTOR_REPLAY_CASSETTE", "/no/such.json"),
        ),
        ({"replay_cassette": "{made}/torn.json"}, ("NESTOR_REPLAY_CASSETTE", "torn")),
        ({"record_cassette": "{made}/torn.json"}, ("NESTOR_RECORD_CASSETTE", "torn")),
        (
            {"replay_cassette": "{made}/good.json", "record_cassette": "{made}/r.json"},
            ("NESTOR_RECORD_CASSETTE", "replayed"),
        ),
        ({"remote_api_key_file": "/no/such"}, ("NESTOR_REMOTE_API_KEY_FILE",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, settings: dict[str, object], words: tuple[str, ...]
) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no model")
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "good.json").write_text('{"format": 1, "entries": []}')
    given = {k: str(v).replace("{made}", str(tmp_path)) for k, v in settings.items()}

    refused(up(tmp_path / "home", **given), *words)

    assert not (tmp_path / "home").exists()


def test_the_key_file_must_be_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "api-key").write_text("nst_something\n")
    (home / "api-key").chmod(0o644)

    refused(up(home), "api-key", "chmod 600")


def test_the_data_folder_and_the_key_are_private(tmp_path: Path) -> None:
    with Child(tmp_path / "home") as child:
        child.start()

    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    for name in ("api-key", "run.json", "executor-id"):
        assert (tmp_path / "home" / name).stat().st_mode & 0o077 == 0, name
