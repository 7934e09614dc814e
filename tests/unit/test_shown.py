"""A secret is not seen for being cut: whatever falls on the border of what is kept."""

import re

import pytest

from nestor.model.task import Check, Verdict
from nestor.ports.sandbox import SandboxResult
from nestor.ralph.shown import first, newest
from nestor.ralph.verdicts import verdict_of

MOST = 8_000
BODY = [f"MIIEvQ{n:03}" + "kQ7+/x2B" * 6 + "zz" for n in range(50)]
PEM = "\n".join(["-----BEGIN PRIVATE KEY-----", *BODY, "-----END PRIVATE KEY-----"])
SECRETS = {
    "a key in lines": PEM,
    "a key in lines of a test's report": PEM.replace("\n", "\nE   "),
    "a value": "API_KEY=supersecretvalue1234567890abcdef",
    "a token": "token ghp_" + "Ab3dE6gH9" * 5,
    "a url": "https://user:correct-horse-battery@db.example/x",
    "a value in quotes": 'password = "correct horse battery staple, and more"',
}
PARTS = re.compile(
    r"kQ7\+/x2B|MIIEvQ|secretvalue|1234567|abcdef|dE6gH|orse-b|battery|staple"
)


def judged(output: str) -> Verdict:
    result = SandboxResult(exit_code=1, output=output, duration_s=1, sandboxed=True)
    return verdict_of(
        Check(name="c", run="true"),
        "after",
        result,
        report=None,
        touched=[],
        before=None,
        by_name=True,
    )


@pytest.mark.parametrize("filler", ["a line of output\n", "no line ends here, "])
@pytest.mark.parametrize("name", SECRETS)
def test_no_part_of_a_secret_is_kept_wherever_the_cut_falls(
    name: str, filler: str
) -> None:
    secret = f" {SECRETS[name]} \n"
    begin, end = filler * 4_000, filler * 1_000
    step = max(len(secret) // 40, 1)
    for offset in range(-20, len(secret) + 20, step):
        # The cut falls ``offset`` characters into the secret.
        after = (end + end)[: MOST - len(secret) + offset]
        kept = judged(f"{begin}{secret}{after}").output_tail
        assert len(kept) <= MOST
        assert not PARTS.search(kept), (offset, kept[:200])
        before = (end + end)[: MOST - offset]
        assert not PARTS.search(first(f"{before}\n{secret}{end}", MOST)), offset


def test_of_a_key_longer_than_what_is_looked_at_nothing_is_kept() -> None:
    lines = "\n".join(["MIIEvQ" + "kQ7+/x2B" * 7] * 5_000)

    kept = newest(f"-----BEGIN PRIVATE KEY-----\n{lines}\n-----END x-----\nok\n", MOST)

    assert not PARTS.search(kept)
    assert kept.endswith("ok\n")


def test_what_is_no_secret_stays_whole() -> None:
    text = "".join(f"line {n}\n" for n in range(5_000))

    assert newest(text, 1_000) == text[-1_000:]
    assert first(text, 1_000) == text[:1_000]
    assert newest("short", 1_000) == first("short", 1_000) == "short"
    # A text without a line's end, as minified code is.
    assert newest("x" * 50_000, 1_000) == "x" * 1_000
