import asyncio

import pytest
from litestar.routes import HTTPRoute
from tests.faces.shell import (
    ADMIN_KEY,
    SERVICE_KEY,
    MemoryKeys,
    MemorySessions,
    Served,
    SmallNestor,
    serving,
    small_app,
    status_of,
)

from nestor.errors import Unauthorized
from nestor.model.health import Dependency
from nestor.web import aidb, coordinator, dashboard, learning, ralph
from nestor.web.app import LayerApp, create_app, open_targets
from nestor.web.auth import Authenticator, key_of

OPEN = {"/health/live", "/health/ready", "/health/startup"}


def routes(app: LayerApp) -> list[tuple[str, str]]:
    """Every method and path that the router knows, with parameters filled in."""
    return [
        (method, route.path_format.replace("{", "").replace("}", ""))
        for route in app.litestar.routes
        if isinstance(route, HTTPRoute)
        for method in route.route_handler_map
    ]


async def test_a1_every_route_refuses_without_a_key_before_the_body_is_read(
    shell: Served,
) -> None:
    found = routes(shell.app)
    assert len(found) > 30
    for method, path in found:
        if path in OPEN and method == "GET":
            continue
        # A body is announced and never sent: an answer now was made without it.
        head = shell.head(f"{method} {path} HTTP/1.1", "Content-Length: 1000", key=None)
        answer = await shell.raw(head)
        assert status_of(answer) == 401, (method, path, answer)
        assert b"www-authenticate: Bearer" in answer
        assert b"application/problem+json" in answer
    assert shell.nestor.done == []


async def test_a1_what_is_open_is_exactly_the_three_health_routes(
    shell: Served,
) -> None:
    answered = set()
    for method, path in routes(shell.app):
        reply = await shell.call(method, path, key=None)
        if reply.status != 401:
            answered.add((method, path))
    assert answered == {("GET", path) for path in OPEN}


@pytest.mark.parametrize(
    "path",
    [
        "/health/live/",
        "//health/live",
        "/health/./live",
        "/health/liv%65",
        "/health/live;a",
    ],
)
async def test_another_spelling_of_an_open_path_is_not_open(
    shell: Served, path: str
) -> None:
    answer = await shell.raw(shell.head(f"GET {path} HTTP/1.1", key=None))
    assert status_of(answer) in {401, 404}


async def test_unknown_paths_are_not_told_to_strangers(shell: Served) -> None:
    assert (await shell.call("GET", "/nothing", key=None)).status == 401


async def test_both_headers_work_and_the_scheme_is_not_case_sensitive(
    shell: Served,
) -> None:
    for headers in (
        {"Authorization": f"Bearer {ADMIN_KEY}"},
        {"authorization": f"bearer {ADMIN_KEY}"},
        {"X-API-Key": ADMIN_KEY},
        {"X-API-Key": ADMIN_KEY, "Authorization": f"Bearer {ADMIN_KEY}"},
    ):
        reply = await shell.call("GET", "/things", key=None, headers=headers)
        assert reply.status == 200, headers


@pytest.mark.parametrize(
    "lines",
    [
        (f"Authorization: Bearer {ADMIN_KEY}x",),
        (f"Authorization: Bearer {ADMIN_KEY[:-1]}",),
        (f"Authorization: Basic {ADMIN_KEY}",),
        (f"Authorization: {ADMIN_KEY}",),
        ("Authorization: Bearer",),
        ("Authorization: Bearer ",),
        ("X-API-Key:",),
        ("Authorization: Bearer ' OR 1=1--",),
        (f"Authorization: Bearer {'k' * 20_000}",),
        ("Authorization: Bearer \xe9\xe8",),
        (f"Authorization: Bearer {ADMIN_KEY}", "X-API-Key: other"),
        ("Authorization: Bearer other", f"X-API-Key: {ADMIN_KEY}"),
        (f"X-API-Key: {ADMIN_KEY}", f"X-API-Key: {ADMIN_KEY}"),
        (f"Authorization: Bearer {ADMIN_KEY}", f"Authorization: Bearer {ADMIN_KEY}"),
        (f"Cookie: key={ADMIN_KEY}",),
    ],
)
async def test_a3_a4_a_wrong_key_in_any_form_is_401(
    shell: Served, lines: tuple[str, ...]
) -> None:
    answer = await shell.raw(shell.head("GET /things HTTP/1.1", *lines, key=None))
    assert status_of(answer) == 401
    assert ADMIN_KEY.encode() not in answer


async def test_a3_a_bearer_of_a_megabyte_is_refused(shell: Served) -> None:
    line = f"Authorization: Bearer {'k' * 1_000_000}"
    try:
        answer = await shell.raw(shell.head("GET /things HTTP/1.1", line, key=None))
    except ConnectionError:
        return  # closed while we were still sending: refused as well
    assert status_of(answer) in {401, 431}


