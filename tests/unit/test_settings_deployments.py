"""The ``[[deployment]]`` tables of nestor.toml: taken as written, or refused by their place."""

import os
from decimal import Decimal
from pathlib import Path

import pytest

from nestor.errors import Misconfigured
from nestor.model.routing import CacheScope, Dialect, Kind, Side
from nestor.settings import Settings
from nestor.wiring import deployments

PLAIN = """
[[deployment]]
name = "fast"
side = "local"
base_url = "http://127.0.0.1:8080/v1"
model = "qwen"
"""
OTHER = PLAIN.replace("fast", "other")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NESTOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NESTOR_HOME", str(tmp_path / "home"))


def said(text: str) -> str:
    Path("nestor.toml").write_text(text)
    with pytest.raises(Misconfigured) as caught:
        Settings.load()
    return str(caught.value)


def test_a_table_is_taken_as_written() -> None:
    key = Path("claude.key")
    key.write_text("sk-ant-0123456789abcdef\n")
    key.chmod(0o600)
    Path("nestor.toml").write_text(
        PLAIN
        + """
[[deployment]]
name = "claude"
side = "remote"
dialect = "anthropic"
base_url = "https://api.anthropic.com"
model = "claude-sonnet-4-5"
api_key_file = "claude.key"
price_input = 3
price_output = 15.0
price_cached = 0.3
price_cache_write = "3.75"
weight = 3
rpm = 50
tpm = 40000
timeout_s = 90
slow_s = 20.5
max_output_tokens = 8192
context_window = 200000
tags = ["eu", "big"]
fallbacks = ["fast"]
cache = "private"
cache_ttl_s = 60
"""
    )
    fast, claude = Settings.load().deployments

    assert (fast.name, fast.side, fast.dialect) == ("fast", Side.LOCAL, Dialect.OPENAI)
    assert (fast.price_input, fast.api_key, fast.weight) == (None, None, 1)
    assert claude.dialect is Dialect.ANTHROPIC
    assert claude.api_key == "sk-ant-0123456789abcdef"
    prices = (claude.price_input, claude.price_output, claude.price_cached)
    assert prices == (Decimal(3), Decimal(15), Decimal("0.3"))
    assert claude.price_cache_write == Decimal("3.75")
    assert (claude.rpm, claude.tpm, claude.max_output_tokens) == (50, 40000, 8192)
    assert (claude.context_window, fast.context_window) == (200_000, None)
    assert (claude.timeout_s, claude.slow_s, claude.cache_ttl_s) == (90, 20.5, 60)
    assert (claude.tags, claude.fallbacks) == (("eu", "big"), ("fast",))
    assert (claude.cache, claude.kind) == (CacheScope.PRIVATE, Kind.CHAT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("wieght = 2", "wieght: unknown (did you mean weight?)"),
        ("retries = 2", "retries: unknown"),
        ("api_key = 'sk-0123456789abcdef'", "api_key: keys do not stand in this file"),
        ("token = 'sk-0123456789abcdef'", "token: keys do not stand in this file"),
        ("weight = -1", "weight: expected int >= 0"),
        ("weight = 1.5", "weight: expected int, got float"),
        ("rpm = 0", "rpm: expected int >= 1"),
        ("tpm = true", "tpm: expected int"),
        ("timeout_s = 0", "timeout_s: expected float > 0"),
        ("timeout_s = nan", "timeout_s: expected float > 0"),
        ("timeout_s = 1e9", "timeout_s: expected float <= 3600"),
        ("slow_s = 'soon'", "slow_s: expected float"),
        ("max_output_tokens = 0", "max_output_tokens: expected int >= 1"),
        ("context_window = 8", "context_window: expected int >= 1024"),
        ("cache_ttl_s = -1", "cache_ttl_s: expected float > 0"),
        ("cache = 'public'", "cache: must be one of: off, private, shared"),
        ("kind = 'images'", "kind: must be one of: chat, embeddings"),
        ("dialect = 'gemini'", "dialect: must be one of: openai, anthropic"),
        ("dialect = 'responses'", "dialect: callers speak it, no deployment does"),
        ("tags = 'eu'", "tags: expected array"),
        ("tags = ['eu', '']", "tags.1: expected str of length >= 1"),
        ("price_input = -0.1", "price_input: must be 0 to 1000000"),
        ("price_output = inf", "price_output: must be 0 to 1000000"),
        ("price_cached = nan", "price_cached: must be 0 to 1000000"),
        ("price_cache_write = 'much'", "price_cache_write: Invalid decimal"),
        ("price_input = 0.1234567", "price_input: 0.1234567 has more than 6 digits"),
        ("price_input = 1e-7", "price_input: 0.0000001 has more than 6 digits"),
        ("fallbacks = ['fast']", "fallbacks.0: 'fast' is this deployment itself"),
        (
            "fallbacks = ['otter']",
            "fallbacks.0: 'otter' is no deployment (did you mean",
        ),
        ("fallbacks = ['local']", "fallbacks.0: 'local' is no deployment"),
        ("fallbacks = ['other', 'other']", "fallbacks.1: 'other' stands there twice"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(line: str, message: str) -> None:
    found = said(f"{OTHER}{PLAIN}{line}\n")
    assert found.startswith(f"nestor.toml: deployment.1.{message}")
    assert "sk-0123" not in found


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("name", '""', "name: ''"),
        ("name", '"a b"', "name: 'a b'"),
        ("name", '"auto"', "name: 'auto' is what callers say"),
        ("name", '"remote"', "name: 'remote' is what callers say"),
        ("name", f'"{"x" * 65}"', "name: "),
        ("side", '"here"', "side: must be one of: local, remote"),
        ("model", '""', "model: expected str of length >= 1"),
        ("base_url", '"ftp://h/v1"', "base_url: 'ftp' is not served"),
        ("base_url", '"http://u:p@h/v1"', "base_url: holds a user or a password"),
        ("base_url", '"http://169.254.169.254/v1"', "base_url: '169.254.169.254'"),
        ("base_url", '"http://2130706433/v1"', "base_url: '2130706433' is an odd way"),
    ],
)
def test_needed_values_are_held_to_what_can_be(
    name: str, value: str, message: str
) -> None:
    lines = [
        f"{name} = {value}" if x.startswith(name) else x for x in PLAIN.split("\n")
    ]
    assert said("\n".join(lines)).startswith(f"nestor.toml: deployment.0.{message}")


