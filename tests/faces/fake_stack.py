"""A stack that answers as it is told, and the command line as a process beside it."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "a-key-of-the-test"
HOSTILE = "\x1b]0;owned\x07\x1b[2K[red]\u202edone\u2066 \x9b31m\ud7ff\u200bend"
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]")


@dataclass
class Reply:
    """What the server says to one method and path; several: one after the other."""

    status: int
    body: Any
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class FakeStack:
    """A real HTTP server that answers as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[tuple[str, str], list[Reply]] = {}
        self.asked: list[dict[str, Any]] = []
        stack = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                path = self.path.partition("?")[0]
                stack.asked.append(
                    {
                        "method": self.command,
                        "path": self.path,
                        "key": self.headers.get("Authorization"),
                        "last": self.headers.get("Last-Event-ID"),
                        "body": self._decoded(body),
                    }
                )
                said = stack.replies.get((self.command, path))
                missing = Reply(
                    404, problem(404, f"no {path}"), "application/problem+json"
                )
                reply = (
                    missing if not said else said.pop(0) if len(said) > 1 else said[0]
                )
                content = (
                    reply.body.encode()
                    if isinstance(reply.body, str)
                    else json.dumps(reply.body).encode()
                )
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.kind)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.kind != "text/event-stream":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _decoded(self, body: bytes) -> Any:
                if self.headers.get("Content-Type") != "application/json":
                    return body or None
                return json.loads(body) if body else None

            do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def says(self, method: str, path: str, *replies: Reply) -> None:
        self.replies[method, path] = list(replies)


def problem(status: int, detail: str, *errors: tuple[str, str]) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": "no",
        "status": status,
        "detail": detail,
        "errors": [{"field": f, "message": m} for f, m in errors],
        "trace_id": "0" * 31 + "1",
    }


def refusal(status: int, detail: str, *errors: tuple[str, str]) -> Reply:
    return Reply(status, problem(status, detail, *errors), "application/problem+json")


def events(*items: tuple[str, dict[str, Any]], first: int = 1) -> Reply:
    text = ": keep-alive\n\n" + "".join(
        f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
        for number, (kind, data) in enumerate(items, first)
    )
    return Reply(200, text, "text/event-stream")


@contextmanager
def serving() -> Iterator[FakeStack]:
    """Run a fake stack in a thread of its own."""
    fake = FakeStack()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
        thread.join()


@dataclass
class Cli:
    """Runs ``nestor`` with a data folder whose run.json points at the fake stack."""

    home: Path
    cwd: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
        return clean | {"NESTOR_HOME": str(self.home), **self.extra}

    def __call__(
        self, *args: str, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nestor.cli", *args],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def on_a_terminal(self, *args: str, columns: int = 200) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "nestor.cli", *args],
            cwd=self.cwd,
            env=self.env | {"TERM": "xterm-256color", "COLUMNS": str(columns)},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and select.select([ours], [], [], 10)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        return process.wait(10), shown.decode(errors="replace")


def cli_of(stack: FakeStack, tmp_path: Path) -> Cli:
    """Make a data folder whose run.json leads to the fake stack."""
    home = tmp_path / "home"
    home.mkdir()
    layers = ("dashboard", "ralph", "aidb", "coordinator", "learning")
    run = {
        "pid": os.getpid(),
        "ports": dict.fromkeys(layers, stack.port),
        "started_at": "2026-01-01T00:00:00Z",
    }
    (home / "run.json").write_text(json.dumps(run))
    (home / "api-key").write_text(f"{KEY}\n")
    (home / "api-key").chmod(0o600)
    return Cli(home, tmp_path)


def task(status: str, **more: Any) -> dict[str, Any]:
    return {
        "task_id": "t1",
        "name": "n",
        "status": status,
        "reason": "checks_passed" if status == "verified" else "max_iterations",
        "iteration": 2,
        "max_iterations": 3,
        "replayed": True,
        "spent": {"usd": None, "tokens": 5, "seconds": 1.0},
        "budget": {},
        **more,
    }
