"""``nestor doctor``: look at everything Nestor leans on, and say how to mend it.

One function for each look; the file is as long as the list.
"""

import http.client
import json
import os
import platform
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

import nestor
from nestor.cli.client import (
    Stack,
    admin_key,
    key_file,
    load_settings,
    read_run_file,
)
from nestor.cli.inert import one_line
from nestor.cli.render import Screen, print_json
from nestor.errors import NestorError
from nestor.model.network import fault_of, is_public, without_password

if TYPE_CHECKING:
    from nestor.model.health import Dependency
    from nestor.model.routing import Deployment
    from nestor.settings import Settings

OK, WARN, FAIL = "ok", "warn", "fail"
_HTTP_OK, _REDIRECTS = 200, range(300, 400)
_PATIENCE_S = 5
_NEEDED_PYTHON = (3, 11)
_NEEDED_GIT = (2, 30)
_LITTLE_DISK_BYTES = 1024**3
_NO_DISK_BYTES = 100 * 1024**2
_LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
_EPILOG = """Examples:

  nestor doctor

  nestor doctor --config --json"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty when all is well."""

    what: str
    state: str
    detail: str
    remedy: str = ""


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(epilog=_EPILOG)(doctor)


def doctor(
    config: Annotated[
        bool, typer.Option("--config", help="Print every setting and its origin.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and the settings; exit 1 when something needed is missing."""
    settings = load_settings()
    if config:
        _show_config(settings, as_json=as_json)
        return
    screen, found = Screen(), list[Finding]()
    for finding in examine(settings):
        found.append(finding)
        if not as_json:
            screen.line(
                f"{finding.state:<5} {finding.what}: {finding.detail}",
                finding.state,
                hang=6,
            )
            if finding.remedy:
                screen.line(f"      → {finding.remedy}", hang=2)
    failed = any(finding.state == FAIL for finding in found)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(f) for f in found]})
    if failed:
        raise typer.Exit(1)


def examine(settings: "Settings") -> Iterator[Finding]:
    """Look at each thing in turn; nothing is reported that was not just observed."""
    yield _python()
    yield from _folder(settings.home)
    yield _key(settings)
    yield from _database(settings)
    yield from _search_index(settings)
    yield from _redis(settings)
    yield from _reach(settings)
    yield from _ports(settings)
    yield git()
    yield from _sandbox(settings)
    yield from _models(settings)
    yield from _embeddings(settings)
    yield from _agents(settings)
    yield _clock(settings.home)


def warnings(settings: "Settings") -> Iterator[str]:
    """Say what others can reach, what keeps tasks from running, or runs them as the user."""
    for finding in _reach(settings):
        if finding.state == WARN:
            yield f"{finding.what}: {finding.detail}; {finding.remedy}"
    if settings.sandbox == "none":
        yield (
            "agents run WITHOUT isolation, as you;"
            " unset NESTOR_SANDBOX to isolate them again"
        )
    for finding in (git(), *_sandbox(settings)):
        if finding.state == FAIL:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            yield f"tasks will fail: {finding.what}: {finding.detail}{remedy}"


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info >= _NEEDED_PYTHON:
        return Finding("python", OK, version)
    return Finding("python", FAIL, version, "install Python 3.11 or newer")


def _folder(home: Path) -> Iterator[Finding]:
    existing = home
    while not os.path.exists(existing):  # noqa: PTH110 - False also where it may not look
        existing = existing.parent
    try:
        # Permissions do not tell: root is refused by /proc, anybody by a full disk.
        Path(tempfile.mkdtemp(prefix=".nestor-doctor-", dir=existing)).rmdir()
    except OSError as error:
        remedy = "make it writable, or choose another with NESTOR_HOME"
        detail = f"{existing} cannot be written: {error.strerror}"
        yield Finding("data folder", FAIL, detail, remedy)
        return
    if existing == home and stat.S_IMODE(home.stat().st_mode) & 0o077:
        yield Finding(
            "data folder", WARN, f"{home} is open to others", f"chmod 700 {home}"
        )
    else:
        new = "" if existing == home else ", made at first start"
        yield Finding("data folder", OK, f"{home}{new}")
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1024**3:.1f} GiB free"
    if free < _LITTLE_DISK_BYTES:
        state = FAIL if free < _NO_DISK_BYTES else WARN
        yield Finding("disk", state, detail, f"free some space below {existing}")
    else:
        yield Finding("disk", OK, detail)


