"""Sessions of the page over real HTTP: what their cookies open, and what they do not."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr
from tests.faces.page import CHANGING, Browser, link
from tests.faces.shell import (
    ADMIN_KEY,
    Served,
    served,
    status_of,
)
from tests.system.workbench import NOBODY

from nestor.errors import Unauthorized
from nestor.settings import Settings
from nestor.web.auth import is_page_host, page_hosts
from nestor.wiring import running

# What a session opens.


@pytest.mark.parametrize("method", CHANGING)
async def test_b4_a_session_changes_nothing_without_its_token(
    page: Served, browser: Browser, method: str
) -> None:
    other = Browser(page)
    await other.sign_in(await link(page))
    secret = str(browser.cookie).partition("=")[2]
    for wrong in ({}, *[{"X-CSRF-Token": t} for t in ("", "x", other.csrf, secret)]):
        reply = await browser.call(method, "/change", headers=wrong)
        assert reply.status == 403
        assert "X-CSRF-Token" in reply.json["detail"]
    assert page.nestor.done == []
    good = {"X-CSRF-Token": browser.csrf}
    assert (await browser.call(method, "/change", headers=good)).status == 204
    assert page.nestor.done == [method]


async def test_b4_two_csrf_tokens_are_none(page: Served, browser: Browser) -> None:
    head = (
        f"DELETE /session HTTP/1.1\r\nHost: {browser.host}\r\nConnection: close\r\n"
        f"Cookie: {browser.cookie}\r\nX-CSRF-Token: x\r\n"
        f"X-CSRF-Token: {browser.csrf}\r\n\r\n"
    )
    assert status_of(await page.raw(head.encode())) == 403


@pytest.mark.parametrize(
    "name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "Localhost"]
)
async def test_under_a_shared_name_the_cookie_is_as_if_it_were_absent(
    page: Served, browser: Browser, name: str
) -> None:
    elsewhere = Browser(page, name)
    elsewhere.cookie = browser.cookie
    checked = page.nestor.sessions.checked
    assert (await elsewhere.call("GET", "/mine")).status == 401
    assert (await elsewhere.call("GET", "/")).status == 200
    assert page.nestor.sessions.checked == checked
    again = {"Cookie": str(browser.cookie)}
    with_key = await page.call("GET", "/mine", headers=again)
    assert with_key.json == {"by": "admin"}


@pytest.mark.parametrize("layer", ["ralph", "aidb", "coordinator", "learning"])
async def test_on_every_other_layer_the_cookie_is_as_if_it_were_absent(
    page: Served, browser: Browser, layer: str
) -> None:
    async with served(page.nestor, layer=layer) as other:
        asked = {"Cookie": str(browser.cookie), "X-CSRF-Token": browser.csrf}
        host = {"Host": f"nestor.localhost:{other.port}"}
        for method, path in (("GET", "/things"), ("POST", "/things"), ("GET", "/docs")):
            reply = await other.call(method, path, key=None, headers=asked | host)
            assert reply.status == 401, (method, path)
    assert page.nestor.done == []


async def test_a4_a_cookie_in_any_other_form_is_401_and_not_looked_up(
    page: Served, browser: Browser
) -> None:
    good = str(browser.cookie)
    secret = good.partition("=")[2]
    checked = page.nestor.sessions.checked
    for wrong in (
        f"{good}; {good}",
        f"{good}; nestor_session=x",
        "nestor_session=",
        f'nestor_session="{secret}"',
        f"nestor_session={secret}%20",
        "nestor_session=' OR 1=1--",
        f"nestor_session={'k' * 201}",
        f"nestor_session={secret}é",
        f"nestor_session= {secret}",
    ):
        reply = await browser.call("GET", "/mine", headers={"Cookie": wrong})
        assert reply.status == 401, wrong
        assert secret not in reply.body.decode()
    assert page.nestor.sessions.checked == checked
    for absent in (f"Nestor_Session={secret}", f"x{good}", f"other={secret}", ""):
        reply = await browser.call("GET", "/mine", headers={"Cookie": absent})
        assert (reply.status, "a key is needed" in reply.json["detail"]) == (401, True)
    for fine in (good, f"a=b; {good}", f"{good};c=d", f" {good} ; nestor_sessions=1"):
        reply = await browser.call("GET", "/mine", headers={"Cookie": fine})
        assert reply.status == 200, fine


async def test_a4_two_cookie_headers_with_a_session_each_are_401(
    page: Served, browser: Browser
) -> None:
    lines = f"Cookie: {browser.cookie}\r\n" * 2
    head = f"GET /mine HTTP/1.1\r\nHost: {browser.host}\r\nConnection: close\r\n{lines}\r\n"
    assert status_of(await page.raw(head.encode())) == 401


async def test_a4_neither_secret_opens_anything_in_anothers_place(
    page: Served, browser: Browser
) -> None:
    secret = str(browser.cookie).partition("=")[2]
    token = await link(page)
    for wrong in (secret, token, browser.csrf):
        for headers in ({"Authorization": f"Bearer {wrong}"}, {"X-API-Key": wrong}):
            reply = await page.call("GET", "/mine", key=None, headers=headers)
            assert reply.status == 401
    for wrong in (ADMIN_KEY, page.nestor.service_key, token, browser.csrf):
        cookie = {"Cookie": f"nestor_session={wrong}"}
        assert (await browser.call("GET", "/mine", headers=cookie)).status == 401


async def test_a_key_that_is_given_counts_and_the_cookie_beside_it_does_not(
    page: Served, browser: Browser
) -> None:
    wrong = {"Authorization": "Bearer nobody"}
    assert (await browser.call("GET", "/mine", headers=wrong)).status == 401
    _, reader = await page.nestor.keys.create("r", ["read"])
    key = {"X-API-Key": reader}
    assert (await browser.call("POST", "/change", headers=key)).status == 403
    assert (await browser.call("GET", "/session", headers=key)).status == 403
    admin = {"X-API-Key": ADMIN_KEY}
    assert (await browser.call("GET", "/session", headers=admin)).status == 404
    assert (await browser.call("DELETE", "/session", headers=admin)).status == 404


async def test_signing_out_holds_at_once_and_clears_the_cookie(
    page: Served, browser: Browser
) -> None:
    other = Browser(page)
    await other.sign_in(await link(page))
    csrf = {"X-CSRF-Token": browser.csrf}
    reply = await browser.call("DELETE", "/session", headers=csrf)
    assert (reply.status, reply.body) == (204, b"")
    cleared = "nestor_session=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
    assert reply.headers["Set-Cookie"] == cleared
    ended = await browser.call("GET", "/mine")
    assert (ended.status, "nestor page" in ended.json["detail"]) == (401, True)
    assert (await browser.call("DELETE", "/session", headers=csrf)).status == 401
    assert (await other.call("GET", "/mine")).status == 200


async def test_sessions_and_links_end_when_the_stack_gets_another_admin_key(
    tmp_path: Path,
) -> None:
    async def started(
        key: str, secret: str | None, token: str | None
    ) -> tuple[str, str]:
        settings = Settings(home=tmp_path / "home", api_key=SecretStr(key))
        async with running(settings, coordinator_url=NOBODY) as nestor:
            sessions = nestor.sessions
            if secret and token:
                same = key == ADMIN_KEY
                assert (await sessions.check(secret) is not None) == same
                if not same:
                    with pytest.raises(Unauthorized):
                        await sessions.redeem(token)
            made = await sessions.redeem((await sessions.make_link()).token)
            return made[1], (await sessions.make_link()).token

    secret, token = await started(ADMIN_KEY, None, None)
    await started("another-admin-secret-0123456789", secret, token)
    await started(ADMIN_KEY, secret, token)


def test_names_that_other_programs_use_are_no_names_of_the_page() -> None:
    allowed = ["localhost", "localhost.", "127.0.0.1:8888", "127.9.9.9", "[::1]"]
    settings = SimpleNamespace(
        host="10.0.0.5", allowed_hosts=[*allowed, "10.0.0.5", "Nestor.Example:443"]
    )
    names = page_hosts(settings)
    assert names == ("nestor.localhost", "nestor.example:443")
    assert is_page_host([b"NESTOR.localhost:9"], names)
    assert is_page_host([b"nestor.example:443"], names)
    for other in (b"nestor.example", b"nestor.example:80", b"x.nestor.localhost", b""):
        assert not is_page_host([other], names)
    assert not is_page_host([b"nestor.localhost"] * 2, names)
    assert not is_page_host([], names)


# Strangers.


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/nothing", "/session/links/x", "/Session"]
)
async def test_p1_of_paths_that_are_not_served_a_stranger_hears_403_and_others_404(
    page: Served, browser: Browser, path: str
) -> None:
    for method in ("GET", "POST", "DELETE"):
        stranger = await page.call(method, path, key=None)
        assert stranger.status == 403
        assert stranger.json["detail"] == "nothing is served here"
        assert (await page.call(method, path, key="nobody")).status == 401
        assert (await page.call(method, path)).status == 404
    assert (await browser.call("GET", "/etc/passwd")).status == 404


async def test_of_paths_that_are_served_a_stranger_hears_that_a_key_is_needed(
    page: Served,
) -> None:
    for path in ("/session", "/session/links", "/metrics", "/docs", "/health/detailed"):
        for method in ("GET", "DELETE", "PUT"):
            assert (await page.call(method, path, key=None)).status == 401, path
