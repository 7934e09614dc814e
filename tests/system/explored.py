"""A stack whose calls are all tried: what its OpenAPI documents list, and who may ask.

``nestor up`` runs in a child process. Its only worker is kept busy by a task that sleeps,
so that the tasks which are made up wait in the queue and no command of theirs runs.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import schemathesis
from schemathesis.core.result import Ok
from tests.servers.scripted_model import Rule
from tests.system.attacks.attacked import ModelThread
from tests.system.child import Child

from nestor.cli.client import Stack

LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
PATIENCE_S = 30.0
SLEEPER = {
    "task_id": "sleeper",
    "task": "x",
    "backend": "command",
    "command": "sleep 3600",
    "use_hybrid": False,
}
WAITING = {
    "task": "x",
    "backend": "command",
    "command": "true",
    "require_approval": True,
}
Json = dict[str, Any]


@dataclass
class Explored:
    """A stack, the operations that its documents list, and what exists in it."""

    child: Child
    stack: Stack
    keys: dict[str, str | None]
    session: requests.Session
    banner: list[str]
    """What ``nestor up`` printed for people before the first request."""
    operations: list[tuple[str, Any, Any]]
    """Layer, and the operation without and with the parameters that carry a key."""

    def thing(self, name: str) -> str | None:
        """Make something that a path can name; None: nobody knows how."""
        if name == "task_id":
            made = self.stack.call("ralph", "POST", "/submit", body=WAITING)
            return str(made["task_id"])
        if name == "document_id":
            text = {"project": "p", "path": "a.md", "content": "Some words."}
            added = self.stack.call("aidb", "POST", "/documents", body=text)
            return str(added["document"]["id"])
        if name == "key_id":
            spare = {"name": "spare", "scopes": ["read"]}
            made = self.stack.call("coordinator", "POST", "/keys", body=spare)
            return str(made["id"])
        return None

    def given(self, operation: Any) -> dict[str, str]:
        """Return path parameters that name what exists."""
        names = [parameter.name for parameter in operation.path_parameters]
        found = {name: thing for name in names if (thing := self.thing(name))}
        if operation.path.endswith("/events"):  # of a task that ended, or it goes on
            self.stack.call("ralph", "POST", f"/tasks/{found['task_id']}/cancel")
        return found

    def send(
        self,
        layer: str,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        more: Json | None = None,
    ) -> requests.Response:
        """Make one call with the admin's key, the target as it is."""
        url = self.stack.url(layer)
        headers = {
            "Authorization": f"Bearer {self.keys['admin']}",
            "Content-Type": "application/json",
            **self.page(layer),
            **(more or {}),
        }
        wanted = requests.Request(method, url, headers=headers, data=data).prepare()
        wanted.url = url + path
        return self.session.send(wanted, timeout=PATIENCE_S)

    def page(self, layer: str) -> dict[str, str]:
        """Name the dashboard as a browser does: sessions exist under that name alone."""
        if layer != "dashboard":
            return {}
        host = f"nestor.localhost:{self.stack.url(layer).rpartition(':')[2]}"
        return {"Host": host, "Origin": f"http://{host}"}

    def check_readers(self) -> None:
        """Everything that was stored can be read: lists, the log, and the telemetry."""
        for layer, keyless, _ in self.operations:
            if keyless.method == "get" and "{" not in keyless.path:
                reply = self.send(layer, "GET", keyless.path)
                allowed = {404} if keyless.path == "/session" else {429}
                assert reply.ok or reply.status_code in allowed, (layer, reply.text)
        for event in self.child.events():
            json.dumps(event, ensure_ascii=False).encode()
        lines = self.child.log.read_text().splitlines()
        assert [one for one in lines if not one.startswith("{")] == self.banner
        for line in lines:
            if line.startswith("{"):
                assert json.loads(line)["event"] != "unexpected_error", line


@contextmanager
def exploring(folder: Path) -> Iterator[Explored]:
    """A stack with one scripted model, its worker busy; it is well when this ends."""
    home = folder / "home"
    session = requests.Session()
    session.trust_env = False
    model = ModelThread(Rule(reply="An answer."))
    with model, session:
        settings = {
            "workers": 1,
            "local_base_url": model.server.base_url,
            "local_model": model.server.model,
        }
        with Child(home, **settings) as child:
            stack = child.start()
            stack.call("ralph", "POST", "/submit", body=SLEEPER)
            for event in stack.stream("ralph", "/tasks/sleeper/events", until="task"):
                assert event.kind != "end"
            scoped = {"name": "scoped", "scopes": ["submit", "read", "model"]}
            key = stack.call("coordinator", "POST", "/keys", body=scoped)
            keys = {
                "admin": (home / "api-key").read_text().strip(),
                "scoped": key["key"],
                "none": None,
            }
            lines = child.log.read_text().splitlines()
            banner = [one for one in lines if not one.startswith("{")]
            operations = list(_operations(stack))
            yield Explored(child, stack, keys, session, banner, operations)
            assert stack.call("ralph", "GET", "/tasks/sleeper")["status"] == "running"
            assert child.process is not None
            child.process.send_signal(signal.SIGTERM)
            assert child.process.wait(60) == 0
            assert "unexpected_error" not in child.log.read_text()


def _operations(stack: Stack) -> Iterator[tuple[str, Any, Any]]:
    refused = {"negative_data_rejection": {"expected-statuses": ["4xx"]}}
    config = schemathesis.Config.from_dict({"seed": 0, "checks": refused})
    for layer in LAYERS:
        document = stack.call(layer, "GET", "/schema/openapi.json")
        full = schemathesis.openapi.from_dict(document, config=config)
        # Made-up keys beside the right one would be refused before anything is tried.
        del document["security"]
        keyless = schemathesis.openapi.from_dict(document, config=config)
        both = (keyless.get_all_operations(), full.get_all_operations())
        for one, other in zip(*both, strict=True):
            assert isinstance(one, Ok), one
            assert isinstance(other, Ok), other
            yield layer, one.ok(), other.ok()
