"""``nestor up`` in a child process under attack: raw bytes in, and every trace they left.

An attack has failed when the answer is the safe one *and* nothing happened: no row was
written, no model was asked, no process was started, no handler said yes.
"""

import asyncio
import json
import re
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.servers.scripted_model import Rule, ScriptedModel
from tests.system.child import Child

LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CANARY = "canary-5b1f0e"
"""In every document, so that an answer that gives one away is told."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) [A-Za-z -]*\r\n")
_ANSWERED = re.compile(
    r'nestor_http_requests_total\{layer="([a-z]+)",method="([A-Za-z]+)",status="[123]..?"\}'
    r" ([0-9.e+]+)"
)
LOGGED_S = 0.6
"""After this time what was done is in the log."""
_ROWS = {
    "task": "task_id, status, body",
    "api_key": "id, scopes, revoked_at",
    "model_call": "interaction_id",
    "page_link": "token_hash",
    "page_session": "id",
}
_DOCUMENTS = "SELECT id, content_hash FROM document WHERE project NOT LIKE 'nestor:%'"
"""Not Nestor's own, which it writes by itself at some time."""
_READER = b"nestor.backends.documents.child"
"""The process in which documents are parsed; it stays for the next one."""


@dataclass(frozen=True)
class Talk:
    """All that a server said on one connection."""

    raw: bytes
    closed: bool
    """By the server; False: it was still open when the patience ended."""

    @property
    def statuses(self) -> list[int]:
        """Of every answer, in order."""
        return [int(found) for found in _STATUS.findall(self.raw)]

    @property
    def status(self) -> int:
        """Of the only answer."""
        assert len(self.statuses) == 1, self.raw[:2000]
        return self.statuses[0]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Of the first answer, names in lower case."""
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines)
        return [(name.lower(), value.strip()) for name, _, value in pairs]

    @property
    def body(self) -> bytes:
        """What follows the first head."""
        return self.raw.partition(b"\r\n\r\n")[2]

    def values(self, name: str) -> list[str]:
        """Of one header."""
        return [value for found, value in self.headers if found == name]


class ModelThread:
    """A scripted model with a loop of its own, so that the tests need none."""

    def __init__(self, *rules: Rule) -> None:
        self.server = ScriptedModel(rules)
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with self.server:
            self._ready.set()
            await self._stop.wait()


class Attacked:
    """A running stack, its keys, and the traces of what was done to it."""

    def __init__(self, child: Child, model: ScriptedModel) -> None:
        self.child = child
        self.model = model
        self.ports = {layer: child.port(layer) for layer in LAYERS}
        self.key = (child.home / "api-key").read_text().strip()
        assert child.process is not None
        self.pid = child.process.pid
        self.document = ""
        self._made = 0

    def request(
        self,
        layer: str,
        line: str,
        *lines: str,
        body: bytes | None = None,
        host: str | None = "127.0.0.1:PORT",
        key: str | None = "admin",
        close: bool = True,
    ) -> bytes:
        """Make a request; ``PORT`` in a header is the layer's. ``key``: None sends none."""
        head = [line]
        head += [f"Host: {host}"] if host is not None else []
        if key is not None:
            head.append(f"Authorization: Bearer {self.key if key == 'admin' else key}")
        head += ["Connection: close"] if close else []
        head += [f"Content-Length: {len(body)}"] if body is not None else []
        text = "\r\n".join([*head, *lines, "", ""])
        text = text.replace("PORT", str(self.ports[layer]))
        return text.encode("latin-1") + (body or b"")

    def effect(self, layer: str) -> tuple[str, bytes]:
        """Return a request line and a body that would leave a trace, a new one each time."""
        self._made += 1
        if layer == "aidb" and not self.effects()["document"]:
            self.put_document()
        task = {"task_id": f"evil-{self._made}", "task": "t", "backend": "command",
                "command": "true", "require_approval": True}  # fmt: skip
        key = {"name": f"evil-{self._made}", "scopes": ["read"]}
        return {
            "ralph": ("POST /submit", json.dumps(task).encode()),
            "aidb": (f"DELETE /documents/{self.document}", b""),
            "coordinator": ("POST /keys", json.dumps(key).encode()),
            # Layers without state: that a handler answered is the trace.
            "learning": ("GET /learning/stats", b""),
            "dashboard": ("GET /health/detailed", b""),
        }[layer]

    def smuggled(self, layer: str) -> bytes:
        """Return a whole request with the admin's key that would leave a trace."""
        line, body = self.effect(layer)
        return self.request(layer, f"{line} HTTP/1.1", body=body)

    def say(
        self, layer: str, *parts: bytes, wait_s: float = 10.0, first: bool = False
    ) -> Talk:
        """Send bytes as they are; hear all until the server closes, or the first answer."""
        with socket.create_connection(("127.0.0.1", self.ports[layer])) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Refused while we still send: what was answered can be read all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                for part in parts:
                    sock.sendall(part)
            return hear(sock, wait_s, first=first)

    def pour(self, layer: str, head: bytes, parts: Iterable[bytes]) -> tuple[Talk, int]:
        """Send parts until the server has enough, hearing it meanwhile; also what it took."""
        taken, until = 0, time.monotonic() + 20
        with (
            socket.create_connection(("127.0.0.1", self.ports[layer])) as sock,
            ThreadPoolExecutor(1) as ear,
        ):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heard = ear.submit(hear, sock, 30)
            with suppress(OSError):
                sock.sendall(head)
                for part in parts:
                    sock.sendall(part)
                    taken += len(part)
                    if time.monotonic() > until:
                        break
            return heard.result(), taken

    def ask(
        self,
        layer: str,
        line: str,
        *lines: str,
        wait_s: float = 10.0,
        first: bool = False,
        **how: Any,
    ) -> Talk:
        """Send one request on a connection of its own."""
        request = self.request(layer, f"{line} HTTP/1.1", *lines, **how)
        return self.say(layer, request, wait_s=wait_s, first=first)

    def json(self, layer: str, line: str, value: Any, **how: Any) -> Any:
        """Make a call that must succeed; returns its decoded answer."""
        body = None if value is None else json.dumps(value).encode()
        talk = self.ask(layer, line, body=body, **how)
        assert talk.status < 300, talk.raw
        return json.loads(talk.body) if talk.body else None

    def put_document(self) -> None:
        """Have one document that an attack may want to delete."""
        value = {"project": "p", "path": "a.md", "content": f"# A\n\n{CANARY}\n"}
        self.json("aidb", "POST /documents", value)
        (self.document,) = [row[0] for row in self.effects()["document"]]

    def new_key(self, *scopes: str) -> str:
        """Have another key."""
        value = {"name": "-".join(scopes), "scopes": list(scopes)}
        return str(self.json("coordinator", "POST /keys", value)["key"])

    def effects(self) -> Mapping[str, Any]:
        """Everything an attack could have changed."""
        uri = f"file:{self.child.home / 'nestor.db'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            found: dict[str, Any] = {
                table: sorted(database.execute(f"SELECT {columns} FROM {table}"))
                for table, columns in _ROWS.items()
            }
            found["document"] = sorted(database.execute(_DOCUMENTS))
        found["asked"] = [(r.method, r.path) for r in self.model.requests]
        found["processes"] = children_of(self.pid)
        return found

    def said_yes(self) -> Counter[tuple[str, str]]:
        """Answers below 400 so far, by layer and method; asking is one more."""
        text = self.ask("dashboard", "GET /metrics").body.decode()
        found: Counter[tuple[str, str]] = Counter()
        for layer, method, count in _ANSWERED.findall(text):
            found[layer, method] += int(float(count))
        return found

    def records(self) -> list[dict[str, Any]]:
        """Return the log; every line must be a record, and hold no control character."""
        time.sleep(LOGGED_S)
        # The ports and warnings for a person come first.
        text = self.child.log.read_bytes().decode()
        lines = text[text.index("\n{") + 1 :].split("\n")[:-1]
        for line in lines:
            assert line.isprintable(), line
        return [json.loads(line) for line in lines]

    @contextmanager
    def unharmed(self, *, served: bool = False) -> Iterator[None]:
        """Hold what is done inside to have no effect; ``served``: it may be answered.

        Not served: no handler answered anything but an error.
        """
        before, yes = self.effects(), self.said_yes()
        yield
        # Handled after all that was taken in before it: nothing can still be on its way.
        for layer in LAYERS:
            talk = self.ask(layer, "GET /health/live", key=None)
            assert talk.status == 200, f"{layer} does not answer any more"
        own = Counter({(layer, "GET"): 1 for layer in LAYERS})
        own["dashboard", "GET"] += 1
        said = self.said_yes() - yes - own
        assert self.effects() == before
        assert served or not said, f"a handler answered: {said}"

    def memory(self, field: str) -> int:
        """Bytes of ``VmRSS`` (now) or ``VmHWM`` (the most since ``forget_peak``)."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"{field}:\s+([0-9]+) kB", text)
        assert found is not None
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        """Let ``VmHWM`` begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