@pytest.mark.parametrize("name", ["name", "side", "base_url", "model"])
def test_what_is_missing_is_named(name: str) -> None:
    lines = [line for line in PLAIN.split("\n") if not line.startswith(name)]
    found = said("\n".join(lines))
    assert found.startswith(f"nestor.toml: deployment.0.{name}: is missing")


def test_the_place_is_told_by_name_too() -> None:
    assert said(f"{PLAIN}rpm = 0\n").endswith("(of 'fast')")


def test_one_name_for_two_is_refused() -> None:
    found = said(PLAIN + PLAIN)
    assert found == (
        "nestor.toml: deployment.1.name: 'fast' is the name of deployment.0 already"
    )


@pytest.mark.parametrize(
    ("extra", "name"), [("", "local"), ("", "auto"), ("", "remote")]
)
def test_names_that_mean_a_side_are_refused(extra: str, name: str) -> None:
    assert "deployment.0.name" in said(extra + PLAIN.replace("fast", name))


def test_the_name_of_what_settings_make_is_taken() -> None:
    made = 'embeddings_model = "e"\nembeddings_base_url = "http://h/v1"\n'
    found = said(made + PLAIN.replace("fast", "embeddings"))
    assert found.startswith("nestor.toml: deployment.0.name: 'embeddings' is what")
    Path("nestor.toml").write_text(PLAIN.replace("fast", "embeddings"))
    assert Settings.load().deployments[0].name == "embeddings"


def test_fallbacks_may_lead_to_what_settings_make() -> None:
    made = 'local_model = "m"\nlocal_base_url = "http://h/v1"\n'
    Path("nestor.toml").write_text(f'{made}{PLAIN}fallbacks = ["local"]\n')
    assert Settings.load().deployments[0].fallbacks == ("local",)


def test_fallbacks_in_a_circle_are_refused_with_the_circle() -> None:
    third = PLAIN.replace("fast", "third")
    found = said(
        f'{PLAIN}fallbacks = ["other"]\n{OTHER}fallbacks = ["third"]\n'
        f'{third}fallbacks = ["fast"]\n'
    )
    assert found == (
        "nestor.toml: deployment.0.fallbacks: go in a circle:"
        " fast → other → third → fast"
    )


def test_a_fallback_of_another_kind_is_refused() -> None:
    found = said(f'{PLAIN}fallbacks = ["other"]\n{OTHER}kind = "embeddings"\n')
    assert "'other' is for embeddings, this one for chat" in found


