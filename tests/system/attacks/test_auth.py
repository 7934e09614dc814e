"""Attacks A: who may what, on every route of the five layers as their routers have them."""

import json
from typing import Any

import pytest
from tests.system.attacks.attacked import CANARY, LAYERS, Attacked
from tests.system.attacks.routes import Route, every_route, routes

from nestor.model.access import ADMIN, SCOPES

pytestmark = [pytest.mark.heavy, pytest.mark.alone]

NO_BODY = ("Content-Length: 1000",)
"""Announced and never sent: an answer in time was made without it."""


@pytest.fixture(scope="module")
def keys(child: Attacked) -> dict[str, str]:
    """A key for each scope alone, and one of a task."""
    return {
        scope: child.new_key(scope) for scope in (*sorted(SCOPES - {ADMIN}), "task:t1")
    }


def may(scope: str, route: Route) -> bool:
    """Tell whether a key with this scope alone opens a route."""
    if scope.startswith("task:"):
        wanted = route.scopes or ()
        of_models = route.layer == "coordinator" and route.path.startswith("/v1/")
        return of_models and ADMIN not in wanted
    return scope in (route.scopes or ())


def test_a1_the_control_the_routers_are_those_of_the_running_stack(
    stack: Attacked,
) -> None:
    found = every_route()
    assert {route.layer for route in found} == set(LAYERS)
    assert len(found) > 80
    for layer in LAYERS:
        document = stack.json(layer, "GET /schema/openapi.json", None)
        described = {
            (method.upper(), path)
            for path, methods in document["paths"].items()
            for method in methods
        }
        known = {(route.method, route.path) for route in routes(layer)}
        assert described
        assert described <= known


def test_a1_what_is_open_is_known_by_name() -> None:
    opened = {
        f"{route.layer} {route.path}"
        for route in every_route()
        if route.scopes is None and not route.path.startswith("/health/")
    }
    assert opened <= {
        "dashboard /", "dashboard /session", "dashboard /static/session.js",
        "dashboard /static/page.css", "dashboard /static/icon.svg",
        "dashboard /aidb/health/live", "dashboard /aidb/health/ready",
        "dashboard /aidb/health/startup",
    }  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_a1_every_route_is_401_without_a_key_before_the_body_is_read(
    stack: Attacked, layer: str
) -> None:
    wrong, asked = [], 0
    with stack.unharmed():
        for route in routes(layer):
            if route.scopes is None:
                continue
            asked += 1
            line = f"{route.method} {route.filled()}"
            for lines in (NO_BODY, ("Transfer-Encoding: chunked",), ()):
                talk = stack.ask(layer, line, *lines, key=None, wait_s=3, first=True)
                said = talk.values("www-authenticate")
                if talk.statuses != [401] or said != ["Bearer"]:
                    wrong.append(f"{line} {lines}: {talk.raw[:300]!r}")
        assert not wrong, "\n".join(wrong)
    assert asked >= 5


@pytest.mark.parametrize("layer", LAYERS)
def test_a1_every_route_is_403_with_each_wrong_scope_before_the_body_is_read(
    stack: Attacked, layer: str, keys: dict[str, str]
) -> None:
    wrong, asked = [], 0
    with stack.unharmed():
        for route in routes(layer):
            line = f"{route.method} {route.filled()}"
            for scope, key in keys.items():
                if route.scopes is None or may(scope, route):
                    continue
                asked += 1
                talk = stack.ask(layer, line, *NO_BODY, key=key, wait_s=3, first=True)
                if talk.statuses != [403]:
                    wrong.append(f"{line} {scope}: {talk.raw[:300]!r}")
        assert not wrong, "\n".join(wrong)
    assert asked >= 30


@pytest.mark.parametrize("layer", LAYERS)
def test_a1_the_control_a_right_scope_is_not_refused(
    stack: Attacked, layer: str, keys: dict[str, str]
) -> None:
    seen = 0
    for route in routes(layer):
        if route.method != "GET" or route.path.startswith("/aidb/"):
            continue
        for scope, key in {**keys, ADMIN: stack.key}.items():
            if scope == ADMIN or may(scope, route):
                talk = stack.ask(layer, f"GET {route.filled()}", key=key)
                assert talk.status not in {401, 403}, (route, scope, talk.raw[:300])
                seen += 1
    assert seen > 5


