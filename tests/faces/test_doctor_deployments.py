"""``nestor doctor --config`` shows every deployment, where it comes from, and no key."""

import json

from tests.faces.fake_stack import Cli

FILE = """
remote_model = "big"
remote_base_url = "https://models.example/v1"
remote_price_input = 3

[[deployment]]
name = "claude"
side = "remote"
dialect = "anthropic"
base_url = "https://api.anthropic.com"
model = "claude-sonnet-4-5"
api_key_file = "claude.key"
price_input = 3
price_output = 15.5
fallbacks = ["remote"]
"""
KEY = "prov-0123456789abcdef"


def prepare(cli: Cli) -> None:
    (cli.cwd / "nestor.toml").write_text(FILE)
    key = cli.cwd / "claude.key"
    key.touch(0o600)
    key.write_text(KEY)
    cli.extra |= {"NESTOR_REMOTE_API_KEY": KEY[::-1]}


def test_deployments_are_shown_with_prices_and_origin(cli: Cli) -> None:
    prepare(cli)
    done = cli("doctor", "--config", "--json")
    remote, claude = json.loads(done.stdout)["deployments"]

    assert (remote["name"], remote["from"]) == ("remote", "NESTOR_REMOTE_…")
    assert remote["prices"] == "input 3"
    assert (claude["name"], claude["from"]) == ("claude", "nestor.toml")
    assert claude["prices"] == "input 3, output 15.5"
    assert (claude["dialect"], claude["fallbacks"]) == ("anthropic", ["remote"])
    assert (claude["has_key"], remote["has_key"]) == (True, True)


def test_no_key_is_shown(cli: Cli) -> None:
    prepare(cli)
    for arguments in (("--json",), ()):
        done = cli("doctor", "--config", *arguments)
        assert done.returncode == 0
        assert "claude" in done.stdout
        assert KEY not in done.stdout + done.stderr
        assert KEY[::-1] not in done.stdout + done.stderr


def test_a_file_that_is_wrong_is_said_by_its_place(cli: Cli) -> None:
    prepare(cli)
    (cli.cwd / "nestor.toml").write_text(FILE.replace('"remote"]', '"remotes"]'))
    done = cli("doctor", "--config")
    assert done.returncode == 2
    assert "deployment.0.fallbacks.0" in done.stderr
    assert "did you mean remote?" in done.stderr


def test_limits_of_backends_are_shown_and_those_of_nobody_refused(cli: Cli) -> None:
    table = '[[backend]]\nname = "command"\nconcurrency = 3\n'
    (cli.cwd / "nestor.toml").write_text(table)
    shown = json.loads(cli("doctor", "--config", "--json").stdout)["backends"]
    assert [(one["name"], one["concurrency"]) for one in shown] == [("command", 3)]
    assert shown[0]["memory_bytes"] is None
    words = cli("doctor", "--config").stdout
    assert "concurrency" in words
    (cli.cwd / "nestor.toml").write_text(table.replace("command", "comand"))
    done = cli("doctor", "--config")
    assert done.returncode == 2
    assert "backend.0.name: 'comand' is not one of" in done.stderr