def _key(settings: "Settings") -> Finding:
    what, path = "admin key", key_file(settings)
    origin = type(settings).origins()["api_key"]
    if settings.api_key is not None:
        # Settings from a file that others can read would not have been loaded.
        private = "" if origin == "NESTOR_API_KEY" else ", a file closed to others"
        return Finding(what, OK, f"from {origin}{private}")
    try:
        found = admin_key(settings)
    except NestorError as error:
        return Finding(what, FAIL, one_line(error, 200), f"chmod 600 {path}")
    if found is None:
        return Finding(what, OK, f"made at first start: {path}")
    mode = stat.S_IMODE(path.stat().st_mode)
    return Finding(what, OK, f"{path} (mode {mode:04o})")


def _database(settings: "Settings") -> Iterator[Finding]:
    """A server is asked now; the file of SQLite is in the data folder, or made there."""
    if settings.database.startswith("sqlite:"):
        return
    import asyncio  # noqa: PLC0415 - `nestor --version` does without

    from nestor.backends.sql.postgresql import look  # noqa: PLC0415 - a driver few need

    try:
        found = asyncio.run(look(settings.database))
    except NestorError as error:
        detail, _, remedy = one_line(error, 400).partition("; ")
        yield Finding("database", FAIL, detail, remedy or "correct NESTOR_DATABASE_URL")
    else:
        yield Finding("database", OK, found)


def _search_index(settings: "Settings") -> Iterator[Finding]:
    """A Qdrant server is asked now; without one the index is in the data folder."""
    import importlib.util  # noqa: PLC0415 - only for this question

    if settings.qdrant_url is None:
        return
    what = "search index"
    if importlib.util.find_spec("qdrant_client") is None:
        remedy = "pip install 'nestor[qdrant]', or unset NESTOR_QDRANT_URL"
        yield Finding(what, FAIL, "qdrant-client is not installed", remedy)
        return
    import asyncio  # noqa: PLC0415 - as above

    from nestor.backends.qdrant.server_requests import look  # noqa: PLC0415 - an extra

    secret = settings.qdrant_api_key
    key = secret.get_secret_value() if secret else None
    try:
        found = asyncio.run(look(settings.qdrant_url, key))
    except NestorError as error:
        remedy = "start it, or correct NESTOR_QDRANT_URL and NESTOR_QDRANT_API_KEY"
        yield Finding(what, FAIL, one_line(error, 400), remedy)
    else:
        yield Finding(what, OK, f"Qdrant {found} at {settings.qdrant_url}")


def _redis(settings: "Settings") -> Iterator[Finding]:
    """Redis is asked now; what needs it goes on without, so that none is no failure."""
    import importlib.util  # noqa: PLC0415 - only for this question

    if settings.redis_url is None:
        return
    if importlib.util.find_spec("redis") is None:
        remedy = "pip install 'nestor[redis]', or unset NESTOR_REDIS_URL"
        yield Finding("redis", FAIL, "the package redis is not installed", remedy)
        return
    import asyncio  # noqa: PLC0415 - as above

    from nestor.model.health import HealthStatus  # noqa: PLC0415

    url = settings.redis_url.get_secret_value()
    found = asyncio.run(_asked_redis(url))
    if found.status is HealthStatus.HEALTHY:
        yield Finding("redis", OK, f"answers at {without_password(url)}")
    else:
        remedy = "start it, or correct NESTOR_REDIS_URL"
        yield Finding("redis", WARN, one_line(found.message, 400), remedy)


async def _asked_redis(url: str) -> "Dependency":
    from nestor.backends.redis.connection import RedisConnection  # noqa: PLC0415 - an extra

    connection = RedisConnection(url, user="doctor")
    try:
        away = "until it does, limits and answers are of one process"
        return await connection.dependency(well="answers", away=away)
    finally:
        await connection.close()