def test_embeddings_in_anthropics_words_are_refused() -> None:
    found = said(f'{PLAIN}kind = "embeddings"\ndialect = "anthropic"\n')
    assert "deployment.0.dialect: embeddings are asked for in openai alone" in found


@pytest.mark.parametrize(
    "text", ["deployment = 3\n", "[deployment]\nname = 'x'\n", "deployment = ['x']\n"]
)
def test_anything_but_tables_is_refused(text: str) -> None:
    assert said(text).startswith("nestor.toml: deployment: write [[deployment]]")


def test_a_near_miss_of_the_tables_name_is_told() -> None:
    assert "did you mean deployment?" in said(
        PLAIN.replace("deployment", "deployments")
    )


def test_too_many_tables_are_refused() -> None:
    many = "".join(PLAIN.replace("fast", f"d{n}") for n in range(65))
    assert said(many) == "nestor.toml: deployment: 65 tables; at most 64"


def test_the_environment_has_no_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTOR_DEPLOYMENT", "[]")
    assert "unknown setting: NESTOR_DEPLOYMENT" in said("")


@pytest.mark.parametrize(
    ("mode", "text", "message"),
    [
        (0o644, "sk-0123456789abcdef", "can be read by every user"),
        (0o622, "sk-0123456789abcdef", "can be written by other users"),
        (0o600, "", "is empty"),
        (0o600, "changeme", "is a placeholder"),
        (0o600, "two\nlines", "more than one line"),
        (None, "", "No such file"),
    ],
)
def test_a_file_that_may_hold_no_key_is_refused(
    mode: int | None, text: str, message: str
) -> None:
    if mode is not None:
        Path("fast.key").write_text(text)
        Path("fast.key").chmod(mode)
    found = said(f'{PLAIN}api_key_file = "fast.key"\n')
    assert found.startswith("nestor.toml: deployment.0.api_key_file: ")
    assert message in found
    assert "sk-0123" not in found


# What LOCAL_…, REMOTE_… and EMBEDDINGS_… make


def test_single_settings_make_deployments_beside_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "LOCAL_MODEL": "qwen",
        "LOCAL_BASE_URL": "http://127.0.0.1:8080/v1",
        "REMOTE_MODEL": "claude",
        "REMOTE_BASE_URL": "https://api.anthropic.com",
        "REMOTE_DIALECT": "anthropic",
        "REMOTE_API_KEY": "sk-ant-0123456789abcdef",
        "REMOTE_PRICE_INPUT": "3",
        "REMOTE_PRICE_CACHED": "0.3",
        "EMBEDDINGS_MODEL": "minilm",
        "EMBEDDINGS_BASE_URL": "http://127.0.0.1:8081/v1",
    }.items():
        monkeypatch.setenv(f"NESTOR_{name}", value)
    Path("nestor.toml").write_text(PLAIN)
    settings = Settings.load()
    local, remote, embeddings, fast = deployments(settings, settings.deployments)

    assert (local.name, local.side) == ("local", Side.LOCAL)
    assert local.price_input == 0
    assert (remote.name, remote.dialect) == ("remote", Dialect.ANTHROPIC)
    assert (remote.price_cached, remote.price_output) == (Decimal("0.3"), None)
    assert remote.api_key == "sk-ant-0123456789abcdef"
    assert (embeddings.name, embeddings.kind) == ("embeddings", Kind.EMBEDDINGS)
    assert embeddings.side is Side.LOCAL
    assert fast.name == "fast"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embeddings_model = 'e'", "NESTOR_EMBEDDINGS_MODEL needs NESTOR_EMBEDDINGS_B"),
        ("embeddings_base_url = 'http://h/v1'", "NESTOR_EMBEDDINGS_BASE_URL needs"),
        ("remote_dialect = 'responses'", "remote_dialect: "),
        ("remote_price_cached = -1", "remote_price_cached: "),
        ("remote_price_input = 0.1234567", "remote_price_input: "),
    ],
)
def test_the_single_settings_are_held_to_the_same(text: str, message: str) -> None:
    assert said(f"{text}\n").startswith(f"nestor.toml: {message}")


def test_all_are_replayed_where_a_cassette_answers(tmp_path: Path) -> None:
    Path("nestor.toml").write_text(f"replay_cassette = '{tmp_path}/c'\n{PLAIN}")
    settings = Settings.load()
    assert [one.replayed for one in deployments(settings, settings.deployments)] == [
        True
    ]
