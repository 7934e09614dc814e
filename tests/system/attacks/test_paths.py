"""Attacks P: request-targets that are no plain path of ours, on every port."""

import pytest
from tests.system.attacks.attacked import CANARY, LAYERS, Attacked

pytestmark = [pytest.mark.heavy, pytest.mark.alone]

SAFE = {400, 403, 404, 405, 414, 421}
REAL = {
    "dashboard": ["/metrics", "/health/detailed", "/docs", "/schema/openapi.json"],
    "ralph": ["/tasks", "/status", "/results", "/stats", "/health/detailed"],
    "aidb": ["/documents", "/documents/ID", "/health/detailed", "/metrics"],
    "coordinator": ["/keys", "/stats", "/v1/models", "/health/detailed"],
    "learning": ["/learning/stats", "/health/detailed", "/metrics"],
}
"""Of each layer: answered 200 to the admin when asked as written."""
CLIMBS = {
    "p1": ["/aidb/../../etc/passwd", "/../etc/passwd", "/x/../metrics", "/.", "/.."],
    "p2": ["/aidb/%2e%2e/%2e%2e/etc/passwd", "/x/%2e%2e/metrics", "/%2e/metrics"],
    "p3": ["/aidb/..%2f..%2f", "/x/..%2fmetrics", "/x%2f..%2fmetrics"],
    "p4": ["/aidb/%252e%252e%252f", "/x/%252e%252e/metrics", "/%25252e%25252e%25252f"],
    "p5": ["/..%5c..%5cetc", "/..\\..\\etc", "/x\\..\\metrics", "/health%5clive"],
    "p6": ["/%c0%ae%c0%ae/metrics", "/%u002e%u002e/metrics", "/%c0%af", "/%e0%80%ae",
           "/%ff", "/\xff", "/x/\xc0\xae\xc0\xae/metrics", "/%uff0e%uff0e", "/%zz", "/%"],
    "p8": ["/health/live%00.html", "/metrics%00", "/%00", "/metrics%0d%0aX:1"],
    "p9": ["/aidb/health;rm%20-rf%20/", "/$(id)", "/`id`", "/|id", "/;id", "/%24(id)",
           "/${IFS}", "/x&&id"],
}  # fmt: skip
ELSEWHERE = [
    "http://169.254.169.254/", "http://127.0.0.1:PORT/metrics", "https://127.0.0.1:PORT/",
    "http:/metrics", "http:metrics", "//evil/x", "//evil.invalid/metrics", "///metrics",
    "//127.0.0.1:PORT/metrics", "file:///etc/passwd", "gopher://127.0.0.1:PORT/_x", "*",
    "?", "#", "metrics", "evil:80", "127.0.0.1:PORT", "@evil/x", "/@evil:80", "\\\\evil",
]  # fmt: skip


SECRETS = (CANARY, "Traceback", "root:", "site-packages", "nestor.db")
"""Words that no refusal may hold."""


def spellings(path: str) -> list[str]:
    """Other ways to write ``path`` that some reader would take for it."""
    hexed = "".join(f"%{byte:02x}" for byte in path[1:].encode())
    return [
        f"{path}/", f"{path}//", f"/{path}", f"/.{path}", f"/x/..{path}", f"{path}/.",
        f"{path}/x/..", f"{path};a=b", f"{path};", f"{path}/;a", f"{path}%00",
        f"{path}%20", f"{path}%09", f"{path}%2f", f"{path}%2f..", f"{path}%3f",
        f"{path}%23", f"{path}.json", f"{path}%2ejson", path.upper(), path.title(),
        f"/%{ord(path[1]):02x}{path[2:]}", f"/%{ord(path[1]):02X}{path[2:]}", f"/{hexed}",
        f"{path[:-1]}%{ord(path[-1]):02x}", f"/%25{ord(path[1]):02x}{path[2:]}",
        f"{path}#x", f"{path}\xa0", f"/\xa0{path[1:]}", path.replace("/", "\\"),
        path.replace("/", "%2f"), f"{path}%ef%bb%bf", f"/%ef%bb%bf{path[1:]}",
        path[1:], f"{path}%0a", f"{path}%7f", f"{path}+", f"{path},", f"{path}*",
        # Full width and dotless letters, which some readers fold into ours.
        path.replace("s", "%c5%bf"), path.replace("i", "%c4%b1"),
    ]  # fmt: skip