def _reach(settings: "Settings") -> Iterator[Finding]:
    """Who can connect, under which names, and whether others can listen in."""
    if not settings.open_to_others:
        yield Finding("bind", OK, f"{settings.host}, this machine only")
        return
    yield Finding(
        "bind",
        WARN,
        f"{settings.host} is reached from other machines, over plain HTTP",
        "put a TLS proxy in front and name it in NESTOR_TRUSTED_PROXIES"
        " (docs/howto/reach-it-over-the-network.md)",
    )
    if names := ", ".join(settings.allowed_hosts):
        yield Finding("host names", OK, f"{names}, and those of loopback")
    else:
        yield Finding(
            "host names",
            WARN,
            "requests are answered under loopback names only, all others with 421",
            "set NESTOR_ALLOWED_HOSTS to the names that others use",
        )
    if proxies := ", ".join(settings.trusted_proxies):
        yield Finding("proxies", OK, f"X-Forwarded-For is believed from {proxies}")


def _ports(settings: "Settings") -> Iterator[Finding]:
    run = read_run_file(settings.home)
    for layer in _LAYERS:
        wanted = int(getattr(settings, f"{layer}_port"))
        if run is not None and layer in run["ports"]:
            # Open without a key; what is wrong with the key was said before.
            host = run["host"] or settings.local_host
            yield _layer(Stack(host, run["ports"], None), layer)
        elif wanted == 0 or _free(settings.host, wanted):
            detail = f"{wanted} is free" if wanted else "any free port"
            yield Finding(f"port {layer}", OK, detail)
        else:
            remedy = f"end that program, or set NESTOR_{layer.upper()}_PORT"
            detail = f"{wanted} is taken by another program"
            yield Finding(f"port {layer}", FAIL, detail, remedy)