async def test_a_key_reaches_what_its_scopes_say(shell: Served) -> None:
    _, reader = await shell.nestor.keys.create("r", ["read"])
    assert (await shell.call("GET", "/things", key=reader)).status == 200
    refused = await shell.call("POST", "/things", key=reader, json={"name": "a"})
    assert refused.status == 403
    assert "submit" in refused.json["detail"]
    assert shell.nestor.done == []
    assert (await shell.call("GET", "/health/detailed", key=reader)).status == 200
    assert (await shell.call("GET", "/metrics", key=reader)).status == 403


async def test_a_route_that_names_no_scope_is_for_the_admin_alone(
    shell: Served,
) -> None:
    _, other = await shell.nestor.keys.create(
        "all", ["submit", "approve", "model", "read", "metrics", "service"]
    )
    assert (await shell.call("GET", "/unscoped", key=other)).status == 403
    assert (await shell.call("GET", "/unscoped")).status == 200


async def test_a_revoked_key_is_refused(shell: Served) -> None:
    made, secret = await shell.nestor.keys.create("r", ["read"])
    await shell.nestor.keys.revoke(made.id)
    assert (await shell.call("GET", "/things", key=secret)).status == 401


async def test_a_task_key_reaches_v1_of_the_coordinator_and_nothing_else(
    shell: Served,
) -> None:
    _, key = await shell.nestor.keys.create("t", ["task:t1"])
    assert (await shell.call("GET", "/v1/models", key=key)).status == 200
    for method, path in routes(shell.app):
        if path in {*OPEN, "/v1/models", "/v1/chat/completions"}:
            continue
        reply = await shell.call(method, path, key=key)
        assert reply.status == 403, (method, path, reply.body)
    assert shell.nestor.done == []


async def test_a_task_key_stays_a_task_key_whatever_else_it_is_given(
    shell: Served,
) -> None:
    _, key = await shell.nestor.keys.create("t", ["task:t1", "admin"])
    assert (await shell.call("GET", "/things", key=key)).status == 403
    assert (await shell.call("GET", "/v1/secret", key=key)).status == 403


async def test_a_task_key_reaches_no_other_layer(nestor: SmallNestor) -> None:
    from tests.faces.shell import served  # noqa: PLC0415

    _, key = await nestor.keys.create("t", ["task:t1"])
    async with served(nestor, layer="ralph") as ralph:
        assert (await ralph.call("GET", "/v1/models", key=key)).status == 403


async def test_the_admin_key_needs_no_key_store(shell: Served) -> None:
    shell.nestor.keys.down = True
    assert (await shell.call("GET", "/things")).status == 200
    other = await shell.call("GET", "/things", key="somebody")
    assert (other.status, other.json["title"]) == (503, "Unavailable")


async def test_an_open_route_asks_no_key_store(shell: Served) -> None:
    await shell.call("GET", "/health/live", key="somebody")
    assert shell.nestor.keys.checked == 0


def test_a7_an_empty_admin_key_is_refused_at_the_start(nestor: SmallNestor) -> None:
    nestor.api_key = ""
    with pytest.raises(ValueError, match="empty key"):
        small_app(nestor)


async def test_the_service_key_opens_detailed_health_and_metrics_and_nothing_else(
    nestor: SmallNestor,
) -> None:
    async def nothing() -> list[Dependency]:
        return []

    for layer in (dashboard, ralph, aidb, coordinator, learning):
        name = layer.__name__.rpartition(".")[2]
        app = create_app(name, nestor, layer.handlers(), dependencies=nothing)
        opened = open_targets(app.litestar)
        async with serving(nestor, app) as shell:
            reached = set()
            for method, path in routes(app):
                if (method, path.encode()) in opened:
                    continue
                reply = await shell.call(method, path, key=SERVICE_KEY)
                if reply.status != 403:
                    reached.add((method, path, reply.status))
        assert reached == {
            ("GET", "/health/detailed", 200),
            ("GET", "/metrics", 200),
        }, name


@pytest.mark.parametrize(
    "key", [b"' OR 1=1--", b"a b", b"a\tb", b"\x7f", b"k" * 513, b"", b"\xe9"]
)
def test_a3_what_cannot_be_a_key_is_not_looked_up(key: bytes) -> None:
    for name in (b"authorization", b"x-api-key"):
        value = b"Bearer " + key if name == b"authorization" else key
        with pytest.raises(Unauthorized):
            key_of({name: [value]})


def test_the_longest_key_is_512_bytes() -> None:
    assert key_of({b"x-api-key": [b"k" * 512]}) == b"k" * 512
    with pytest.raises(Unauthorized):
        key_of({b"x-api-key": [b"k" * 513]})


async def test_keys_are_compared_without_looking_them_up_first() -> None:
    keys = MemoryKeys()
    check = Authenticator(
        layer="ralph",
        api_key="a",
        service_key="s",
        keys=keys,
        sessions=MemorySessions(),
        opened=frozenset(),
    )
    scope = {"method": "GET", "raw_path": b"/", "path": "/"}
    await asyncio.wait_for(check(scope, {b"x-api-key": [b"a"]}), 1)
    assert scope["user"].key_id == "admin"  # type: ignore[attr-defined]
    assert keys.checked == 0