def hear(sock: socket.socket, wait_s: float, *, first: bool = False) -> Talk:
    """Read until the server closes, at most ``wait_s``.

    ``first``: no further than one answer. A server that refused a body waits a little
    before it closes, for the sender to stop.
    """
    said, until = b"", time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            part = sock.recv(65536)
        except TimeoutError:
            break
        except ConnectionResetError:
            return Talk(said, closed=True)
        if not part:
            return Talk(said, closed=True)
        said += part
        if first and _is_whole(said):
            break
    return Talk(said, closed=False)


def _is_whole(said: bytes) -> bool:
    head, end, body = said.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: ([0-9]+)", head)
    return bool(end and length) and len(body) >= int(length[1])  # type: ignore[index]


def children_of(pid: int) -> list[int]:
    """Pids of the processes that ``pid`` started and that still run."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError):
            found += [int(word) for word in path.read_text().split()]
    return sorted(one for one in found if not _reads_documents(one))


def _reads_documents(pid: int) -> bool:
    try:
        return _READER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return True  # it has ended


@contextmanager
def attacked(folder: Path, *rules: Rule, **settings: object) -> Iterator[Attacked]:
    """Start a stack over a scripted model, with one document in it."""
    with ModelThread(*rules) as model:
        values = {
            "local_base_url": model.server.base_url,
            "local_model": "scripted-model",
            **settings,
        }
        with Child(folder / "home", **values) as child:
            child.start()
            stack = Attacked(child, model.server)
            stack.put_document()
            yield stack
