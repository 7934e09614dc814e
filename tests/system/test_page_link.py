"""The link of ``nestor up`` and all that comes of it: on the terminal, and nowhere else."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from nestor.cli.client import read_run_file
from nestor.settings import Settings

pytestmark = pytest.mark.heavy

LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
LINK = re.compile(r"(http://nestor\.localhost:[0-9]+/)#link=([A-Za-z0-9_-]+)\r?\n")


@contextmanager
def up(home: Path, stdout: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``nestor up`` with its log in a file."""
    ports = {f"{layer}_port": 0 for layer in LAYERS}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "nestor.cli", "up"],
            env=Settings.environment_for({"home": home, "log_format": "json", **ports}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def shown(terminal: int, wanted: re.Pattern[str]) -> re.Match[str]:
    """Read the terminal until it shows something."""
    text, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 65536).decode(errors="replace")
        if found := wanted.search(text):
            return found
    raise AssertionError(f"not shown:\n{text}")


def call(port: int, method: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Ask ``/session`` as the page does; status, and the reply or its cookie."""
    host = f"nestor.localhost:{port}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"Host": host, "Origin": f"http://{host}", **named}
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    content = None if body is None else json.dumps(body)
    if body is not None:
        sent["Content-Type"] = "application/json"
    connection.request(method, "/session", body=content, headers=sent)
    reply = connection.getresponse()
    raw = reply.read()
    cookie = reply.getheader("Set-Cookie", "")
    connection.close()
    return reply.status, {"cookie": cookie, **(json.loads(raw) if raw else {})}


def test_the_link_is_on_the_terminal_and_its_secrets_in_no_file_and_no_argument(
    tmp_path: Path,
) -> None:
    home, log = tmp_path / "home", tmp_path / "log"
    ours, theirs = pty.openpty()
    with up(home, theirs, log) as process:
        url, token = shown(ours, LINK).groups()
        run = read_run_file(home)
        assert run is not None
        port = run["ports"]["dashboard"]
        assert url == f"http://nestor.localhost:{port}/"
        status, made = call(port, "POST", {"link": token})
        assert status == 201
        cookie = made["cookie"].partition(";")[0]
        secret, csrf = cookie.partition("=")[2], made["csrf_token"]
        assert call(port, "POST", {"link": token})[0] == 401
        assert call(port, "GET", Cookie=cookie)[0] == 200
        assert call(port, "GET", Cookie=f"{cookie}; {cookie}")[0] == 401
        assert call(port, "DELETE", Cookie=cookie)[0] == 403
        for name in ("cmdline", "environ"):
            told = Path(f"/proc/{process.pid}/{name}").read_bytes()
            assert not any(s.encode() in told for s in (token, secret, csrf))
        assert call(port, "DELETE", Cookie=cookie, X_CSRF_Token=csrf)[0] == 204
        assert call(port, "GET", Cookie=cookie)[0] == 401
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        kept = {path: path.read_bytes() for path in files}
    kept[log] = log.read_bytes()
    assert b'"/session"' in kept[log]
    assert home / "nestor.db" in kept
    for path, content in kept.items():
        for text in (token, secret, csrf):
            assert text.encode() not in content, path
    os.close(ours)
    os.close(theirs)


def test_no_link_is_made_where_standard_output_is_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        out.open("wb") as stdout,
        up(tmp_path / "home", stdout.fileno(), tmp_path / "log"),
    ):
        deadline = time.monotonic() + 60
        while "ready" not in out.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
    text = out.read_text()
    assert "stopping" in text
    assert "link" not in text
    assert LINK.search((tmp_path / "log").read_text()) is None
