"""What is measured: each gateway, set up as its documentation says, in front of one upstream."""

import http.client
import json
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from bench.gateway import traffic
from bench.gateway.processes import Process

ROOT = Path(__file__).parents[2]
LITELLM = ROOT / ".cache/peers/litellm/bin/litellm"
PRICES = {"input": "2.5", "output": "10"}
"""USD per million tokens."""
_LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
_MASTER_KEY = "sk-master-0123456789abcdef"


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def call(
    port: int, method: str, path: str, key: str | None = None, body: Any = None
) -> tuple[int, Any]:
    """Ask once; status 0 when nobody answers."""
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body)
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as one:
        try:
            one.request(method, path, data, headers)
            reply = one.getresponse()
            text = reply.read()
        except OSError:
            return 0, None
    try:
        return reply.status, json.loads(text)
    except ValueError:
        return reply.status, text.decode(errors="replace")


class System:
    """One way from the load generator to the upstream."""

    name: ClassVar[str]
    what: ClassVar[str]
    share: ClassVar[float] = 1.0
    """Of the requests: a slow one needs fewer for the same seconds, a fast one more."""
    path = "/v1/chat/completions"
    model = traffic.UPSTREAM_MODEL
    key = "any"
    port = 0
    ready_s: float | None = None
    process: Process | None = None

    def __init__(self, upstream_port: int, folder: Path) -> None:
        self.upstream_port = upstream_port
        self.folder = folder / self.name
        self.folder.mkdir()
        self.log = self.folder / "log"

    @property
    def sees(self) -> str:
        """Under which name the upstream counts what comes through here."""
        return self.name

    @property
    def upstream_url(self) -> str:
        """Where this system finds the upstream."""
        return f"http://127.0.0.1:{self.upstream_port}/{self.sees}/v1"

    def start(self) -> None:
        """Start, and return when it answers."""

    def settings(self) -> list[str]:
        """Say how it was set up."""
        return []

    def said(self) -> str:
        """Return the end of what it wrote."""
        return self.process.said() if self.process else ""

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.stop()


class Direct(System):
    """No gateway: what the upstream and the load generator take by themselves."""

    name = "direct"
    what = "no gateway"
    share = 2.0

    def start(self) -> None:
        self.port, self.key = self.upstream_port, traffic.UPSTREAM_KEY
        self.path = f"/{self.name}{self.path}"


class Nginx(System):
    """nginx, ``proxy_pass``."""

    name = "nginx"
    what = "nginx `proxy_pass`"
    share = 4.0

    def start(self) -> None:
        self.port = free_port()
        (self.folder / "nginx.conf").write_text(_NGINX % vars(self))
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise SystemExit("nginx is not installed: apt-get install nginx-light")
        argv: list[str | Path] = [
            program,
            "-p",
            self.folder,
            "-c",
            "nginx.conf",
            "-e",
            "stderr",
        ]
        self.process = Process(argv, self.log)
        self.ready_s = self.process.until(lambda: call(self.port, "GET", "/")[0] > 0)

    def settings(self) -> list[str]:
        return [
            "1 worker process, keep-alive to the upstream",
            "`proxy_buffering off` (streams), no access log",
        ]


_NGINX = """
user root;
daemon off;
worker_processes 1;
pid nginx.pid;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 100000000;
  client_body_buffer_size 64k;
  upstream model {
    server 127.0.0.1:%(upstream_port)d;
    keepalive 64;
    keepalive_requests 100000000;
  }
  server {
    listen 127.0.0.1:%(port)d;
    location /v1/ {
      proxy_pass http://model/nginx/v1/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer UPSTREAM_KEY";
      proxy_buffering off;
    }
  }
}
""".replace("UPSTREAM_KEY", traffic.UPSTREAM_KEY)


class Bare(System):
    """The bare pass-through in Python."""

    name = "bare"
    what = "bare Starlette + uvicorn + aiohttp"

    def start(self) -> None:
        url = f"{self.upstream_url}/chat/completions"
        argv = [sys.executable, "-m", "bench.gateway.bare", url]
        self.process = Process(argv, self.log, cwd=ROOT, says_its_port=True)
        self.port = self.process.port
        self.ready_s = self.process.until(lambda: call(self.port, "GET", "/")[0] > 0)

    def settings(self) -> list[str]:
        return [
            "uvloop and httptools, no access log, no key, no metering",
            "`bench/gateway/bare.py`",
        ]


