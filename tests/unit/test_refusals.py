"""What no start accepts: open doors, placeholders, and files that others read or write."""

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.errors import Misconfigured
from nestor.model.secret import is_placeholder, weakness_of
from nestor.settings import Settings

KEY = "fQ8zB1nV0sT4yL7wKcR2"
PLACEHOLDERS = (
    *("change_me_in_production", "changeme", "CHANGE-ME", "your-api-key", "secret"),
    *("password", "admin", "test", "example", "<key>", "sk-<your key>", "${API_KEY}"),
    *("${API_KEY:-}", "$API_KEY", "{{ key }}", "xxxxxxxx", "sk-xxxxxxxxxxxxxxxx"),
    *("sk-...", "sk-…", "TODO", "****", "Password123!", "put-your-key-here"),
    *("nst_xxxxxxxxxxxxxxxxxxxxxxxx", "replace-this-in-production", "%API_KEY%"),
    *("secret-secret-secret", "my_secret_key", "sk-your-key-here", "[your key]"),
)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NESTOR_HOME", str(tmp_path / "home"))


Set = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Set variables, and return what is said against them."""

    def load(**values: object) -> str:
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(f"NESTOR_{name}", str(value))
            with pytest.raises(Misconfigured) as caught:
                Settings.load()
        return str(caught.value)

    return load


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Set variables, and return the settings."""

    def load(**values: object) -> Settings:
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(f"NESTOR_{name}", str(value))
            return Settings.load()

    return load


Taken = Callable[..., Settings]


def secret_file(text: str = KEY, mode: int = 0o600, name: str = "secret") -> Path:
    path = Path.cwd() / name
    path.write_text(text)
    path.chmod(mode)
    return path


# A8: open to others only with a key.


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.0.2.2", "fd00::2", "nestor.example", "10.0.0.1"]
)
def test_a8_beyond_loopback_a_key_must_have_been_chosen(
    refused: Set, taken: Taken, host: str
) -> None:
    said = refused(HOST=host)
    assert said.startswith(f"NESTOR_HOST: {host} ")
    assert "NESTOR_API_KEY_FILE" in said
    assert "token_urlsafe" in said
    # A key that a start made for itself was chosen by nobody.
    home = Path(os.environ["NESTOR_HOME"])
    home.mkdir(mode=0o700)
    (home / "api-key").touch(mode=0o600)
    (home / "api-key").write_text(f"nst_{KEY}\n")
    assert refused(HOST=host).startswith("NESTOR_HOST")

    assert taken(HOST=host, API_KEY=KEY).open_to_others
    assert taken(HOST=host, API_KEY_FILE=secret_file()).open_to_others
    secret_file(f"host = '{host}'\napi_key = '{KEY}'", name="nestor.toml")
    assert taken().open_to_others


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_loopback_needs_no_key(taken: Taken, host: str) -> None:
    settings = taken(HOST=host)
    assert not settings.open_to_others
    assert settings.local_host == host


@pytest.mark.parametrize(
    "host",
    [
        *("127.1", "0x7f.1", "2130706433", "0", "0.0", "017700000001", "[::1]"),
        *("::ffff:127.0.0.1", "fe80::1%eth0", "a b", "http://127.0.0.1", "224.0.0.1"),
        *("127.0.0.1:80", "a/b", "-", "x" * 64 + ".example"),
    ],
)
def test_a_host_that_is_oddly_written_is_refused(refused: Set, host: str) -> None:
    assert refused(HOST=host, API_KEY=KEY).startswith("NESTOR_HOST: ")


def test_clients_of_this_machine_use_loopback_where_everything_is_bound(
    taken: Taken,
) -> None:
    assert taken(HOST="0.0.0.0", API_KEY=KEY).local_host == "127.0.0.1"
    assert taken(HOST="::", API_KEY=KEY).local_host == "::1"
    one = taken(HOST="fd00::2", API_KEY=KEY, ALLOWED_HOSTS="nestor.lan")
    assert one.local_host == "fd00::2"
    assert one.allowed_hosts == ["nestor.lan", "[fd00::2]"]
    assert taken(HOST="0.0.0.0", API_KEY=KEY).allowed_hosts == []


# A7: placeholders and keys that can be guessed.


@pytest.mark.parametrize("value", PLACEHOLDERS)
def test_a7_a_placeholder_is_no_secret(refused: Set, value: str) -> None:
    file = secret_file(value)
    redis = f"redis://:{quote(value, safe='')}@cache:6379/0"
    database = f"postgresql://u:{quote(value, safe='')}@db/n"
    for given_, named in (
        ({"API_KEY": value}, "API_KEY"),
        ({"API_KEY_FILE": file}, "API_KEY"),
        ({"REMOTE_API_KEY": value}, "REMOTE_API_KEY"),
        ({"REMOTE_API_KEY_FILE": file}, "REMOTE_API_KEY"),
        ({"REDIS_URL": redis}, "REDIS_URL"),
        ({"DATABASE_URL": database}, "DATABASE_URL"),
    ):
        said = refused(**given_)
        assert said.startswith(f"NESTOR_{named}: "), said
        assert "placeholder" in said
        assert "real secret" in said


