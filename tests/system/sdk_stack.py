"""``nestor up`` between the vendors' own SDKs and scripted upstreams of two dialects."""

import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from anthropic import Anthropic, AsyncAnthropic
from anthropic import DefaultHttpxClient as AnthropicHttp
from openai import AsyncOpenAI, OpenAI
from openai import DefaultHttpxClient as OpenAIHttp
from tests.conftest import ROOT
from tests.servers.scripted_model import Recorded, Rule, ScriptedModel
from tests.system.attacks.attacked import ModelThread
from tests.system.child import Child
from tests.system.sdk_talks import CALLERS

from nestor.cli.client import Stack
from nestor.settings import Settings

SPOKEN = ("openai", "anthropic")
"""What upstreams speak; each of the two is a deployment of this name, too."""
UPSTREAM_KEYS = {name: f"key-of-the-{name}-upstream" for name in SPOKEN}
_PRICED = {"price_input": 1.0, "price_output": 10.0, "price_cached": 0.1}
_WAIT_S = 10.0


@dataclass(frozen=True)
class Exchange:
    """What an SDK sent, what it was answered, and what the upstream that answered got."""

    path: str
    sent: Any
    status: int
    headers: Mapping[str, str]
    upstream: Recorded | None

    @property
    def left_out(self) -> list[str]:
        """Names in ``x-nestor-left-out``."""
        said = self.headers.get("x-nestor-left-out", "")
        return [name.strip() for name in said.split(",") if name.strip()]


