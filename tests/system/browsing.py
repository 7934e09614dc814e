"""A browser, its owner signed in to ``nestor up``, and pages of somebody else."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from litestar.routes import HTTPRoute
from playwright.sync_api import Browser, BrowserContext, Page, Response, Route
from playwright.sync_api import Error as BrowserError
from tests.faces.shell import small_nestor
from tests.system.child import Child

from nestor.backends.sql.schema import metadata
from nestor.cli.client import Stack
from nestor.model.health import Dependency
from nestor.web import aidb, coordinator, dashboard, learning, ralph
from nestor.web.app import create_app

LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
SCRIPT = "<script>window.pwned=1;alert(1)</script>"
IMAGE = "<img src=x onerror=window.pwned=1;alert(1)>"
HOSTILE = f"{IMAGE}</pre></script>{SCRIPT}<svg onload=alert(1)>\x1b[31m\u202edone javascript:alert(1)"
"""What an agent, a document or a caller may have written."""
ATTACKERS = ("evil.example", "localhost", "127.0.0.1", "nestor.localhost")
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.effectiveDirective} ${event.blockedURI}`));
"""
OWN = ("/session", "/session/links", "/keys", "/submit", "/tasks", "/")


@dataclass
class Site:
    """A web server of somebody else, and what browsers sent it."""

    port: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Host and Cookie header of each request."""

    def cookies(self, *names: str) -> list[str]:
        """What browsers sent under these names."""
        hosts = {f"{name}:{self.port}" for name in names}
        return [cookie for host, cookie in self.seen if host in hosts and cookie]


@contextmanager
def site() -> Iterator[Site]:
    there = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there.seen.append((self.headers["Host"], self.headers.get("Cookie", "")))
            body = b"<!doctype html><title>evil</title><body>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Victim:
    """A running stack, its owner's browser, and a page of somebody else."""

    child: Child
    stack: Stack
    browser: Browser
    site: Site
    kept: Any = None
    """Cookies of the one sign-in that is enough: more a minute are refused."""

    def url(self, layer: str, name: str = "nestor.localhost") -> str:
        return f"http://{name}:{self.child.port(layer)}"

    @property
    def page(self) -> str:
        """The page's address."""
        return self.url("dashboard")

    def link(self) -> str:
        made = self.stack.call("dashboard", "POST", "/session/links")
        return str(made["url"])

    @contextmanager
    def signed_in(self) -> Iterator[tuple[BrowserContext, Page]]:
        """A browser whose owner is signed in, and the tab that he left open."""
        context = self.context(storage_state=self.kept)
        try:
            tab = context.new_page()
            tab.goto(f"{self.page}/" if self.kept else self.link())
            tab.wait_for_selector("#session[data-kind=in]")
            self.kept = context.storage_state()
            yield context, tab
        finally:
            context.close()

    def context(self, **how: Any) -> BrowserContext:
        """A browser of its own, which writes down what its policies stop."""
        context = self.browser.new_context(**how)
        context.set_default_timeout(15_000)
        context.add_init_script(WATCH)
        return context

    def state(self) -> dict[str, Any]:
        """Every row of every table; what a request of a page may never change."""
        path = self.child.home / "nestor.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return {
                name: sorted(map(repr, database.execute(f'SELECT * FROM "{name}"')))
                for name in metadata.tables
            }

    def settle(self) -> None:
        """Wait until AIDB has remembered its own known text: it does so once, by itself."""
        deadline = time.monotonic() + 30
        while not (placed := self.state()["chunk_place"]) or placed[0].endswith(" 0)"):
            assert time.monotonic() < deadline, "AIDB wrote no text of its own"
            time.sleep(0.1)

    def answered(self, mark: int) -> list[tuple[str, str, str, int]]:
        """Layer, method, path and status of every request since ``mark`` of the log."""
        time.sleep(1)  # lines come in batches
        with self.child.log.open("rb") as log:
            log.seek(mark)
            lines = [json.loads(line) for line in log if b'"request"' in line]
        return [
            (line["layer"], line["method"], line["path"], line["status"])
            for line in lines
        ]

    def mark(self) -> int:
        """Where the log ends now."""
        time.sleep(1)
        return self.child.log.stat().st_size


def send_evil(route: Route) -> None:
    """Answer as the attacker's own server."""
    route.fulfill(body="<!doctype html><title>evil</title>", content_type="text/html")


REBOUND = """
async () => {
  const told = [];
  for (const path of ["/", "/session", "/health/live", "/tasks", "/keys", "/submit"])
    for (const method of ["GET", "POST", "PUT", "PATCH", "DELETE"]) {
      const body = method === "GET" ? undefined : "{}";
      const reply = await fetch(path, {method, body, credentials: "include"});
      told.push(reply.status);
    }
  return told;
}
"""


