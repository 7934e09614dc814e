"""Attacks by web pages, in a real browser, on ``nestor up`` with its owner signed in.

The attacking pages are served on another port of this machine, under names from
"somewhere on the web" to the very name of the page; Chromium decides what it sends.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from typing import Any

import pytest
from playwright.sync_api import (
    ConsoleMessage,
    Dialog,
    Route,
    sync_playwright,
)
from playwright.sync_api import Error as BrowserError
from tests.system.browsing import (
    ATTACKERS,
    HOSTILE,
    IMAGE,
    LAYERS,
    OWN,
    REBOUND,
    SCRIPT,
    STORM,
    Victim,
    documents,
    filled,
    opened_in,
    routes,
    send_evil,
    site,
    stopped,
)
from tests.system.child import Child, until_ended
from tests.system.workbench import CHECK, repository

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    home = tmp_path_factory.mktemp("browser") / "home"
    chromium = shutil.which("chromium")
    assert chromium, "apt-get install chromium"
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    # As an attacker's name server answers after the page was loaded (DNS rebinding).
    flags.append("--host-resolver-rules=MAP evil.example 127.0.0.1")
    # Not every browser keeps the web from this machine; the stack must not need it.
    flags.append("--disable-features=LocalNetworkAccessChecks")
    with Child(home) as child, site() as there, sync_playwright() as playwright:
        stack = child.start()
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        try:
            victim = Victim(child, stack, browser, there)
            victim.settle()
            yield victim
        finally:
            browser.close()


@pytest.fixture(scope="module")
def task_id(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task whose name, text, output and diff are somebody else's."""
    repo = repository(tmp_path_factory.mktemp("repo") / "work")
    # Written by the agent: control characters in a command would be refused.
    said = HOSTILE.replace("\x1b", r"\033").replace("\u202e", r"\342\200\256")
    spec = {
        "task": f"{IMAGE} {SCRIPT}",
        "name": IMAGE,
        "backend": "command",
        "command": f"printf '%b\\n' '{said}' | tee hostile.html",
        "workspace": {"repo": str(repo)},
        "test_command": CHECK,
        "max_iterations": 1,
    }
    made = victim.stack.call("ralph", "POST", "/submit", body=spec)
    until_ended(victim.stack, made["task_id"])
    diff = victim.stack.call("ralph", "GET", f"/tasks/{made['task_id']}/diff")
    assert HOSTILE in diff
    return str(made["task_id"])


# Signing in, as the owner does.


def test_a_link_signs_in_once_and_leaves_neither_address_bar_nor_history(
    victim: Victim,
) -> None:
    link = victim.link()
    token = link.partition("#link=")[2]
    with victim.signed_in() as (context, _):
        tab = context.new_page()
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        posted: list[Any] = []
        tab.on("request", lambda request: posted.append((request.url, request.method)))
        tab.goto(link)
        tab.wait_for_selector("#session[data-kind=in]")
        assert tab.url == f"{victim.page}/"
        history = context.new_cdp_session(tab).send("Page.getNavigationHistory")
        assert all(token not in entry["url"] for entry in history["entries"])
        assert history["entries"][-1]["url"] == f"{victim.page}/"
        assert sum(method == "POST" for _, method in posted) == 1
        assert all(token not in url.partition("#")[0] for url, _ in posted)
        # Nothing that a script could keep or read holds a secret.
        secret = {c["name"]: c for c in context.cookies()}["nestor_session"]
        assert (secret["httpOnly"], secret["sameSite"]) == (True, "Strict")
        kept = "document.cookie + JSON.stringify([localStorage, sessionStorage])"
        assert tab.evaluate(kept) == "[{},{}]"
        csrf = tab.evaluate("fetch('/session').then(r => r.json())")["csrf_token"]
        assert csrf not in tab.content()
        assert token not in tab.content()
        tab.reload()
        tab.wait_for_selector("#session[data-kind=in]")
        assert said == []
        assert tab.evaluate("violations") == []

        other = victim.context()
        late = other.new_page()
        late.goto(link)
        late.wait_for_selector("#session[data-kind=failed]")
        assert "was used" in late.inner_text("#session")
        assert "nestor page" in late.inner_text("#session")
        assert late.url == f"{victim.page}/"
        assert other.cookies() == []
        other.close()

        tab.get_by_role("button", name="Sign out").click()
        tab.wait_for_selector("#session[data-kind=out]")
        victim.kept = None
        assert context.cookies() == []
        assert tab.evaluate("fetch('/session').then(r => r.status)") == 401


