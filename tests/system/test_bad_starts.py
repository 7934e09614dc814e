"""What keeps the stack from starting: said in one line, exit 2, nothing half-made."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.system.child import Child

from nestor.backends.files.data_folder import DataFolder
from nestor.cli import doctor
from nestor.cli.client import Stack, read_run_file
from nestor.errors import Misconfigured, NestorError
from nestor.settings import Settings

KEY = "fQ8zB1nV0sT4yL7wKcR2"
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
        ({"host": "0.0.0.0"}, ("NESTOR_HOST", "NESTOR_API_KEY_FILE", "127.0.0.1")),
        ({"host": "::"}, ("NESTOR_HOST", "NESTOR_API_KEY_FILE")),
        ({"host": "nobody.invalid", "api_key": KEY}, ("NESTOR_HOST", "not known")),
        ({"host": "203.0.113.9", "api_key": KEY}, ("NESTOR_HOST", "no address of")),
        ({"api_key": "change_me_in_production"}, ("NESTOR_API_KEY", "placeholder")),
        ({"api_key": ""}, ("NESTOR_API_KEY", "empty")),
        ({"api_key_file": "{made}/open"}, ("NESTOR_API_KEY_FILE", "chmod 600")),
        ({"api_key_file": "{made}/fifo"}, ("NESTOR_API_KEY_FILE", "regular file")),
        (
            {"redis_url": "redis://:changeme@127.0.0.1/0"},
            ("NESTOR_REDIS_URL", "placeholder"),
        ),
        ({"trusted_proxies": "0.0.0.0/0"}, ("NESTOR_TRUSTED_PROXIES", "everybody")),
        ({"allowed_hosts": "*"}, ("NESTOR_ALLOWED_HOSTS", "'*'")),
        (
            {"remote_base_url": "http://169.254.169.254/v1", "remote_model": "m"},
            ("NESTOR_REMOTE_BASE_URL", "169.254.169.254"),
        ),
        ({"default_backend": "nobody"}, ("NESTOR_DEFAULT_BACKEND", "builtin")),
        ({"local_model": "/no/such.gguf"}, ("LOCAL_MODEL", "/no/such.gguf")),
        ({"local_model": "{made}/no.gguf"}, ("LOCAL_MODEL", "not a GGUF")),
        ({"database_url": "mysql://localhost/x"}, ("NESTOR_DATABASE_URL", "sqlite")),
        (
            {"database_url": "postgresql://u:changeme@127.0.0.1/x"},
            ("NESTOR_DATABASE_URL", "placeholder"),
        ),
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
    (tmp_path / "open").write_text(KEY)
    (tmp_path / "open").chmod(0o644)
    os.mkfifo(tmp_path / "fifo", 0o600)
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
    for mode in (0o644, 0o640, 0o604, 0o660):
        (home / "api-key").chmod(mode)
        refused(up(home), "api-key", "chmod 600")
        refused(nestor(home, "key"), "api-key", "chmod 600")
        refused(nestor(home, "status"), "api-key", "chmod 600")
        looked = nestor(home, "doctor")
        assert looked.returncode == 1
        assert "fail  admin key" in looked.stdout
        assert "nst_something" not in looked.stdout


def test_what_stands_in_the_place_of_the_key_file_is_not_waited_for(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.mkfifo(home / "api-key", 0o600)
    refused(up(home), "api-key", "regular file")
    refused(nestor(home, "key"), "api-key", "regular file")
    (home / "api-key").unlink()
    (tmp_path / "elsewhere").write_text(f"{KEY}\n")
    (tmp_path / "elsewhere").chmod(0o600)
    (home / "api-key").symlink_to(tmp_path / "elsewhere")
    refused(up(home), "api-key", "symbolic link")
    assert nestor(home, "key").returncode == 2


def test_a_data_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(home, 12345, -1)
    else:
        home = Path("/usr")  # root's

    refused(up(home), "NESTOR_HOME", "another user", "uid")
    with pytest.raises(Misconfigured, match="another user"), DataFolder.locked(home):
        pass
    assert not (home / "up.lock").exists()


def test_the_data_folder_and_the_key_are_private(tmp_path: Path) -> None:
    with Child(tmp_path / "home") as child:
        child.start()

    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    for name in ("api-key", "run.json", "executor-id"):
        assert (tmp_path / "home" / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.heavy
@pytest.mark.parametrize("allowed", ["", "127.0.0.2"])
def test_a8_with_a_key_every_address_is_served_under_the_names_that_were_allowed(
    tmp_path: Path, allowed: str
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    file = home / "api-key"
    file.touch(mode=0o600)
    file.write_text(KEY)
    settings = {"host": "0.0.0.0", "api_key_file": file, "allowed_hosts": allowed}
    with Child(home, **settings) as child:
        child.start()
        run = read_run_file(home)
        assert run is not None
        assert run["host"] == "127.0.0.1"
        own = nestor(home, "status", **settings)
        other = Stack("127.0.0.2", run["ports"], KEY)
        stranger = Stack("127.0.0.1", run["ports"], None)
        by_name, without_key = answers(other), answers(stranger)
        looked = nestor(home, "doctor", **settings).stdout

    assert own.returncode == 0, own.stderr
    assert without_key.startswith("Unauthorized")
    assert "warn  bind: 0.0.0.0" in looked
    assert "TLS" in looked
    if allowed:
        assert by_name == "yes"
        assert "ok    host names: 127.0.0.2" in looked
    else:
        assert "not known by that name" in by_name
        assert "warn  host names" in looked


def test_a_start_that_is_open_to_others_warns_of_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, host="::", api_key=SecretStr(KEY))
    said = list(doctor.warnings(settings))
    assert any("plain HTTP" in one and "NESTOR_TRUSTED_PROXIES" in one for one in said)
    assert any("421" in one and "NESTOR_ALLOWED_HOSTS" in one for one in said)
    alone = " ".join(doctor.warnings(Settings(home=tmp_path)))
    assert "plain HTTP" not in alone
    assert "421" not in alone


def answers(stack: Stack) -> str:
    try:
        stack.call("ralph", "GET", "/status")
    except NestorError as error:
        return f"{type(error).__name__}: {error}"
    return "yes"


def nestor(
    home: Path, *arguments: str, **settings: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nestor.cli", *arguments],
        env=Settings.environment_for({"home": home, **settings}),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
