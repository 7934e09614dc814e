"""``nestor key create|list|revoke``, as a process, beside a stack that answers as told."""

import json
from typing import Any

import pytest
from tests.faces.fake_stack import ESCAPES, HOSTILE, KEY, Cli, FakeStack, Reply, refusal

SCOPES = "admin, approve, metrics, model, read, service, submit, task:<id>"
FIRST = "01a203aa-4725-7fd3-bcca-95852eec306a"
SECOND = "01a203aa-4725-7fd3-bcca-000000000000"


def key(key_id: str, **more: Any) -> dict[str, Any]:
    return {
        "id": key_id,
        "name": "ci",
        "scopes": ["read", "submit"],
        "created_at": "2026-01-02T03:04:05Z",
        "revoked_at": None,
        "last_used_at": None,
        **more,
    }


KEYS = [
    key(FIRST, last_used_at="2026-02-03T04:05:06Z"),
    key(SECOND, name="old", revoked_at="2026-03-04T05:06:07Z"),
]


def test_the_list_shows_last_use_never_and_what_is_revoked(
    stack: FakeStack, cli: Cli
) -> None:
    stack.says("GET", "/keys", Reply(200, {"keys": KEYS}))
    done = cli("key", "list")
    head, first, second = done.stdout.splitlines()
    columns = "id name scopes created last used spent a minute state"
    assert head.split() == columns.split()
    assert first.split()[0] == FIRST
    assert first.split()[-4:] == ["2026-02-03T04:05:06Z", "-", "-", "good"]
    assert second.split()[-5:] == ["never", "-", "-", "revoked", "2026-03-04T05:06:07Z"]
    assert json.loads(cli("key", "list", "--json").stdout) == {"keys": KEYS}
    shown = cli.on_a_terminal("key", "list", columns=70)[1]
    assert FIRST in shown, "an id is whole even where there is little room"


def test_limits_stand_beside_what_is_spent(stack: FakeStack, cli: Cli) -> None:
    limits = {"usd": "5", "tokens": 1000, "rpm": 60, "tpm": 500}
    some = {"usd": None, "tokens": 9, "rpm": None, "tpm": None}
    listed = [
        key(FIRST, limits=limits, spent={"usd": "0.000092", "tokens": 18}),
        key(SECOND, limits=some, spent=None),
        key("none", limits=None, spent=None),
    ]
    stack.says("GET", "/keys", Reply(200, {"keys": listed}))
    _, first, second, third = cli("key", "list").stdout.splitlines()
    assert "0.000092 of 5 USD, 18 of 1000 tokens" in first
    assert "60 requests, 500 tokens" in first
    assert "unknown of 9 tokens" in second
    assert second.split()[-2:] == ["-", "good"]
    assert third.split()[-4:] == ["never", "-", "-", "good"]


def test_limits_are_sent_as_they_are_given(stack: FakeStack, cli: Cli) -> None:
    stack.says("POST", "/keys", Reply(201, key(FIRST) | {"key": "nst_secret"}))
    arguments = ["key", "create", "--name", "x", "--scope", "model"]
    limits = ["--usd", "0.50", "--tokens", "1000", "--rpm", "60", "--tpm", "500"]
    assert cli(*arguments, *limits).returncode == 0
    assert cli(*arguments, "--usd", "5").returncode == 0
    assert [asked["body"].get("limits") for asked in stack.asked] == [
        {"usd": "0.50", "tokens": 1000, "rpm": 60, "tpm": 500},
        {"usd": "5"},
    ]


@pytest.mark.parametrize(
    "limit",
    [
        *(["--usd", wrong] for wrong in ("0", "-1", "NaN", "inf", "five", "")),
        *([name, wrong] for name in ("--tokens", "--rpm", "--tpm") for wrong in "0x"),
    ],
)
def test_a_limit_that_is_none_ends_with_2_and_makes_no_key(
    stack: FakeStack, cli: Cli, limit: list[str]
) -> None:
    done = cli("key", "create", "--name", "x", "--scope", "model", *limit)
    assert (done.returncode, done.stdout, stack.asked) == (2, "", [])
    assert limit[0] in done.stderr


def test_a_hostile_name_is_shown_inert(stack: FakeStack, cli: Cli) -> None:
    stack.says("GET", "/keys", Reply(200, {"keys": [key(FIRST, name=HOSTILE)]}))
    assert not ESCAPES.search(cli("key", "list").stdout)


def test_an_unknown_scope_ends_with_2_and_all_that_there_are(
    stack: FakeStack, cli: Cli
) -> None:
    why = f"'bogus' is not one of {SCOPES}"
    said = refusal(400, f"scopes.1: {why}", ("scopes.1", why))
    stack.says("POST", "/keys", said)
    done = cli("key", "create", "--name", "x", "--scope", "read", "--scope", "bogus")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"scopes.1: {why}" in done.stderr


def test_a_key_of_the_environment_is_named_as_such(cli: Cli) -> None:
    assert (cli("key").stdout, cli("key").stderr) == (f"{KEY}\n", "")
    cli.extra["NESTOR_API_KEY"] = "a-wrong-key-of-the-test"
    shown = cli("key")
    assert shown.stdout == "a-wrong-key-of-the-test\n"
    assert str(cli.home / "api-key") in shown.stderr
    assert shown.stderr.endswith("env -u NESTOR_API_KEY nestor key\n")


def test_a_secret_goes_to_standard_output_alone(stack: FakeStack, cli: Cli) -> None:
    made = key(FIRST) | {"key": "nst_secret"}
    stack.says("POST", "/keys", Reply(201, made))
    arguments = ("key", "create", "--name", "x", "--scope", "read")
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (0, "nst_secret\n")
    assert "shown once" in done.stderr
    assert "nst_secret" not in done.stderr
    assert stack.asked[0]["body"] == {"name": "x", "scopes": ["read"]}
    assert json.loads(cli(*arguments, "--json").stdout) == made


def test_revoke_takes_an_id_or_its_only_beginning(stack: FakeStack, cli: Cli) -> None:
    stack.says("GET", "/keys", Reply(200, {"keys": KEYS}))
    stack.says("DELETE", f"/keys/{FIRST}", Reply(204, ""))
    for given in (FIRST, FIRST[:30], FIRST[:25]):
        stack.asked.clear()
        done = cli("key", "revoke", given)
        assert (done.returncode, done.stdout) == (0, f"revoked {FIRST}\n")
        assert stack.asked[-1]["path"] == f"/keys/{FIRST}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (FIRST[:13], "2 keys begin with"),
        ("deadbeef-not-there", "there is no key"),
        ("unknown", "there is no key unknown"),
        (FIRST[:7], "there is no key"),
        ("..", "is not an id"),
        ("", "is not an id"),
    ],
)
def test_revoke_of_no_or_of_several_keys_ends_with_2_and_revokes_nothing(
    stack: FakeStack, cli: Cli, given: str, said: str
) -> None:
    stack.says("GET", "/keys", Reply(200, {"keys": KEYS}))
    for name in ("unknown", FIRST[:7]):
        none = f"id: there is no key {name}"
        stack.says("DELETE", f"/keys/{name}", refusal(404, none, ("id", none[4:])))
    done = cli("key", "revoke", given)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    revoked = [a["path"] for a in stack.asked if a["method"] == "DELETE"]
    assert revoked in ([], [f"/keys/{given}"])