@pytest.mark.parametrize("layer", LAYERS)
def test_a1_no_path_tells_a_stranger_whether_it_exists(
    stack: Attacked, layer: str
) -> None:
    for path in (
        "/nothing",
        "/admin",
        "/.env",
        "/.git/config",
        "/keys/x",
        "/tasks/x/y",
    ):
        for method in ("GET", "POST", "DELETE", "PUT", "PATCH"):
            talk = stack.ask(layer, f"{method} {path}", key=None)
            assert talk.status in {401, 403}
            assert b"allow:" not in talk.raw.lower()


@pytest.mark.parametrize("layer", LAYERS)
def test_a2_a_key_in_the_url_is_refused_and_written_nowhere(
    stack: Attacked, layer: str
) -> None:
    names = ("api_key", "apikey", "api-key", "x-api-key", "key", "token", "access_token",
             "API_KEY", "%6bey", "+key", "a=1&key", "a=1;key", "%61ccess_token")  # fmt: skip
    line, body = stack.effect(layer)
    with stack.unharmed():
        for name in names:
            for key in (None, "admin"):
                for asked in ("GET /metrics", line):
                    talk = stack.ask(
                        layer, f"{asked}?{name}={stack.key}", key=key, body=body
                    )
                    assert talk.status == 400, (name, talk.raw)
                    assert stack.key.encode() not in talk.raw
        userinfo = f"GET http://u:{stack.key}@127.0.0.1:{stack.ports[layer]}/metrics"
        assert stack.ask(layer, userinfo, key=None).status in {400, 403}
    assert stack.key not in str(stack.records())


@pytest.mark.parametrize("layer", LAYERS)
def test_a3_no_string_is_taken_for_a_key(stack: Attacked, layer: str) -> None:
    line, body = stack.effect(layer)
    with stack.unharmed():
        for key in (
            "' OR 1=1--", "' OR '1'='1", '" OR ""="', "admin'--", "%", "_", "*", "nst_%",
            "nst_' UNION SELECT 1--", "../api-key", "file:///x", "null", "undefined", "true",
            "admin", "service", "task:t1", "0", "''", "\\", "%00", "${jndi:ldap://x}",
            "{{7*7}}", "\xe9\xe8", "\xff" * 40, "\t", "a" * 512, "a" * 513, "nst_" + "a" * 196,
            "nst_" + "a" * 43, stack.key[:-1], stack.key + "x", stack.key.swapcase(),
            stack.key + " " + stack.key, f'"{stack.key}"', stack.key[::-1], "a" * 20_000,
            stack.key + "\t" + "x", f"{stack.key},{stack.key}", f"{stack.key}%20",
        ):  # fmt: skip
            for lines in ((f"Authorization: Bearer {key}",), (f"X-API-Key: {key}",)):
                talk = stack.ask(layer, line, *lines, key=None, body=body)
                assert talk.status == 401, (key[:60], talk.raw[:400])
                assert stack.key.encode() not in talk.raw
        for name in (
            "Authorization: Bearer ",
            "X-API-Key: ",
            "Cookie: nestor_session=",
        ):
            head = stack.request(layer, f"{line} HTTP/1.1", name, key=None)
            # The value follows where the head would end, and its end never comes.
            pieces = [b"k" * 10_000] * 100
            talk, _ = stack.pour(layer, head.removesuffix(b"\r\n\r\n"), pieces)
            assert talk.status in {431, 401}, talk.raw[:300]


