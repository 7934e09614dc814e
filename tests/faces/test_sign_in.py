"""Signing a browser in to the page, over real HTTP and from the command line."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.faces.fake_stack import Cli, FakeStack, Reply
from tests.faces.page import Browser, Minutes, dashboard_of, link
from tests.faces.shell import (
    Served,
    SmallNestor,
    serving,
    status_of,
)

from nestor.web import session
from nestor.web.auth import csrf_token

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
    ],
)
def test_a_link_leads_where_a_browser_can_be_signed_in(
    nestor: SmallNestor, host: str, allowed: list[str], url: str
) -> None:
    nestor.settings.host, nestor.settings.allowed_hosts = host, allowed
    assert session.link_url(nestor.settings, 8888, "T") == f"{url}#link=T"


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


async def test_guessing_links_is_bounded_over_all_callers_and_a_minute_later_it_works(
    page: Served, clock: Minutes
) -> None:
    token = await link(page)
    told = [
        (await Browser(page).sign_in(f"{n:043d}")).status
        for n in range(session.ATTEMPTS)
    ]
    assert set(told) == {401}
    late = await Browser(page).sign_in(token)
    assert (late.status, late.headers["Retry-After"]) == (429, "60")
    clock.seconds = session.ATTEMPTS_WINDOW_S
    assert (await Browser(page).sign_in(token)).status == 201


async def test_pages_of_others_cannot_use_up_the_attempts(page: Served) -> None:
    token = await link(page)
    for n in range(3 * session.ATTEMPTS):
        other = {"Origin": "http://evil.example"}
        await Browser(page).sign_in(f"{n:043d}", headers=other)
        await Browser(page, "localhost").sign_in(f"{n:043d}")
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


def test_the_help_of_the_command_ends_with_an_example(cli: Cli) -> None:
    done = cli("page", "--help")
    assert re.search(r"Example:(.|\n)*nestor page", done.stdout)
