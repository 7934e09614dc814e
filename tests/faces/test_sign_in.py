"""Signing a browser in to the page, over real HTTP and from the command line."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from tests.faces.fake_stack import Cli, FakeStack, Reply
from tests.faces.page import Browser, Minutes, dashboard_of, link
from tests.faces.shell import (
    Served,
    SmallNestor,
    serving,
    status_of,
)

from nestor.settings import Settings
from nestor.web import session
from nestor.web.auth import csrf_token
from nestor.web.client_address import ClientAddresses

# Links.


async def test_a_link_holds_its_token_in_the_fragment_of_the_pages_own_name(
    page: Served,
) -> None:
    made = (await page.call("POST", "/session/links")).json
    start = f"http://nestor.localhost:{page.port}/#link="
    assert re.fullmatch(re.escape(start) + r"[A-Za-z0-9_-]{32,}", made["url"])
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=4) < left <= timedelta(minutes=5)


async def test_links_are_made_with_the_admin_key_and_by_no_page_and_no_other_key(
    page: Served, browser: Browser
) -> None:
    before = set(page.nestor.sessions._links)
    asked = {"X-CSRF-Token": browser.csrf}
    by_page = await browser.call("POST", "/session/links", headers=asked)
    assert (by_page.status, "nestor page" in by_page.json["detail"]) == (403, True)
    every = ["submit", "approve", "model", "read", "metrics", "service"]
    _, other = await page.nestor.keys.create("all", every)
    assert (await page.call("POST", "/session/links", key=other)).status == 403
    assert (await page.call("POST", "/session/links", key=None)).status == 401
    assert page.nestor.sessions._links == before


@pytest.mark.parametrize(
    ("host", "allowed", "url"),
    [
        ("127.0.0.1", [], "http://nestor.localhost:8888/"),
        ("::1", ["nestor.example"], "http://nestor.localhost:8888/"),
        ("0.0.0.0", [], "http://nestor.localhost:8888/"),
        ("0.0.0.0", ["nestor.example"], "http://nestor.example:8888/"),
        ("10.0.0.7", ["nestor.example:80", "b"], "http://nestor.example:80/"),
        # As the settings leave them: HOST was added, and nobody chose it for the page.
        ("10.0.0.7", ["nestor.example", "10.0.0.7"], "http://nestor.example:8888/"),
        ("10.0.0.7", ["10.0.0.7", "nestor.example"], "http://nestor.example:8888/"),
        ("10.0.0.7", ["10.0.0.7:8888"], "http://10.0.0.7:8888/"),
        ("127.0.0.2", ["127.0.0.2"], "http://nestor.localhost:8888/"),
        ("127.0.0.2", ["b", "127.0.0.2"], "http://nestor.localhost:8888/"),
        ("10.0.0.7", ["10.0.0.7"], "http://nestor.localhost:8888/"),
    ],
)
def test_a_link_leads_where_a_browser_can_be_signed_in(
    nestor: SmallNestor, host: str, allowed: list[str], url: str
) -> None:
    nestor.settings.host, nestor.settings.allowed_hosts = host, allowed
    assert session.link_url(nestor.settings, 8888, "T") == f"{url}#link=T"


# Ending them all.


async def test_the_admin_key_ends_every_session_and_open_links_and_no_page_does(
    page: Served, browser: Browser
) -> None:
    other, token = Browser(page), await link(page)
    await other.sign_in(await link(page))
    asked = {"X-CSRF-Token": browser.csrf}
    assert (await browser.call("DELETE", "/sessions", headers=asked)).status == 403
    assert (await page.call("DELETE", "/sessions", key=None)).status == 401
    _, reader = await page.nestor.keys.create("r", ["read"])
    assert (await page.call("DELETE", "/sessions", key=reader)).status == 403
    assert (await other.call("GET", "/mine")).status == 200
    reply = await page.call("DELETE", "/sessions")
    assert (reply.status, reply.body) == (204, b"")
    for ended in (browser, other):
        assert (await ended.call("GET", "/mine")).status == 401
    assert (await Browser(page).sign_in(token)).status == 401


# Signing in.


async def test_signing_in_sets_a_cookie_that_no_script_reads_and_no_other_site_sends(
    page: Served,
) -> None:
    browser = Browser(page)
    reply = await browser.sign_in(await link(page))
    assert reply.status == 201
    assert set(reply.json) == {"csrf_token", "expires_at"}
    name, *attributes = reply.headers["Set-Cookie"].split("; ")
    assert re.fullmatch(r"nestor_session=[A-Za-z0-9_-]{32,}", name)
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=28800"]
    secret = name.partition("=")[2]
    assert secret not in reply.body.decode()
    assert reply.json["csrf_token"] == csrf_token(secret.encode())
    mine = await browser.call("GET", "/mine")
    assert re.fullmatch(r"page:[0-9a-f-]{36}", mine.json["by"])
    assert (await browser.call("GET", "/session")).json == reply.json


async def test_the_cookie_is_secure_when_the_page_came_by_https(
    nestor: SmallNestor, clock: Minutes
) -> None:
    nestor.settings.allowed_hosts = ["nestor.example"]
    async with serving(nestor, dashboard_of(nestor, clock)) as page:
        origin = {"Host": "nestor.example", "Origin": "https://nestor.example"}
        browser = Browser(page)
        reply = await browser.sign_in(await link(page), headers=origin)
        assert reply.status == 201
        assert reply.headers["Set-Cookie"].endswith("; Secure")
        mine = await browser.call("GET", "/mine", headers={"Host": "nestor.example"})
        assert mine.status == 200


@pytest.mark.parametrize("host", ["127.0.0.2", "10.0.0.5"])
async def test_nobody_is_signed_in_under_an_address_that_nobody_chose_for_the_page(
    tmp_path: Path, nestor: SmallNestor, clock: Minutes, host: str
) -> None:
    key = SecretStr("test-admin-secret-0123456789")
    real = Settings(home=tmp_path, host=host, api_key=key)
    assert host in real.allowed_hosts
    nestor.settings.host, nestor.settings.allowed_hosts = host, real.allowed_hosts
    async with serving(nestor, dashboard_of(nestor, clock)) as page:
        browser = Browser(page)
        await browser.sign_in(await link(page))
        there = Browser(page, host)
        reply = await there.sign_in(await link(page))
        assert (reply.status, "ALLOWED_HOSTS" in reply.json["detail"]) == (421, True)
        there.cookie = browser.cookie
        assert (await there.call("GET", "/mine")).status == 401
        assert (await browser.call("GET", "/mine")).status == 200


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
async def test_nobody_is_signed_in_under_a_name_that_other_ports_share(
    page: Served, name: str
) -> None:
    token = await link(page)
    reply = await Browser(page, name).sign_in(token)
    assert reply.status == 421
    assert f"http://nestor.localhost:{page.port}/" in reply.json["detail"]
    assert "Set-Cookie" not in reply.headers
    assert (await Browser(page).sign_in(token)).status == 201  # it was not used up


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": ""},
        {"Origin": "null"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "http://127.0.0.1:{port}"},
        {"Origin": "http://nestor.localhost:1"},
        {"Origin": "http://nestor.localhost"},
        {"Origin": "https://nestor.localhost:{port}"},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
async def test_b4_a_sign_in_from_any_other_page_is_refused(
    page: Served, headers: dict[str, str]
) -> None:
    token = await link(page)
    sent = {name: value.format(port=page.port) for name, value in headers.items()}
    reply = await Browser(page).sign_in(token, headers=sent)
    assert reply.status == 403
    assert "Set-Cookie" not in reply.headers
    assert page.nestor.sessions._sessions == {}


async def test_b4_a_sign_in_without_an_origin_is_refused(page: Served) -> None:
    token = await link(page)
    body = f'{{"link":"{token}"}}'.encode()
    head = (
        f"POST /session HTTP/1.1\r\nHost: nestor.localhost:{page.port}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    assert status_of(await page.raw(head + body)) == 403
    assert page.nestor.sessions._sessions == {}


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""],
)
async def test_b4_a_form_signs_nobody_in(page: Served, kind: str) -> None:
    token = await link(page)
    more = {"headers": {"Content-Type": kind}}
    body = f'{{"link":"{token}"}}'.encode()
    reply = await Browser(page).call("POST", "/session", data=body, **more)
    assert reply.status == 415
    assert page.nestor.sessions._sessions == {}


async def test_a_link_that_is_unknown_used_or_no_link_at_all_is_one_and_the_same_401(
    page: Served,
) -> None:
    token = await link(page)
    assert (await Browser(page).sign_in(token)).status == 201
    told = set()
    for wrong in (token, token + "x", "x" * 43, "", "' OR 1=1--", "\U0001f600"):
        reply = await Browser(page).sign_in(wrong)
        assert reply.status == 401
        assert "Set-Cookie" not in reply.headers
        told.add(str({**reply.json, "trace_id": ""}))
    assert len(told) == 1


async def test_the_body_of_a_sign_in_is_small_and_says_its_length(
    page: Served,
) -> None:
    started = await Browser(page).sign_in("x" * 2_000)
    assert started.status == 413
    head = page.head(
        "POST /session HTTP/1.1",
        f"Origin: http://nestor.localhost:{page.port}",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        key=None,
    ).replace(b"127.0.0.1", b"nestor.localhost")
    assert status_of(await page.raw(head)) == 400  # no chunk was waited for
    wrong: list[Any] = [{}, {"link": 1}, {"link": "x", "more": 1}, [], "x"]
    for body in wrong:
        reply = await Browser(page).call("POST", "/session", json=body)
        assert reply.status == 400, body


def guess(number: int) -> str:
    return f"nst_{number:043d}"


async def test_guessing_links_is_bounded_and_a_minute_later_begins_anew(
    page: Served, clock: Minutes
) -> None:
    for number in range(session.ATTEMPTS):
        assert (await Browser(page).sign_in(guess(number))).status == 401
    late = await Browser(page).sign_in(guess(0))
    assert (late.status, late.headers["Retry-After"]) == (429, "60")
    clock.seconds = session.ATTEMPTS_WINDOW_S
    assert (await Browser(page).sign_in(guess(0))).status == 401


async def test_a_right_link_signs_in_whatever_others_at_its_address_tried(
    page: Served,
) -> None:
    token = await link(page)
    for number in range(session.ATTEMPTS):
        await Browser(page).sign_in(guess(number))
    assert (await Browser(page).sign_in(guess(0))).status == 429
    assert (await Browser(page).sign_in(token)).status == 201
    # And once it was used it is as wrong as any.
    assert (await Browser(page).sign_in(token)).status == 429


async def test_what_cannot_be_a_link_is_401_and_does_not_count(page: Served) -> None:
    for wrong in ("x", "", "nst_", "nst_" + "x" * 44, "y" * 47) * session.ATTEMPTS:
        assert (await Browser(page).sign_in(wrong)).status == 401
    assert (await Browser(page).sign_in(guess(0))).status == 401


async def test_right_links_do_not_count(page: Served) -> None:
    for _ in range(session.ATTEMPTS + 1):
        assert (await Browser(page).sign_in(await link(page))).status == 201
    assert (await Browser(page).sign_in(guess(0))).status == 401


async def test_each_client_has_wrong_links_of_its_own(
    nestor: SmallNestor, clock: Minutes
) -> None:
    clients = ClientAddresses(["127.0.0.1"])
    async with serving(nestor, dashboard_of(nestor, clock, clients)) as page:
        told = []
        for client in ["192.0.2.1"] * (session.ATTEMPTS + 1) + ["192.0.2.2"]:
            at = {"X-Forwarded-For": client}
            told.append((await Browser(page).sign_in(guess(0), headers=at)).status)
    assert told == [401] * session.ATTEMPTS + [429, 401]


async def test_pages_of_others_cannot_use_up_the_attempts(page: Served) -> None:
    token = await link(page)
    for n in range(3 * session.ATTEMPTS):
        other = {"Origin": "http://evil.example"}
        await Browser(page).sign_in(guess(n), headers=other)
        await Browser(page, "localhost").sign_in(guess(n))
    assert (await Browser(page).sign_in(guess(0))).status == 401
    assert (await Browser(page).sign_in(token)).status == 201


async def test_of_two_browsers_that_open_one_link_at_once_one_is_signed_in(
    page: Served,
) -> None:
    token = await link(page)
    done = await asyncio.gather(*[Browser(page).sign_in(token) for _ in range(5)])
    assert sorted(reply.status for reply in done) == [201, 401, 401, 401, 401]


# The command line.


def test_the_command_prints_a_link_on_a_terminal(stack: FakeStack, cli: Cli) -> None:
    url = f"http://nestor.localhost:8888/#link={'t' * 150}"
    made = {"url": url, "expires_at": "2026-01-01T10:05:00Z"}
    stack.says("POST", "/session/links", Reply(201, made))
    code, shown = cli.on_a_terminal("page", columns=60)
    assert code == 0, shown
    assert url in shown  # on one line, though it has more than sixty characters
    assert "once" in shown


def test_the_command_prints_no_link_to_a_pipe_and_makes_none(
    stack: FakeStack, cli: Cli
) -> None:
    made = {"url": "http://x/#link=t", "expires_at": "2026-01-01T10:05:00Z"}
    stack.says("POST", "/session/links", Reply(201, made))
    done = cli("page")
    assert (done.returncode, done.stdout) == (2, "")
    assert "signs in whoever reads it" in done.stderr
    assert stack.asked == []
    assert cli("page", "--json").returncode == 2


def test_the_command_ends_every_session_and_needs_no_terminal(
    stack: FakeStack, cli: Cli
) -> None:
    stack.says("DELETE", "/sessions", Reply(204, None))
    done = cli("page", "--end")
    assert (done.returncode, "signed out" in done.stdout) == (0, True), done.stderr
    assert [(one["method"], one["path"]) for one in stack.asked] == [
        ("DELETE", "/sessions")
    ]
    assert stack.asked[0]["key"]


def test_the_help_of_the_command_ends_with_examples(cli: Cli) -> None:
    shown = cli("page", "--help").stdout.partition("Examples:")[2].split("\n")
    assert {"nestor page", "nestor page --end"} <= {line.strip() for line in shown}