@pytest.mark.parametrize("layer", LAYERS)
def test_a4_each_way_to_give_a_key_follows_the_same_rule(
    stack: Attacked, layer: str, keys: dict[str, str]
) -> None:
    own, other = stack.key, keys["service"]
    basic = "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    line, body = stack.effect(layer)
    right = [
        (f"Authorization: Bearer {own}",), (f"authorization: bearer {own}",),
        (f"AUTHORIZATION: BEARER {own}",), (f"X-API-Key: {own}",), (f"x-api-key: {own}",),
        (f"X-API-Key: {own}", f"Authorization: Bearer {own}"),
        (f"Authorization: Bearer   {own}",),
        # A cookie beside a key counts for nothing.
        (f"Authorization: Bearer {own}", "Cookie: nestor_session=x"),
    ]  # fmt: skip
    for lines in right:
        talk = stack.ask(layer, "GET /metrics", *lines, key=None)
        assert talk.status == 200, lines
    wrong = [
        (f"Authorization: Basic {basic}",), (f"Authorization: Basic {own}",),
        (f"Authorization: {own}",), (f"Authorization: Token {own}",), ("Authorization:",),
        (f"Authorization: Digest {own}",), ("Authorization: Bearer",), ("X-API-Key:",),
        (f"Authorization: Bearer{own}",), (f"Authorization: Bearer\t{own}",),
        (f"Authorization: Bearer {own}", "X-API-Key: other"),
        ("Authorization: Bearer other", f"X-API-Key: {own}"),
        (f"Authorization: Bearer {other}", f"X-API-Key: {own}"),
        (f"Authorization: Bearer {own}", f"X-API-Key: {other}"),
        (f"X-API-Key: {own}", f"X-API-Key: {own}"),
        (f"X-API-Key: {other}", f"X-API-Key: {own}"),
        (f"Authorization: Bearer {own}", f"Authorization: Bearer {own}"),
        (f"Authorization: Bearer {other}", f"Authorization: Bearer {own}"),
        (f"Authorization: Bearer {own}", f"Authorization: Basic {basic}"),
        (f"Authorization: Bearer {own}", "X-API-Key:"),
        (f"X-API-Key: {own}, {own}",), (f"Cookie: key={own}",), (f"Cookie: nestor_session={own}",),
        (f"Cookie: Authorization=Bearer {own}; X-API-Key={own}",), (f"X-Auth-Token: {own}",),
        (f"Api-Key: {own}",), (f"X-Api-Key-: {own}",), (f"X_API_KEY: {own}",),
        (f"Proxy-Authorization: Bearer {own}",), (f"X-Real-Key: {own}",),
        (f"X-Forwarded-Authorization: Bearer {own}",), ("X-Forwarded-User: admin",),
        ("X-Forwarded-For: 127.0.0.1",), (f"Sec-WebSocket-Protocol: bearer, {own}",),
    ]  # fmt: skip
    with stack.unharmed():
        for lines in wrong:
            talk = stack.ask(layer, line, *lines, key=None, body=body)
            assert talk.status == 401, (lines, talk.raw[:300])
            assert own.encode() not in talk.raw


def test_a4_a_revoked_key_is_refused_on_every_port(stack: Attacked) -> None:
    made = stack.json("coordinator", "POST /keys", {"name": "r", "scopes": ["metrics"]})
    for layer in LAYERS:
        assert stack.ask(layer, "GET /metrics", key=made["key"]).status == 200
    stack.json("coordinator", f"DELETE /keys/{made['id']}", None)
    for layer in LAYERS:
        assert stack.ask(layer, "GET /metrics", key=made["key"]).status == 401


TASK: dict[str, Any] = {"task_id": "a6", "task": "t", "backend": "command",
                        "command": "true", "require_approval": True}  # fmt: skip