class LiteLLM(System):
    """LiteLLM's proxy."""

    name = "litellm"
    what = "LiteLLM proxy"
    share = 0.2
    model = "bench"
    key = _MASTER_KEY

    def start(self) -> None:
        if not LITELLM.exists():
            raise SystemExit(f"{LITELLM} is not there; docs/explanation/benchmarks.md")
        self.port = free_port()
        config = self.folder / "config.yaml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        argv: list[str | Path] = [LITELLM, "--config", config, "--host", "127.0.0.1"]
        argv += ["--port", str(self.port), "--num_workers", "1"]
        kept = ("PATH", "LANG", "LC_ALL")
        env = {name: os.environ[name] for name in kept if name in os.environ}
        env |= {
            "HOME": str(self.folder),
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            # Not from the network, where it would wait for answers that do not come.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        self.process = Process(argv, self.log, env=env, cwd=self.folder)
        self.ready_s = self.process.until(
            lambda: call(self.port, "GET", "/health/liveliness")[0] == 200
        )

    def _config(self) -> Mapping[str, Any]:
        millionth = 1e-6
        model = {
            "model": f"openai/{traffic.UPSTREAM_MODEL}",
            "api_base": self.upstream_url,
            "api_key": traffic.UPSTREAM_KEY,
            "input_cost_per_token": float(PRICES["input"]) * millionth,
            "output_cost_per_token": float(PRICES["output"]) * millionth,
        }
        return {
            "model_list": [{"model_name": self.model, "litellm_params": model}],
            "litellm_settings": {
                "request_timeout": 600,
                "set_verbose": False,
                "json_logs": True,
            },
            "general_settings": {"master_key": _MASTER_KEY},
        }

    def settings(self) -> list[str]:
        return [
            "`LITELLM_LOG=ERROR`, `LITELLM_MODE=PRODUCTION`, 1 worker, uvicorn",
            "master key and one model from its file; no database",
            "so no virtual keys, no budgets, no spend that outlives the process",
            "no Prometheus callback; the Rust core does not serve OpenAI's dialect",
        ]


class Nestor(System):
    """``nestor up``, all five layers in the one process."""

    name = "nestor"
    what = "Nestor"
    model = "auto"
    stats_key = ""

    def start(self) -> None:
        self.home = self.folder / "home"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
        given = {f"NESTOR_{layer}_PORT".upper(): "0" for layer in _LAYERS}
        given |= {
            "NESTOR_HOME": str(self.home),
            "NESTOR_LOG_FORMAT": "json",
            "NESTOR_REMOTE_BASE_URL": self.upstream_url,
            "NESTOR_REMOTE_MODEL": traffic.UPSTREAM_MODEL,
            "NESTOR_REMOTE_API_KEY": traffic.UPSTREAM_KEY,
            "NESTOR_REMOTE_PRICE_INPUT": PRICES["input"],
            "NESTOR_REMOTE_PRICE_OUTPUT": PRICES["output"],
            "NESTOR_ROUTING_DEFAULT": "remote",
        }
        self.process = Process(
            [sys.executable, *self.launcher(), "up"],
            self.log,
            env=clean | given,
            cwd=self.folder,  # no nestor.toml there
        )
        run = self.home / "run.json"
        self.ready_s = self.process.until(
            lambda: run.exists() and self._is_ready(json.loads(run.read_text() or "{}"))
        )
        self.stats_key = (self.home / "api-key").read_text().strip()
        self.key = self.new_key()

    def launcher(self) -> list[str]:
        """Return what Python is to run."""
        return ["-m", "nestor.cli"]

    def _is_ready(self, run: dict[str, Any]) -> bool:
        if run.get("pid") != getattr(self.process, "pid", None):
            return False
        self.port = run["ports"]["coordinator"]
        return call(self.port, "GET", "/health/ready")[0] == 200

    def new_key(self, limits: Mapping[str, Any] | None = None) -> str:
        """Make a key that reaches models and nothing else."""
        body = {"name": "bench", "scopes": ["model"], "limits": limits}
        status, made = call(self.port, "POST", "/keys", self.stats_key, body)
        if status != 201:
            raise SystemExit(f"no key: {status} {made}")
        key: str = made["key"]
        return key

    def metered(self) -> dict[str, int]:
        """Return what SQL has recorded, folded first by asking for ``/stats``."""
        status, _ = call(self.port, "GET", "/stats", self.stats_key)
        if status != 200:
            raise SystemExit(f"no stats: {status}")
        columns = ("calls", "failed", "unsettled", "input_tokens", "output_tokens")
        sums = ", ".join(f"coalesce(sum({name}), 0)" for name in columns)
        with closing(self.database()) as database:
            row = database.execute(f"select {sums} from spend").fetchone()
        return dict(zip(columns, row, strict=True))

    def database(self) -> sqlite3.Connection:
        """Open its database to read."""
        return sqlite3.connect(f"file:{self.home / 'nestor.db'}?mode=ro", uri=True)

    def settings(self) -> list[str]:
        return [
            "`nestor up`, all layers in the one process, nothing turned off",
            "a key of scope `model`, `model: auto`, prices given, log as JSON",
        ]


class NestorLimited(System):
    """The same Nestor, asked with a key that has limits."""

    name = "nestor-limits"
    what = "Nestor, key with limits"
    model = "auto"

    def __init__(self, upstream_port: int, folder: Path, nestor: Nestor) -> None:
        super().__init__(upstream_port, folder)
        self._nestor = nestor

    @property
    def sees(self) -> str:
        return self._nestor.name

    def start(self) -> None:
        self.process, self.port = self._nestor.process, self._nestor.port
        limits = {"usd": "1000000", "tokens": 10**13, "rpm": 10**7, "tpm": 10**12}
        self.key = self._nestor.new_key(limits)

    def stop(self) -> None:
        """It is not its own."""

    def settings(self) -> list[str]:
        return [
            "the same process; budget in USD and tokens, requests and tokens a minute"
        ]


ALL: tuple[type[System], ...] = (Direct, Nginx, Bare, LiteLLM, Nestor, NestorLimited)


def make(names: list[str], upstream_port: int, folder: Path) -> list[System]:
    """Make the named systems, in their order above."""
    nestor = (
        Nestor(upstream_port, folder)
        if set(names) & {"nestor", "nestor-limits"}
        else None
    )
    made: list[System] = []
    for kind in ALL:
        if kind is Nestor or kind is NestorLimited:
            continue
        if kind.name in names:
            made.append(kind(upstream_port, folder))
    if nestor is not None:
        made.append(nestor)
        if "nestor-limits" in names:
            made.append(NestorLimited(upstream_port, folder, nestor))
    return made