def reached(stack: Attacked, layer: str, line: str, *, body: bytes = b"") -> list[str]:
    """Send it with the admin's key and with none; returns what was not refused safely."""
    wrong = []
    for key in ("admin", None):
        how = stack.request(layer, f"{line} HTTP/1.1", key=key, body=body or None)
        talk = stack.say(layer, how)
        told = [w for w in SECRETS if w.encode() in talk.raw]
        safe = SAFE if key else SAFE | {401}
        if (
            talk.statuses not in [[status] for status in safe]
            or told
            or not talk.closed
        ):
            wrong.append(f"{line[:120]!r} {key}: {talk.raw[:60]!r} {told}")
    return wrong


@pytest.mark.parametrize("layer", LAYERS)
def test_the_control_each_path_as_written_is_served(
    stack: Attacked, layer: str
) -> None:
    for path in REAL[layer]:
        path = path.replace("ID", stack.document)  # noqa: PLW2901 - filled in
        assert stack.ask(layer, f"GET {path}").status == 200, path


@pytest.mark.parametrize("case", CLIMBS)
@pytest.mark.parametrize("layer", LAYERS)
def test_p1_to_p9_a_climbing_or_odd_path_is_refused(
    stack: Attacked, layer: str, case: str
) -> None:
    wrong = []
    with stack.unharmed():
        for target in CLIMBS[case]:
            for method in ("GET", "POST", "DELETE"):
                wrong += reached(stack, layer, f"{method} {target}")
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_p7_another_spelling_of_a_real_path_reaches_no_handler(
    stack: Attacked, layer: str
) -> None:
    paths = [path.replace("ID", stack.document) for path in REAL[layer]]
    wrong = []
    with stack.unharmed():
        for path in (*paths, "/health/live", "/health/ready", "/health/startup"):
            for target in sorted({*spellings(path)} - {path}):
                wrong += reached(stack, layer, f"GET {target}")
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_p7_another_spelling_of_a_path_that_changes_things_changes_none(
    stack: Attacked, layer: str
) -> None:
    line, body = stack.effect(layer)
    method, _, path = line.partition(" ")
    wrong = []
    with stack.unharmed():
        for target in sorted({*spellings(path)} - {path}):
            wrong += reached(stack, layer, f"{method} {target}", body=body)
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_p11_a_target_elsewhere_is_refused(stack: Attacked, layer: str) -> None:
    port = str(stack.ports[layer])
    wrong = []
    with stack.unharmed():
        for target in ELSEWHERE:
            for method in ("GET", "POST", "OPTIONS"):
                wrong += reached(
                    stack, layer, f"{method} {target.replace('PORT', port)}"
                )
        for line in (
            "CONNECT 169.254.169.254:80", f"CONNECT 127.0.0.1:{port}", "CONNECT /metrics",
            "TRACE /metrics", "TRACE /", "TRACK /metrics", "PROPFIND /", "MKCOL /x",
            "SEARCH /", "LINK /metrics", "PURGE /metrics", "SOURCE /metrics",
        ):  # fmt: skip
            wrong += reached(stack, layer, line)
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_p11_trace_gives_nothing_of_the_request_back(
    stack: Attacked, layer: str
) -> None:
    talk = stack.ask(layer, "TRACE /metrics", f"X-Secret: {CANARY}")
    assert talk.status in {400, 405}
    assert CANARY.encode() not in talk.raw
    assert stack.key.encode() not in talk.raw


@pytest.mark.parametrize("layer", LAYERS)
def test_p12_a_target_of_20_kb_is_414(stack: Attacked, layer: str) -> None:
    with stack.unharmed():
        for target in (f"/{'a' * 20_000}", f"/metrics?{'a' * 20_000}", "/a" * 10_000):
            for key in ("admin", None):
                talk = stack.ask(layer, f"GET {target}", key=key)
                assert (talk.status, talk.closed) == (414, True), talk.raw[:300]
                assert b"aaaaaaaa" not in talk.raw