STORM = """
async ({bases, paths}) => {
  const read = [], jobs = [];
  const body = '{"name": "stolen", "scopes": ["admin"], "task": "x", "link": "x"}';
  const all = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
  const send = (url, how) => jobs.push(fetch(url, {credentials: "include", ...how}).then(
    async (reply) => {
      if (reply.type !== "opaque") read.push([url, how.method, await reply.text()]);
    }, () => {}));
  const until = (element, ...names) => new Promise((done) => {
    for (const name of names) element.addEventListener(name, () => done(name));
    setTimeout(done, 5000, "late");
  });
  for (const base of bases) for (const path of paths) {
    const url = base + path;
    for (const method of all) {
      const has = method !== "GET" && method !== "HEAD";
      send(url, {method, mode: "cors", body: has ? body : undefined});
      send(url, {method, mode: "cors", body: has ? body : undefined, headers:
        {"Content-Type": "application/json", "X-CSRF-Token": "x"}});
      send(url, {method, mode: "same-origin", body: has ? body : undefined});
    }
    for (const type of ["text/plain", "application/x-www-form-urlencoded"])
      send(url, {method: "POST", mode: "no-cors", body, headers: {"Content-Type": type}});
    send(url, {method: "GET", mode: "no-cors", keepalive: true});
    navigator.sendBeacon(url, body);
  }
  await Promise.all(jobs);
  const parts = [];
  for (const base of bases) {
    for (const tag of ["img", "script", "iframe", "object", "link", "video", "embed"]) {
      const element = document.createElement(tag);
      const url = base + (tag === "script" ? "/static/session.js" :
        tag === "link" ? "/static/page.css" : tag === "img" ? "/static/icon.svg" : "/");
      element[tag === "link" ? "href" : tag === "object" ? "data" : "src"] = url;
      if (tag === "link") element.rel = "stylesheet";
      if (tag === "img" || tag === "script" || tag === "link")
        parts.push(until(element, "load", "error").then(
          (how) => how === "load" && read.push([url, tag, how])));
      document.body.append(element);
    }
    for (const path of ["/tasks/x/events", "/session", "/health/live"]) {
      const stream = new EventSource(base + path, {withCredentials: true});
      parts.push(until(stream, "open", "message", "error").then((how) => {
        stream.close();
        if (how === "open" || how === "message") read.push([base + path, "EventSource", how]);
      }));
      if (path !== "/session") continue;  // browsers make few of these at once
      const socket = new WebSocket(base.replace("http", "ws") + path);
      parts.push(until(socket, "open", "message", "error").then((how) => {
        socket.close();
        if (how === "open" || how === "message") read.push([base + path, "WebSocket", how]);
      }));
    }
    for (const method of ["GET", "POST"])
      for (const kind of ["text/plain", "application/x-www-form-urlencoded",
                          "multipart/form-data"]) {
        const frame = document.createElement("iframe");
        frame.name = `f${Math.random()}`;
        document.body.append(frame);
        const form = document.createElement("form");
        Object.assign(form, {method, enctype: kind, action: base + "/session",
                             target: frame.name});
        const text = document.createElement("input");
        Object.assign(text, {name: '{"link":"', value: '"}'});
        form.append(text);
        document.body.append(form);
        form.submit();
        parts.push(until(frame, "load"));
      }
  }
  await Promise.all(parts);
  for (const frame of document.querySelectorAll("iframe"))
    try { if (frame.contentDocument.body.textContent) read.push([frame.src, "frame"]); }
    catch { /* another origin: not readable */ }
  return read;
}
"""


def routes() -> dict[str, list[str]]:
    """Every path that answers GET, by layer, with its parameters still in braces."""

    async def nothing() -> list[Dependency]:
        return []

    modules = {
        "dashboard": dashboard,
        "ralph": ralph,
        "aidb": aidb,
        "coordinator": coordinator,
        "learning": learning,
    }
    return {
        layer: [
            route.path_format
            for route in create_app(
                layer,
                small_nestor(Path("unused")),
                module.handlers(),
                dependencies=nothing,
            ).litestar.routes
            if isinstance(route, HTTPRoute) and "GET" in route.route_handler_map
        ]
        for layer, module in modules.items()
    }


def stopped(tab: Page, count: int) -> list[str]:
    """Wait for so many breaches of the page's policy, which all came to nothing."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        found: list[str] = tab.evaluate("window.violations")
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{len(found)} of {count} were stopped: {found}")


def filled(path: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return path.replace("{", "").replace("}", "")


def documents(task_id: str, *, key: bool) -> Iterator[tuple[str, str]]:
    """Layer and path of everything that shows, or might show, text of others."""
    for layer, paths in routes().items():
        for path in paths if key else ("/",):
            own = filled(path, {"task_id": task_id})
            yield layer, own
            yield layer, f"{own}?{IMAGE}={SCRIPT}"
            yield layer, f"{own}?status={SCRIPT}&limit={IMAGE}&phase={IMAGE}"
            if "{" in path:
                yield layer, filled(path, {"task_id": IMAGE, "key_id": SCRIPT})
        yield layer, f"/{IMAGE}"
        yield layer, f"/{SCRIPT}?{SCRIPT}"
        yield layer, f"/x%00{IMAGE}\u202e%1b[31m"
        yield layer, f"/#{IMAGE}"
    yield "dashboard", f"/#link={IMAGE}{SCRIPT}"
    yield "dashboard", "/#link=javascript:alert(1)"


def opened_in(tab: Page, url: str) -> Response | None:
    """Open an address as a document of its own; None when it is a download."""
    if "#" in url:  # else only the fragment would change
        tab.goto("about:blank")
    try:
        reply = tab.goto(url)
    except BrowserError as error:
        if "download" not in str(error).lower():
            raise
        return None
    if "#link=" in url:
        tab.wait_for_selector("#session[data-kind=failed]")
    return reply