def _layer(stack: Stack, layer: str) -> Finding:
    what = f"layer {layer}"
    try:
        said = stack.call(layer, "GET", "/health/ready", timeout_s=5)
    except NestorError as error:
        return Finding(what, FAIL, one_line(error, 200), "read the stack's log")
    if said.get("status") == "degraded":
        where = f"nestor key, and {stack.url(layer)}/health/detailed"
        return Finding(what, WARN, one_line(said["message"], 200), f"see {where}")
    return Finding(what, OK, f"ready at {stack.url(layer)}")


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def git() -> Finding:
    """Tell whether git is there and new enough."""
    remedy = "install git (Debian: apt-get install git)"
    try:
        done = subprocess.run(
            ["git", "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return Finding("git", FAIL, "does not run", remedy)
    version = done.stdout.split()[2]
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if numbers < _NEEDED_GIT:
        return Finding("git", FAIL, f"{version} is older than 2.30", remedy)
    return Finding("git", OK, version)


def _sandbox(settings: "Settings") -> Iterator[Finding]:
    # Only this command needs it.
    from nestor.backends.sandbox import BubblewrapSandbox  # noqa: PLC0415
    from nestor.backends.sandbox.choice import sandbox_of  # noqa: PLC0415

    if settings.sandbox == "none":
        remedy = "unset NESTOR_SANDBOX to isolate agents again"
        yield Finding("sandbox", WARN, "switched off: agents run as you", remedy)
        return
    sandbox = sandbox_of(settings.sandbox, coordinator_url="", home=settings.home)
    if problem := sandbox.probe():
        detail, _, remedy = problem.partition("; ")
        yield Finding("sandbox", FAIL, detail, remedy)
    elif sandbox.name == "landlock":
        bubblewrap = BubblewrapSandbox(coordinator_url="", home=settings.home)
        detail, _, remedy = (bubblewrap.probe() or "").partition("; ")
        why = f", as {detail}" if detail else ""
        weaker = (
            "Landlock, weaker than bubblewrap: shows other processes, and does not hold"
            f" back chmod of files that you own{why}"
        )
        yield Finding("sandbox", WARN, weaker, remedy)
        return
    else:
        yield Finding("sandbox", OK, "bubblewrap works")
    if shutil.which("slirp4netns") is None:
        detail = "slirp4netns is missing: `setup` commands get no network"
        yield Finding("network", WARN, detail, "apt-get install slirp4netns")
    else:
        yield Finding("network", OK, "slirp4netns for setup commands")


def _models(settings: "Settings") -> Iterator[Finding]:
    if settings.replay_cassette is not None:
        exists = settings.replay_cassette.is_file()
        detail = f"replayed from {settings.replay_cassette}"
        remedy = "" if exists else "no such file: correct NESTOR_REPLAY_CASSETTE"
        yield Finding("model", WARN if exists else FAIL, detail, remedy)
        return
    if not (settings.local_model or settings.remote_model):
        detail = "none configured: questions are answered by quoting the knowledge base"
        yield Finding("model", WARN, detail, "see docs/howto/connect-a-model.md")
        return
    if settings.local_model and settings.local_model.endswith(".gguf"):
        yield _gguf(Path(settings.local_model).expanduser())
    elif settings.local_base_url:
        yield _endpoint("local", settings.local_base_url, settings.local_model, None)
    if settings.remote_base_url:
        secret = settings.remote_api_key
        key = secret.get_secret_value() if secret else None
        yield _endpoint("remote", settings.remote_base_url, settings.remote_model, key)


def _agents(settings: "Settings") -> Iterator[Finding]:
    """Each agent's program is started for its version; only the default one must be there."""
    from nestor.cli import agents  # noqa: PLC0415 - only this command

    for row in agents.found(settings):
        what, version = f"agent {row.name}", row.version or "there"
        if row.state == agents.READY:
            yield Finding(what, OK, version if row.tested else "comes with Nestor")
        elif row.state == agents.OTHER:
            yield Finding(what, WARN, f"{version}: {row.note}", row.remedy or "")
        else:
            needed = row.name == settings.default_backend
            remedy = row.remedy or ""
            if needed:
                yield Finding(what, FAIL, "not installed, and the default", remedy)
            else:
                yield Finding(what, OK, f"not installed ({remedy})")


def _embeddings(settings: "Settings") -> Iterator[Finding]:
    """What makes vectors: without it, search is by words, which the demo needs no more than."""
    what, model = "embeddings", settings.embeddings_model
    if settings.replay_cassette is not None:
        return
    if not model:
        remedy = "for semantic search: nestor models add minilm, and NESTOR_EMBEDDINGS_MODEL=minilm"
        yield Finding(what, OK, f"none configured: search is by words; {remedy}")
        return
    if settings.embeddings_base_url:
        secret = settings.embeddings_api_key
        key = secret.get_secret_value() if secret else None
        yield _endpoint("embeddings", settings.embeddings_base_url, model, key)
        return
    from nestor.backends.embeddings import choose, minilm  # noqa: PLC0415 - only here

    folder = choose.model_folder(model, settings.home)
    try:
        choose.refuse_embeddings(model, None, settings.home)
    except NestorError as error:
        detail, _, remedy = one_line(error, 400).partition("; ")
        yield Finding(what, FAIL, detail, remedy or "install it")
        return
    if model == minilm.NAME and not minilm.is_built(folder):
        remedy = "nestor models add minilm"
        yield Finding(what, WARN, "minilm is not built: search is by words", remedy)
        return
    yield Finding(what, OK, f"{folder}, in this process")


def _gguf(path: Path) -> Finding:
    import importlib.util  # noqa: PLC0415 - only for this question

    if not path.is_file():
        return Finding(
            "model local", FAIL, f"{path} does not exist", "correct NESTOR_LOCAL_MODEL"
        )
    if importlib.util.find_spec("xllamacpp") is None:
        remedy = "pip install 'nestor[local]'"
        return Finding("model local", FAIL, "llama.cpp is not installed", remedy)
    return Finding("model local", OK, f"{path}, started with the stack")


def _endpoint(side: str, base_url: str, model: str | None, key: str | None) -> Finding:
    what = f"model {side}"
    remedy = f"start it, or correct NESTOR_{side.upper()}_BASE_URL"
    try:
        status, body = _list_of_models(base_url, key)
    except (OSError, http.client.HTTPException) as error:
        detail = f"{base_url}: {one_line(str(error) or type(error).__name__)}"
        return Finding(what, FAIL, detail, remedy)
    if status != _HTTP_OK:
        # No list of models is no fault: it answers, and not every server has one.
        detail = f"{base_url} answered {status}"
        if status in _REDIRECTS:
            detail += ": redirects are not followed"
            return Finding(what, FAIL, detail, remedy)
        refused = status in {401, 403}
        fix = f"correct NESTOR_{side.upper()}_API_KEY" if refused else ""
        return Finding(what, FAIL if refused else WARN, detail, fix)
    try:
        names = {str(row["id"]) for row in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return Finding(what, WARN, f"{base_url} answers, without a list of models")
    if model not in names:
        some = ", ".join(sorted(names)[:5])
        detail = f"{base_url} does not list {model} (it lists {some})"
        return Finding(what, WARN, one_line(detail, 200), "correct the model's name")
    return Finding(what, OK, f"{model} at {base_url}")


def _list_of_models(base_url: str, key: str | None) -> tuple[int, bytes]:
    """Ask the address that was looked up, and no other: no redirect, no proxy, no new look-up.

    Raises ``OSError`` and ``http.client.HTTPException``.
    """
    parts = urlsplit(f"{base_url.rstrip('/')}/models")
    host, safe = str(parts.hostname).removesuffix("."), parts.scheme == "https"
    kind = http.client.HTTPSConnection if safe else http.client.HTTPConnection
    connection = kind(host, parts.port)
    try:
        connection.sock = _connected(host, connection.port)
        if safe:
            tls = ssl.create_default_context()
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=host)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request("GET", parts.path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read(4 * 1024 * 1024)
    finally:
        connection.close()


def _connected(host: str, port: int) -> socket.socket:
    """Connect to where ``host`` leads. Raises ``OSError``, also where no model can be."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    for address in addresses:
        if fault := fault_of(address):
            raise OSError(f"it leads to {address}, which {fault}")
    failure = OSError("its name leads nowhere")
    # As the stack does: what is in the internet is not looked for in this network.
    for address in [one for one in addresses if is_public(one)] or addresses:
        try:
            return socket.create_connection((address, port), _PATIENCE_S)
        except OSError as error:
            failure = error
    raise failure


def _clock(home: Path) -> Finding:
    now = time.time()
    marks = [Path(nestor.__file__), home / "nestor.db"]
    newest = max((p.stat().st_mtime for p in marks if p.exists()), default=0.0)
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if newest > now + 60:
        detail = f"{shown} is before files that exist already"
        return Finding("clock", WARN, detail, "set the clock, e.g. switch NTP on")
    return Finding("clock", OK, shown)


def _show_config(settings: "Settings", *, as_json: bool) -> None:
    origins = type(settings).origins()
    rows = []
    for name in sorted(type(settings).model_fields):
        value = getattr(settings, name)
        rows.append(
            {"setting": name, "value": _said(name, value), "from": origins[name]}
        )
    # All of the stack; only this question needs it.
    from nestor.wiring import deployments, refuse_limits_of_nobody  # noqa: PLC0415

    refuse_limits_of_nobody(settings)
    shown = [_deployment(one) for one in deployments(settings, settings.deployments)]
    if as_json:
        from msgspec import to_builtins  # noqa: PLC0415 - not for `--version`

        limits = [to_builtins(one) for one in settings.backends]
        print_json({"settings": rows, "deployments": shown, "backends": limits})
        return
    screen = Screen()
    screen.table(("setting", "value", "from"), [tuple(r.values()) for r in rows])
    if shown:
        names = ("name", "side", "dialect", "model", "base_url", "prices", "from")
        screen.table(names, [tuple(str(one[name]) for name in names) for one in shown])
    if settings.backends:
        columns = ("name", "concurrency", "starts_per_minute", "memory_bytes")
        screen.table(
            ("backend", *columns[1:]),
            [
                tuple(str(getattr(one, column) or "-") for column in columns)
                for one in settings.backends
            ],
        )


def _said(name: str, value: object) -> str | None:
    if name in {"database_url", "redis_url"} and value is not None:
        return without_password(value.get_secret_value())  # type: ignore[attr-defined]
    return None if value is None else str(value)  # a SecretStr prints as stars


def _deployment(one: "Deployment") -> dict[str, object]:
    """Show an endpoint: never its key. Prices are USD per million tokens."""
    made = one.name in {"local", "remote", "embeddings"}
    prices = {
        name: getattr(one, f"price_{name}")
        for name in ("input", "output", "cached", "cache_write")
    }
    known = [f"{name} {price:f}" for name, price in prices.items() if price is not None]
    return {
        "name": one.name,
        "side": one.side,
        "kind": one.kind,
        "dialect": one.dialect,
        "model": one.model,
        "base_url": one.base_url,
        "has_key": one.api_key is not None,
        "prices": ", ".join(known) or "unknown",
        "weight": one.weight,
        "tags": list(one.tags),
        "fallbacks": list(one.fallbacks),
        "from": f"NESTOR_{one.name.upper()}_…" if made else "nestor.toml",
    }