@pytest.mark.parametrize("name", ["API_KEY", "REMOTE_API_KEY", "REDIS_URL"])
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_a7_a_secret_that_did_not_arrive_is_said(
    refused: Set, name: str, value: str
) -> None:
    for variable in (name, f"{name}_FILE"):
        said = refused(**{variable: value})
        assert said.startswith(f"NESTOR_{variable}: is given, but empty")
        assert "unset it, or give it a value" in said
    said = refused(**{f"{name}_FILE": secret_file(value)})
    assert said.startswith(f"NESTOR_{name}_FILE: ")
    assert "is empty" in said


@pytest.mark.parametrize(
    "key",
    [
        *("brief", "a" * 40, "abababababababababab", "1212121212121212"),
        *("0123456789012345", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfgh"),
        *("0123456789abcdef", "a key with some spaces", "schlüssel-0123456789"),
    ],
)
def test_a7_a_key_that_can_be_guessed_is_refused(refused: Set, key: str) -> None:
    said = refused(API_KEY=key)
    assert said.startswith("NESTOR_API_KEY: ")
    assert key not in said


@given(st.binary(), st.integers(min_value=12, max_value=64))
def test_a_random_key_is_neither_weak_nor_a_placeholder(seed: bytes, size: int) -> None:
    # What a generator gives, in a way that can be repeated.
    entropy = hashlib.shake_256(seed).digest(size)
    for key in (entropy.hex(), base64.urlsafe_b64encode(entropy).decode()):
        for prefix in ("", "nst_", "sk-", "sk-proj-"):
            assert not is_placeholder(prefix + key), key
        assert weakness_of(key) is None, key


def test_keys_that_look_like_words_but_are_not_placeholders_are_taken(
    taken: Taken,
) -> None:
    for key in ("nestor-key-83920174650293", "correct-horse-battery-staple", KEY):
        assert taken(API_KEY=key).api_key is not None
    assert taken(REMOTE_API_KEY="EMPTY").remote_api_key is not None
    assert taken(REDIS_URL="redis://cache").redis_url is not None


# Files that hold a secret.


@pytest.mark.parametrize("name", ["API_KEY", "REMOTE_API_KEY", "REDIS_URL"])
@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o620, 0o602, 0o660])
def test_a_secret_that_others_can_read_or_write_is_refused(
    refused: Set, name: str, mode: int
) -> None:
    text = "redis://h/0" if name == "REDIS_URL" else KEY
    path = secret_file(text, mode)
    said = refused(**{f"{name}_FILE": path})
    assert said.startswith(f"NESTOR_{name}_FILE: ")
    assert f"chmod 600 {path}" in said
    # What counts is the file at the end of a link.
    Path("link").symlink_to(path)
    assert "chmod 600" in refused(**{f"{name}_FILE": "link"})
    assert KEY not in said


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_a_secret_is_read_through_the_links_of_a_mount(taken: Taken, mode: int) -> None:
    Path("..2026").mkdir()
    secret_file(f"{KEY}\n", mode, name="..2026/key")
    Path("..data").symlink_to("..2026")
    Path("key").symlink_to("..data/key")
    found = taken(API_KEY_FILE="key").api_key
    assert found is not None
    assert found.get_secret_value() == KEY


@pytest.mark.timeout(20)
def test_what_is_no_small_text_file_is_refused_at_once(refused: Set) -> None:
    os.mkfifo("fifo", 0o600)
    Path("folder").mkdir()
    secret_file("k" * (64 * 1024 + 1), name="large")
    secret_file(f"{KEY}\n{KEY}", name="lines")
    secret_file("", name="nothing")
    secret_file(name="binary").write_bytes(b"\xff\xfe0123456789abcdef")
    for name, words in {
        "fifo": "regular file",
        "folder": "regular file",
        "/dev/zero": "regular file",
        "large": "64 KiB",
        "lines": "more than one line",
        "nothing": "empty",
        "binary": "not UTF-8",
        "absent": "No such file",
    }.items():
        said = refused(API_KEY_FILE=name)
        assert said.startswith("NESTOR_API_KEY_FILE: "), said
        assert words in said


@pytest.mark.parametrize(
    "line",
    [
        f"api_key = '{KEY}'",
        f"remote_api_key = '{KEY}'",
        f"redis_url = 'redis://:{KEY}@h/0'",
    ],
)
def test_a_settings_file_with_a_secret_is_closed_to_others(
    refused: Set, taken: Taken, line: str
) -> None:
    for mode in (0o644, 0o664, 0o604, 0o620):
        secret_file(line, mode, name="nestor.toml")
        said = refused()
        assert said.startswith(f"nestor.toml: {line.split(maxsplit=1)[0]}: ")
        assert "chmod 600 nestor.toml" in said
    for mode in (0o600, 0o640):
        secret_file(line, mode, name="nestor.toml")
        taken()
    secret_file("workers = 3\nredis_url = 'redis://h/0'", 0o644, name="nestor.toml")
    assert taken().workers == 3