class _Started(Child):
    """A stack that is started in the folder of its nestor.toml."""

    def spawn(self, point: str = "never") -> None:
        layers = ("dashboard", "ralph", "aidb", "coordinator", "learning")
        values: dict[str, Any] = {f"{layer}_port": 0 for layer in layers}
        values |= {"home": self.home, "log_format": "json", "sandbox": "none"}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.killed_stack", point],
                cwd=self.home.parent,
                env={**Settings.environment_for(values), "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class SdkStack:
    """A running stack, its two upstreams, and clients of both SDKs."""

    def __init__(
        self, child: Child, stack: Stack, upstreams: Mapping[str, ScriptedModel]
    ) -> None:
        self.upstreams = upstreams
        self.exchanges: list[Exchange] = []
        self.url = f"http://127.0.0.1:{child.port('coordinator')}"
        self.admin_key = (child.home / "api-key").read_text().strip()
        self._database = child.home / "nestor.db"
        self._stack = stack
        self._seen: dict[str, int] = dict.fromkeys(upstreams, 0)
        self._open = ExitStack()
        self._made = 0
        self.key = self.new_key("model")
        self.log = child.log

    def close(self) -> None:
        """Let go of the clients."""
        self._open.close()

    def script(self, *rules: Rule) -> None:
        """Say what both upstreams answer from now on; what they got before is forgotten."""
        for name, model in self.upstreams.items():
            model.rules = list(rules)
            model.requests.clear()
            model._given.clear()
            self._seen[name] = 0

    def new_key(self, *scopes: str, **limits: Any) -> str:
        """Make a key over HTTP."""
        self._made += 1
        body: dict[str, Any] = {"name": f"sdk-{self._made}", "scopes": list(scopes)}
        body |= {"limits": limits} if limits else {}
        made = self._stack.call("coordinator", "POST", "/keys", body=body)
        return str(made["key"])

    def openai(self, key: str | None = None, **options: Any) -> OpenAI:
        """Return OpenAI's client, without retries unless ``options`` say so."""
        http = OpenAIHttp(event_hooks={"response": [self._note]})
        client = OpenAI(
            api_key=key or self.key,
            base_url=f"{self.url}/v1",
            http_client=http,
            **{"max_retries": 0, **options},
        )
        return self._open.enter_context(client)

    def anthropic(self, key: str | None = None, **options: Any) -> Anthropic:
        """Return Anthropic's client, without retries unless ``options`` say so."""
        http = AnthropicHttp(event_hooks={"response": [self._note]})
        options = {"max_retries": 0, "api_key": key or self.key, **options}
        client = Anthropic(base_url=self.url, http_client=http, **options)
        return self._open.enter_context(client)

    def async_openai(self) -> AsyncOpenAI:
        """Return OpenAI's other client; close it."""
        return AsyncOpenAI(api_key=self.key, base_url=f"{self.url}/v1", max_retries=0)

    def async_anthropic(self) -> AsyncAnthropic:
        """Return Anthropic's other client; close it."""
        return AsyncAnthropic(api_key=self.key, base_url=self.url, max_retries=0)

    def raw(self, path: str, body: Mapping[str, Any], **headers: str) -> bytes:
        """Post without an SDK; return the bytes of the answer."""
        reply = httpx2.post(
            f"{self.url}{path}",
            json=dict(body),
            headers={"authorization": f"Bearer {self.key}", **headers},
        )
        assert reply.status_code == 200, reply.text
        return reply.content

    def asked(self, upstream: str) -> list[Recorded]:
        """What one upstream was asked since its script was written."""
        return self.upstreams[upstream].chats

    def metered(self, interaction_id: str) -> list[dict[str, Any]]:
        """Calls in the meter under an interaction, attempts before it included."""
        names = ("interaction_id", "attempt_of")
        return [
            call
            for call in self._calls()
            if interaction_id in {call.get(name) for name in names}
        ]

    def metered_of(self, deployment: str) -> list[dict[str, Any]]:
        """Every call of one deployment, the oldest first."""
        calls = [call for call in self._calls() if call["deployment"] == deployment]
        return sorted(calls, key=lambda call: str(call["at"]))

    def _calls(self) -> list[dict[str, Any]]:
        self._stack.call("coordinator", "GET", "/stats")  # folds
        uri = f"file:{self._database}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            rows = database.execute("SELECT body FROM model_call").fetchall()
        return [json.loads(body) for (body,) in rows]

    def take_exchanges(self) -> list[Exchange]:
        """Return what was exchanged since the last time."""
        taken, self.exchanges = self.exchanges, []
        return taken

    def _note(self, response: httpx2.Response) -> None:
        request = response.request
        body = json.loads(request.content) if request.content else None
        headers = dict(response.headers)
        answered = self._answered(headers.get("x-nestor-model"))
        self.exchanges.append(
            Exchange(request.url.path, body, response.status_code, headers, answered)
        )

    def _answered(self, model: str | None) -> Recorded | None:
        """Return the newest request of the upstream that answered."""
        found = None
        for name, upstream in self.upstreams.items():
            new = upstream.requests[self._seen[name] :]
            self._seen[name] = len(upstream.requests)
            found = next((r for r in new[::-1] if r.body["model"] == model), found)
        return found


@contextmanager
def sdk_stack(folder: Path) -> Iterator[SdkStack]:
    """Start a stack with a deployment of each dialect, and some more on the same servers.

    ``shaky-…`` and ``late-…`` are for errors; ``backed-…`` have the other dialect to fall
    back to. Those are one for each case of a test, so that none opens another's breaker.
    """
    with ModelThread() as one, ModelThread() as other:
        upstreams = {"openai": one.server, "anthropic": other.server}
        text = ""
        for name, model in upstreams.items():
            model.api_key = UPSTREAM_KEYS[name]
            key_file = folder / f"{name}.key"
            key_file.write_text(UPSTREAM_KEYS[name] + "\n")
            key_file.chmod(0o600)
            back = SPOKEN[1 - SPOKEN.index(name)]
            plain = {
                "side": "local" if name == "openai" else "remote",
                "dialect": name,
                "base_url": model.base_url if name == "openai" else model.anthropic_url,
                "api_key_file": str(key_file),
            }
            text += _table(name, model=f"{name}-model", **plain, **_PRICED)
            for case in itertools.product(CALLERS, (False, True)):
                for kind, more in (
                    ("shaky", _PRICED),
                    ("backed", {"fallbacks": [back]}),
                ):
                    table = for_errors(kind, name, *case)
                    options: dict[str, Any] = {**plain, **more, "weight": 0}
                    text += _table(table, model=f"{table}-model", **options)
            late = {"model": f"late-{name}-model", "weight": 0}
            text += _table(f"late-{name}", **late, **plain)
            if name == "openai":
                embeds = {**plain, "kind": "embeddings"}
                text += _table("vectors", model="vectors-model", **embeds)
        (folder / "nestor.toml").write_text(text)
        with _Started(folder / "home") as child:
            running = SdkStack(child, child.start(), upstreams)
            with closing(running):
                yield running


def for_errors(kind: str, upstream: str, caller: str, stream: bool) -> str:
    """Return the name of a deployment that only one case of a test asks."""
    return f"{kind}-{upstream}-{caller}-{'stream' if stream else 'whole'}"


def _table(name: str, **values: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["[[deployment]]", f'name = "{name}"', *lines, ""])


def until(true: Callable[[], bool], what: str) -> float:
    """Wait for something; return the seconds that it took."""
    began = time.perf_counter()
    while not true():
        waited_s = time.perf_counter() - began
        assert waited_s < _WAIT_S, f"did not happen: {what}"
        time.sleep(0.0005)
    return time.perf_counter() - began
