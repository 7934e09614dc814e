"""Attacks B: what a page of another site can make a browser send, on every port."""

import pytest
from tests.system.attacks.attacked import LAYERS, METHODS, Attacked
from tests.system.attacks.routes import routes

pytestmark = [pytest.mark.heavy, pytest.mark.alone]

HOSTS = [
    "evil.com", "localhost.evil.com", "127.0.0.1.nip.io", "[::1]:99", "0.0.0.0",
    "0.0.0.0:PORT", "127.0.0.2", "127.1", "2130706433", "0x7f.1", "0177.0.0.1",
    "[::ffff:127.0.0.1]:PORT", "[::]", "localhost:1", "localhost:PORT0",
    "user@localhost:PORT", "localhost/", "localhost.", "localhost:PORT:PORT", "[::1",
    "foo.localhost", "x.nestor.localhost", "localhost, evil.com", "evil.com, localhost",
    "localhost evil", "localhost#", "localhost?", "http://localhost:PORT", "\xe9",
    "localhost%00", "loc\xe0lhost", "localhost:+PORT", "localhost:-1", ":PORT", "*",
]  # fmt: skip
ORIGINS = [
    "https://evil", "http://evil.com", "null", "http://localhost.evil", "http://localhost",
    "http://localhost:1", "http://127.0.0.1.nip.io:PORT", "https://localhost:PORT",
    "file://", "localhost:PORT", "http://u@localhost:PORT", "http://localhost:PORT.evil",
    "http://localhost:PORT, http://evil", "http://evil http://localhost:PORT",
    "chrome-extension://x", "", "*", "http://[::1]:1", "http://0.0.0.0:PORT",
    "http://localhost:PORT/", "ws://localhost:PORT", "http://foo.localhost:PORT",
]  # fmt: skip
SITES = ["cross-site", "same-site", "Cross-Site", "none, cross-site", "anything", "", "null"]  # fmt: skip
PATHS = ("/health/live", "/", "/metrics", "/nothing")
PROTECTION = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


def refused(stack: Attacked, layer: str, status: set[int], *lines: str, host: str = "127.0.0.1:PORT") -> list[str]:  # fmt: skip
    """Send it with every method; returns where the answer was another one."""
    wrong = []
    line, body = stack.effect(layer)
    targets = [(method, path, b"") for method in METHODS for path in PATHS[:1]]
    targets += [("GET", path, b"") for path in PATHS[1:]]
    targets += [(*line.split(" "), body)]  # type: ignore[list-item]
    for method, path, sent in targets:
        talk = stack.say(
            layer,
            stack.request(layer, f"{method} {path} HTTP/1.1", *lines, host=host, body=sent or None),
        )  # fmt: skip
        if talk.status not in status or b"access-control-" in talk.raw.lower():
            wrong.append(f"{method} {path} {lines} {host}: {talk.raw[:300]!r}")
    return wrong


@pytest.mark.parametrize("layer", LAYERS)
def test_b1_another_host_is_421_with_every_method(stack: Attacked, layer: str) -> None:
    wrong = []
    with stack.unharmed():
        for host in HOSTS:
            wrong += refused(stack, layer, {400, 421}, host=host)
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_b1_other_headers_do_not_stand_for_the_host(
    stack: Attacked, layer: str
) -> None:
    own = "127.0.0.1:PORT"
    with stack.unharmed():
        for line in (f"X-Forwarded-Host: {own}", f"Forwarded: host={own}",
                     f"X-Host: {own}", f"X-Original-Host: {own}"):  # fmt: skip
            wrong = refused(stack, layer, {421}, line, host="evil.com")
            assert not wrong, "\n".join(wrong)
    # And a foreign one there takes nothing from the right Host.
    talk = stack.ask(layer, "GET /health/live", "X-Forwarded-Host: evil.com")
    assert talk.status == 200
    assert b"evil.com" not in talk.raw


@pytest.mark.parametrize("layer", LAYERS)
def test_b2_b3_another_origin_is_403_with_every_method(
    stack: Attacked, layer: str
) -> None:
    wrong = []
    with stack.unharmed():
        for origin in ORIGINS:
            wrong += refused(stack, layer, {403}, f"Origin: {origin}")
        wrong += refused(
            stack, layer, {403}, "Origin: http://localhost:PORT", "Origin: http://evil"
        )
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_b2_the_origin_of_another_port_of_ours_is_another_origin(
    stack: Attacked, layer: str
) -> None:
    with stack.unharmed():
        for other in set(LAYERS) - {layer}:
            origin = f"Origin: http://127.0.0.1:{stack.ports[other]}"
            wrong = refused(stack, layer, {403}, origin)
            assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_b3_a_preflight_is_granted_nothing(stack: Attacked, layer: str) -> None:
    asks = ("Access-Control-Request-Method: DELETE",
            "Access-Control-Request-Headers: authorization",
            "Access-Control-Request-Private-Network: true")  # fmt: skip
    for origin in ("http://evil", "http://127.0.0.1:PORT"):
        for key in ("admin", None):
            talk = stack.ask(
                layer, "OPTIONS /health/live", f"Origin: {origin}", *asks, key=key
            )
            assert not [n for n, _ in talk.headers if n.startswith("access-control-")]
    for path in PATHS:
        talk = stack.ask(layer, f"GET {path}", "Origin: http://127.0.0.1:PORT")
        assert not [n for n, _ in talk.headers if n.startswith("access-control-")]


