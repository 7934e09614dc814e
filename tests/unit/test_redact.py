"""Known shapes of secrets leave every text; ordinary text stays; time is linear."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.telemetry.redact import REDACTED, redact, redact_value, remember

C = "CANARY0123456789abcdefCANARY"
MEGABYTE = 1 << 20
SECRETS = [
    f"sk-{C}",
    f"sk-ant-api03-{C}",
    f"nst_{'C' * 20}-_{'C' * 21}",
    f"Bearer {C}",
    f"authorization: Basic {C}==",
    f"AUTHORIZATION=Bearer {C}",
    "AKIA" + "CANARY0123456789",
    f"AWS_SECRET_ACCESS_KEY={C}/+x",
    f"ghp_{C}",
    f"github_pat_{C}",
    f"key={C}",
    f"https://h/?a=b&key={C}&c=d",
    "password=CANARY",
    "password = 'a CANARY with spaces'",
    'DB_PASSWORD: "CANARY\\" still CANARY"',
    '{"api_key": "CANARY"}',
    '{\\"token\\": \\"CANARY\\"}',
    "token=CANARY",
    "if password == CANARY:",
    "accessToken: CANARY",
    "X-API-Key: CANARY",
    "postgres://u:CANARY@h:5432/db",
    "redis://:CANARY@h",
    "https://u:CAN@CANARY@h/",
    f"https://{C}@github.com/x",
    f"-----BEGIN RSA PRIVATE KEY-----\n{C}\n-----END RSA PRIVATE KEY-----",
    f"-----BEGIN PRIVATE KEY-----\\n{C}\\nCANARY",
    f"eyJ{C}.{C}.{C}",
    f"glpat-{C}",
    f"xoxb-{C}",
]
PLAIN = [
    "tokens=5 max_tokens: 300, token: 17",
    "sorted(rows, key=lambda row: row[0])",
    "def login(password: str | None, token: str) -> None: ...",
    "ssh://git@example.org/x and https://example.org:8090/a@b",
    "task-12345678 disk-abcdefgh secretary: Bob",
    "Bearer authentication is required; bearer tokens expire",
    "PWD=/home/x",
    "assert 1 == 2  # écris 🦉",
]


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("around", ["{}", "before {} after", "({})", "x\n{}\ny"])
def test_a_secret_is_gone_and_what_is_around_it_stays(text: str, around: str) -> None:
    clean = redact(around.format(text))

    assert "CANARY" not in clean
    assert "CCCC" not in clean
    assert REDACTED in clean
    assert clean[0] == around.format(text)[0] or around == "{}"


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


PIECES = st.sampled_from(
    [*SECRETS, *PLAIN, REDACTED, '"', "'", "\\", "\n", " ", ":", "=", "@", "://", "a"]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=8))
def test_redacting_twice_changes_nothing(pieces: list[str]) -> None:
    once = redact("".join(pieces))

    assert redact(once) == once


@given(st.text(st.characters(), max_size=50))
def test_the_result_can_be_encoded(text: str) -> None:
    redact(text + "\ud800").encode()


UNITS = [
    "-----BEGIN A-----",
    "sk-",
    "nst_",
    "eyJ",
    "eyJaaaaaaaa.",
    "://a:",
    "://aaaa:bbbb",
    "bearer ",
    'password="',
    "password='\"",
    "password        ",
    'password:"\\',
    "token: ",
    "key=",
    "authorization: ",
    "\\",
    "a-",
    " ",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "start", ["", 'password="', "-----BEGIN A-----", "://:", "eyJ"]
)
def test_a_hostile_megabyte_takes_bounded_time(start: str, unit: str) -> None:
    text = start + unit * (MEGABYTE // len(unit))
    started = time.process_time()
    redact(text)

    # Usually 0.02 to 0.5 s; quadratic time would be minutes.
    assert time.process_time() - started < 5


def test_values_are_redacted_at_any_depth_and_keys_too() -> None:
    value: dict[str, Any] = {
        "password": "CANARY",
        "Authorization": ["CANARY", {"x": "CANARY", "n": 3}],
        "items": [{"note": f"use sk-{C}"}],
        f"sk-{C}": 1,
        f"sk-{C}1": 2,
        "usage": {"token": 5, "total_tokens": 7},
        "none": None,
    }

    clean = redact_value(value)

    assert "CANARY" not in str(clean)
    assert clean["usage"] == {"token": 5, "total_tokens": 7}
    assert clean["none"] is None
    assert {1, 2} <= {v for v in clean.values() if isinstance(v, int)}


def test_a_value_nested_too_deep_is_cut() -> None:
    value: Any = "x"
    for _ in range(5_000):
        value = [value]

    assert "[too deep]" in str(redact_value(value))


def test_a_remembered_secret_is_redacted_whatever_its_shape() -> None:
    remember("correct horse battery", "short", "redacted")

    assert redact("it is correct horse battery!") == f"it is {REDACTED}!"
    assert redact("short redacted") == "short redacted"