def test_a_link_that_is_pasted_into_an_open_page_signs_in(victim: Victim) -> None:
    context = victim.context()
    tab = context.new_page()
    tab.goto(f"{victim.page}/")
    tab.wait_for_selector("#session[data-kind=out]")
    tab.goto(victim.link())
    tab.wait_for_selector("#session[data-kind=in]")
    assert "#" not in tab.url
    context.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_under_a_name_that_other_ports_share_the_page_says_which_to_open(
    victim: Victim, name: str
) -> None:
    context = victim.context()
    tab = context.new_page()
    tab.goto(victim.link().replace("nestor.localhost", name))
    assert f"{victim.page}/" in tab.inner_text("#session")
    asked = "fetch('/session', {method: 'POST', body: '{\"link\": \"x\"}'})"
    assert tab.evaluate(f"{asked}.then(r => r.status)") == 421
    assert context.cookies() == []
    context.close()


def test_the_page_is_whole_without_its_script(victim: Victim) -> None:
    context = victim.context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{victim.page}/")
    assert "nestor page" in tab.inner_text("#session")
    assert "ralph" in tab.inner_text("main")
    context.close()


# Pages of others.


def test_b1_under_a_name_that_was_pointed_here_nothing_is_served(
    victim: Victim,
) -> None:
    with victim.signed_in() as (context, _):
        tab = context.new_page()
        before = victim.state()
        for layer in LAYERS:
            there = victim.url(layer, "evil.example")
            reply = tab.goto(f"{there}/health/live")
            assert reply is not None
            assert reply.status == 421
            # What the attacker sent before the name was pointed here.
            context.route(f"{there}/evil", send_evil)
            tab.goto(f"{there}/evil")
            told = tab.evaluate(REBOUND)
            assert len(told) == 30
            assert set(told) == {421}, layer
        assert victim.state() == before


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_b2_b3_b4_b7_a_page_of_others_changes_nothing_and_reads_nothing(
    victim: Victim, attacker: str
) -> None:
    with victim.signed_in() as (context, tab):
        before = victim.state()
        mark = victim.mark()
        evil = context.new_page()
        evil.goto(f"http://{attacker}:{victim.site.port}/")
        names = ["nestor.localhost", "127.0.0.1"]
        bases = [victim.url(layer, name) for layer in LAYERS for name in names]
        read = evil.evaluate(STORM, {"bases": bases, "paths": OWN})
        assert read == []
        # The browser says who asks, and each of these was refused.
        told = victim.answered(mark)
        assert len(told) > 300
        assert [line for line in told if line[3] < 400] == []
        assert {line[0] for line in told} == set(LAYERS)
        assert victim.state() == before
        status = "fetch('/session').then(r => r.status)"
        assert tab.evaluate(status) == 200  # still signed in
        evil.close()
    shared = [name for name in ATTACKERS if name != "nestor.localhost"]
    assert victim.site.cookies(*shared) == []


@pytest.mark.parametrize("attacker", ATTACKERS)
@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "GET"])
def test_b4_a_form_that_takes_the_whole_window_is_refused(
    victim: Victim, attacker: str, kind: str
) -> None:
    with victim.signed_in() as (context, tab):
        before = victim.state()
        for layer, path in (("dashboard", "/session"), ("coordinator", "/keys")):
            evil = context.new_page()
            evil.goto(f"http://{attacker}:{victim.site.port}/")
            method = "GET" if kind == "GET" else "POST"
            enctype = "text/plain" if kind == "GET" else kind
            with evil.expect_navigation() as gone:
                evil.evaluate(
                    "([action, method, enctype]) => { const form ="
                    " document.createElement('form'); Object.assign(form, {action,"
                    " method, enctype}); document.body.append(form); form.submit(); }",
                    [victim.url(layer) + path, method, enctype],
                )
            assert gone.value is not None
            assert gone.value.status == 403
            evil.close()
        assert victim.state() == before
        assert tab.evaluate("fetch('/session').then(r => r.status)") == 200


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_b6_no_page_of_others_frames_ours(victim: Victim, attacker: str) -> None:
    with victim.signed_in() as (context, _):
        evil = context.new_page()
        evil.goto(f"http://{attacker}:{victim.site.port}/")
        for name in ("nestor.localhost", "127.0.0.1", "localhost"):
            for layer in LAYERS:
                url = f"{victim.url(layer, name)}/"
                evil.evaluate(
                    "url => new Promise(done => { const f ="
                    " document.createElement('iframe'); f.onload = done; f.src = url;"
                    " document.body.append(f); })",
                    url,
                )
        assert len(evil.frames) == 1 + 3 * len(LAYERS)
        for frame in evil.frames[1:]:
            assert frame.url in {"chrome-error://chromewebdata/", "about:blank", ""}
            assert "<h1>Nestor" not in frame.content()