@pytest.mark.parametrize("layer", LAYERS)
def test_b4_a_request_from_another_site_is_403_with_every_method(
    stack: Attacked, layer: str
) -> None:
    wrong = []
    with stack.unharmed():
        for site in SITES:
            wrong += refused(stack, layer, {403}, f"Sec-Fetch-Site: {site}")
        two = ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site")
        wrong += refused(stack, layer, {403}, *two)
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", LAYERS)
def test_b4_a_form_that_any_page_may_send_does_nothing(
    stack: Attacked, layer: str
) -> None:
    line, body = stack.effect(layer)
    with stack.unharmed():
        for kind in (
            "application/x-www-form-urlencoded",
            "text/plain",
            "multipart/form-data",
        ):
            talk = stack.ask(layer, line, f"Content-Type: {kind}", body=body, key=None)
            assert talk.status == 401
            talk = stack.ask(layer, line, f"Content-Type: {kind}", "Cookie: nestor_session=" + "a" * 43,
                             body=body, key=None)  # fmt: skip
            assert talk.status in {401, 403}


@pytest.mark.parametrize("layer", LAYERS)
def test_b6_every_kind_of_reply_carries_the_protection(
    stack: Attacked, layer: str
) -> None:
    ask = stack.ask
    talks = {
        "live": ask(layer, "GET /health/live", key=None),
        "metrics": ask(layer, "GET /metrics"),
        "docs": ask(layer, "GET /docs"),
        "page": ask(layer, "GET /"),
        "options": ask(layer, "OPTIONS /health/live"),
        "no key": ask(layer, "GET /metrics", key=None),
        "wrong key": ask(layer, "GET /metrics", key="wrong"),
        "nothing": ask(layer, "GET /nothing"),
        "method": ask(layer, "DELETE /health/live"),
        "odd method": ask(layer, "PROPFIND /health/live"),
        "odd path": ask(layer, "GET //evil"),
        "host": ask(layer, "GET /", host="evil.com"),
        "origin": ask(layer, "GET /", "Origin: http://evil"),
        "length": ask(layer, "POST /", "Content-Length: 99999999999", first=True),
        "target": ask(layer, f"GET /{'a' * 20_000}"),
        "headers": ask(layer, "GET /", *["A: b"] * 200),
        "nonsense": stack.say(layer, b"nonsense\r\n\r\n"),
    }
    for case, talk in talks.items():
        for name, value in PROTECTION.items():
            assert talk.values(name) == [value], (case, name, talk.raw[:600])
        (policy,) = talk.values("content-security-policy")
        rules = [rule.strip() for rule in policy.split(";")]
        assert "default-src 'none'" in rules, case
        assert "frame-ancestors 'none'" in rules, case
        assert "unsafe" not in policy
        assert len(talk.values("x-trace-id")) == 1, case
        for name in ("server", "x-powered-by", "set-cookie", "location"):
            assert not talk.values(name), (case, name)


@pytest.mark.parametrize("layer", LAYERS)
def test_b7_no_other_protocol_and_no_stream_for_a_foreign_page(
    stack: Attacked, layer: str
) -> None:
    shake = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
    paths = (
        "/",
        "/health/live",
        "/tasks/x/events",
        "/v1/chat/completions",
        "/ws",
        "/mcp",
    )
    with stack.unharmed():
        for path in paths:
            for lines in (shake, ("Accept: text/event-stream",)):
                for foreign in (
                    "Origin: http://evil",
                    "Origin: null",
                    "Sec-Fetch-Site: cross-site",
                ):
                    talk = stack.ask(layer, f"GET {path}", *lines, foreign)
                    assert talk.status == 403, (path, foreign)
    for path in paths:
        talk = stack.ask(layer, f"GET {path}", *shake)
        assert talk.status in {200, 404, 405}, path
        assert not talk.values("sec-websocket-accept")


@pytest.mark.parametrize("layer", LAYERS)
def test_b8_reading_methods_change_nothing(stack: Attacked, layer: str) -> None:
    line, body = stack.effect(layer)
    with stack.unharmed(served=True):
        for route in routes(layer):
            if route.method not in {"GET", "HEAD", "OPTIONS"}:
                continue
            for tunnel in ("X-HTTP-Method-Override: DELETE", "X-Method-Override: POST",
                           "X-HTTP-Method: DELETE", "A: b"):  # fmt: skip
                line = f"{route.method} {route.filled(stack.document)}"
                assert stack.ask(layer, line, tunnel, body=body).status < 500
        for method in ("GET", "HEAD", "OPTIONS"):
            for path in ("/submit", "/tasks", "/keys", "/reindex", "/documents", "/route",
                         "/tasks/x/cancel", "/tasks?_method=POST", "/keys?method=POST"):  # fmt: skip
                assert stack.ask(layer, f"{method} {path}", body=body).status < 500