KEY: dict[str, Any] = {"name": "a6", "scopes": ["read"]}
TEXT: dict[str, Any] = {"project": "p", "path": "a6.md", "content": "x"}
ROUTE: dict[str, Any] = {"query": "q", "context": []}
FOREIGN = [
    ("ralph", "POST /submit", {**TASK, name: value}, name)
    for name, value in {
        "status": "verified", "success": True, "reason": "checks_passed", "approvals": [],
        "spent": {"usd": "0"}, "spent_usd": "0", "role": "admin", "key_id": "admin",
        "owner": "admin", "created_by": "admin", "submitted_by": "admin", "iteration": 0,
        "branch": "main", "digest": "x", "sandboxed": True, "replayed": True,
        "trace_id": "x", "scopes": ["admin"], "__class__": "x", "constructor": {},
        "Task_id": "a6", "task_Id": "b", "approved": True, "allowed_routes": ["*"],
    }.items()
] + [
    ("ralph", "POST /submit", {**TASK, "budget": {"spent_usd": "0"}}, "budget.spent_usd"),
    ("ralph", "POST /submit", {**TASK, "workspace": {"repo": "/x", "key": "k"}}, "workspace.key"),
    ("ralph", "POST /submit", {**TASK, "checks": [{"run": "true", "passed": True}]}, "checks.0.passed"),
    ("ralph", "POST /submit", {**TASK, "sandbox": {"enabled": False}}, "sandbox.enabled"),
    ("ralph", "POST /tasks/x/approve", {"approved": True, "decided_by": "admin"}, "decided_by"),
    ("ralph", "POST /tasks/x/approve", {"approved": True, "principal": "admin"}, "principal"),
] + [
    ("coordinator", "POST /keys", {**KEY, name: value}, name)
    for name, value in {
        "id": "admin", "key": "known-secret-0123456789", "secret": "x", "secret_hash": "x",
        "role": "admin", "budget": 1, "created_at": "2020-01-01T00:00:00Z", "scope": "admin",
        "revoked_at": None, "last_used_at": None, "allowed_routes": ["*"], "owner": "admin",
    }.items()
] + [
    ("coordinator", "POST /route", {**ROUTE, name: value}, name)
    for name, value in {
        "base_url": "http://127.0.0.1:9/", "api_base": "http://127.0.0.1:9/", "url": "x",
        "api_key": "x", "model": "x", "role": "admin", "budget": 9, "route": "remote",
        "interaction_id": "x", "key_id": "admin", "cost_usd": "0", "headers": {},
        "allowed_routes": ["*"], "principal": "admin",
    }.items()
] + [
    ("coordinator", "POST /v1/chat/completions",
     {"messages": [{"role": "user", "content": "q"}], "model": "local", name: "http://127.0.0.1:9/"}, name)
    for name in ("base_url", "api_base", "api_key", "extra_headers", "headers", "proxy", "url")
] + [
    ("aidb", "POST /documents", {**TEXT, name: value}, name)
    for name, value in {
        "id": "x", "url": "http://127.0.0.1:9/", "content_hash": "x", "size_bytes": 0,
        "added_at": "x", "role": "admin", "owner": "admin", "tenant": "x", "kind": "skill",
    }.items()
] + [
    ("aidb", "POST /search", {"query": "q", "tenant": "x"}, "tenant"),
    ("aidb", "POST /context", {"query": "q", "owner": "x"}, "owner"),
]  # fmt: skip


def test_a6_fields_that_are_not_the_callers_are_400_and_named(stack: Attacked) -> None:
    asked = len(stack.model.requests)
    with stack.unharmed():
        for layer, line, value, field in FOREIGN:
            talk = stack.ask(layer, line, body=json.dumps(value).encode())
            assert talk.status == 400, (line, field, talk.raw[:300])
            said = json.loads(talk.body)
            of_models = " /v1/" in line  # errors have the dialect's shape there
            named = (
                [said["error"]["param"]]
                if of_models
                else [one["field"] for one in said["errors"]]
            )
            assert named == [field], (line, named)
    assert len(stack.model.requests) == asked


def test_a6_no_key_gives_itself_or_another_more_than_it_has(
    stack: Attacked, keys: dict[str, str]
) -> None:
    with stack.unharmed():
        for scope, key in keys.items():
            for scopes in (["admin"], [scope], ["read", "admin"]):
                body = json.dumps({"name": "x", "scopes": scopes}).encode()
                talk = stack.ask("coordinator", "POST /keys", body=body, key=key)
                assert talk.status == 403
        for scopes in ([], ["root"], ["*"], ["ADMIN"], ["admin "], ["task:"], ["task:../x"],
                       ["read\nadmin"], [""], [CANARY], ["task:*"]):  # fmt: skip
            body = json.dumps({"name": "x", "scopes": scopes}).encode()
            talk = stack.ask("coordinator", "POST /keys", body=body)
            assert talk.status == 400, scopes