def test_b6_our_own_page_frames_nothing_either(victim: Victim) -> None:
    with victim.signed_in() as (_, tab):
        tab.evaluate(
            "() => { const f = document.createElement('iframe'); f.src = '/';"
            " document.body.append(f); }"
        )
        assert stopped(tab, 1)[0].startswith("frame-src ")


# What others wrote.


@pytest.mark.parametrize("layer", LAYERS)
def test_b5_nothing_that_others_wrote_runs_when_it_is_opened(
    victim: Victim, task_id: str, layer: str
) -> None:
    key = (victim.child.home / "api-key").read_text().strip()
    said: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or "pwned" in message.text:
            said.append(message.text)

    def refuse(dialog: Dialog) -> None:
        said.append(f"dialog {dialog.message}")
        dialog.dismiss()

    opened = 0
    for headers in ({"X-API-Key": key}, dict[str, str]()):
        context = victim.context(extra_http_headers=headers)
        tab = context.new_page()
        tab.on("console", listen)
        tab.on("dialog", refuse)
        tab.on("pageerror", lambda error: said.append(f"error {error}"))
        for of, path in documents(task_id, key=bool(headers)):
            if of != layer:
                continue
            reply = opened_in(tab, victim.url(layer) + path)
            if reply is None:
                continue
            opened += 1
            assert tab.evaluate("window.pwned") is None, path
            assert tab.evaluate("window.violations") == [], path
            kind = reply.headers.get("content-type", "").partition(";")[0]
            assert kind != "text/html" or path.partition("?")[0].partition("#")[0] in {
                "/",
                "/docs",
            }, path
        context.close()
    assert opened > 20
    assert said == []


def test_b5_what_the_server_says_is_shown_as_text_and_nothing_else(
    victim: Victim,
) -> None:
    said = f"no: {HOSTILE}"

    def say(route: Route) -> None:
        """Answer as a server that repeats what somebody else wrote."""
        route.fulfill(status=401, json={"detail": said, "csrf_token": said})

    context = victim.context()
    context.route("**/session", say)
    tab = context.new_page()
    told: list[str] = []
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.goto(f"{victim.page}/#link=x")
    tab.wait_for_selector("#session[data-kind=failed]")
    assert IMAGE in tab.inner_text("#session")
    assert tab.query_selector("#session img, #session script, #session svg") is None
    assert tab.evaluate("window.violations") == []
    assert tab.evaluate("window.pwned") is None
    assert told == []
    context.close()


def test_b5_the_policy_stops_what_would_get_in_all_the_same(victim: Victim) -> None:
    context = victim.context()
    tab = context.new_page()
    tab.goto(f"{victim.page}/")
    planted = (
        "document.body.innerHTML = '<img src=x onerror=window.pwned=1>'",
        "plant('script', {textContent: 'window.pwned=1'})",
        "plant('img', {src: '/x'}).setAttribute('onerror', 'window.pwned=1')",
        "plant('a', {href: 'javascript:window.pwned=1'}).click()",
        "fetch('http://evil.example:1/').catch(() => {})",
    )
    plant = """const plant = (tag, values) => {
      const made = Object.assign(document.createElement(tag), values);
      document.body.append(made);
      return made;
    };"""
    for attack in planted:
        with suppress(BrowserError):  # what the attack is told; it gave itself away
            tab.evaluate(f"() => {{ {plant} {attack}; }}")
    stopped(tab, len(planted))
    assert tab.evaluate("window.pwned") is None
    context.close()


def test_b6_b8_no_get_of_any_layer_changes_a_row_and_each_reply_forbids_framing(
    victim: Victim, task_id: str
) -> None:
    key = (victim.child.home / "api-key").read_text().strip()
    before, events, asked = victim.state(), victim.child.events(), 0
    for layer, paths in routes().items():
        for path in [*paths, "/not/served"]:
            for method in ("GET", "HEAD", "OPTIONS"):
                target = filled(path, {"task_id": task_id})
                connection = HTTPConnection("127.0.0.1", victim.child.port(layer))
                with closing(connection):
                    connection.request(method, target, headers={"X-API-Key": key})
                    reply = connection.getresponse()
                    reply.read()
                asked += 1
                assert method != "GET" or reply.status in {200, 400, 403, 404}, target
                policy = reply.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert reply.headers["X-Content-Type-Options"] == "nosniff"
                assert reply.headers["X-Frame-Options"] == "DENY"
                assert reply.headers["Cache-Control"] == "no-store"
                assert reply.headers["Referrer-Policy"] == "no-referrer"
                assert reply.headers["Access-Control-Allow-Origin"] is None
    assert asked > 100
    assert victim.state() == before
    assert victim.child.events() == events
