"""llama.cpp as a supervised child: its HTTP API on loopback, behind a random key."""

import asyncio
import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from nestor.errors import CircuitOpen, Misconfigured, Unavailable
from nestor.model.health import Dependency, HealthStatus

START_TIMEOUT_S = 600.0
"""A large model on a slow disk takes minutes."""
_STOP_S = 5.0
_HEALTH_S = 10.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STABLE_S = 60.0
"""A child that lived so long starts again without a longer pause."""
_LOG_TAIL_BYTES = 4096
_MAGIC = b"GGUF"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where the running child answers. It changes with every start."""

    base_url: str
    api_key: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about the child. ``state``: stopped, loading, ready or down."""

    state: str
    model: str
    pid: int | None = None
    port: int | None = None
    restarts: int = 0
    last_error: str | None = None
    observed_at: datetime | None = None


def _now() -> datetime:
    return datetime.now(UTC)


def refuse_model_file(path: Path) -> None:
    """Raise ``Misconfigured`` when no child could serve this file; makes nothing."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        message = f"NESTOR_LOCAL_MODEL: {error.strerror}: {path}"
        raise Misconfigured(message) from error
    if magic != _MAGIC:
        raise Misconfigured(f"NESTOR_LOCAL_MODEL: not a GGUF file: {path}")
    if importlib.util.find_spec("xllamacpp") is None:
        message = (
            "NESTOR_LOCAL_MODEL: llama.cpp is not installed: pip install nestor[local]"
        )
        raise Misconfigured(message)


CONTEXT_TOKENS = 8192
"""What its model is loaded to take, question and answer together."""


class LlamaCppServer:
    """Starts the child, starts it again with growing pauses when it dies, ends it.

    The child also ends when this process does, however that happens. Start it from the
    thread that runs the event loop.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        run_dir: Path,
        context_tokens: int = CONTEXT_TOKENS,
        start_timeout_s: float = START_TIMEOUT_S,
        now: Callable[[], datetime] = _now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model_path = model_path
        self._run_dir = run_dir
        self._context_tokens = context_tokens
        self._start_timeout_s = start_timeout_s
        self._now = now
        self._monotonic = monotonic
        self._process: asyncio.subprocess.Process | None = None
        self._endpoint: Endpoint | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        """The first attempt has come to an end, good or bad."""
        self._restarts = 0
        self._last_error: str | None = None
        self._observed_at: datetime | None = None

    @property
    def log_path(self) -> Path:
        """What llama.cpp printed since its last start."""
        return self._run_dir / "llama.log"

    def begin(self) -> None:
        """Start loading and return at once. Raises ``Misconfigured`` for what cannot work."""
        self._check()
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._settled.clear()
        self._supervisor = asyncio.create_task(self._supervise())

    async def start(self) -> None:
        """``begin`` and wait for an answer to ``/health``.

        Raises ``Misconfigured``, or ``Unavailable`` when the model does not load; then
        nothing is left running.
        """
        self.begin()
        await self._settled.wait()
        if self._endpoint is None:
            await self.stop()
            raise Unavailable(f"local model did not start: {self._last_error}")

    async def stop(self) -> None:
        """End the child; returns once it is gone."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None

    def endpoint(self) -> Endpoint:
        """Where to ask now.

        Raises ``CircuitOpen`` while loading and when down: nothing was asked, and no
        breaker should count it against the model.
        """
        if self._endpoint is not None:
            return self._endpoint
        if self._supervisor is None:
            message = "local model is not started"
        elif self._last_error is None:
            message = "local model is loading"
        else:
            message = f"local model is down, starting again: {self._last_error}"
        raise CircuitOpen(message, retry_after_s=_FIRST_PAUSE_S)

    def snapshot(self) -> Snapshot:
        """What was observed last; asks nobody."""
        if self._supervisor is None:
            state = "stopped"
        elif self._endpoint is not None:
            state = "ready"
        else:
            state = "loading" if self._last_error is None else "down"
        return Snapshot(
            state=state,
            model=self._model_path.name,
            pid=self._process.pid if self._process else None,
            port=URL(self._endpoint.base_url).port if self._endpoint else None,
            restarts=self._restarts,
            last_error=self._last_error,
            observed_at=self._observed_at,
        )

    def dependency(self) -> Dependency:
        """The snapshot as a line of a health report."""
        seen = self.snapshot()
        status = {
            "ready": HealthStatus.HEALTHY,
            "loading": HealthStatus.DEGRADED,
        }.get(seen.state, HealthStatus.UNHEALTHY)
        parts = [seen.state, f"{seen.restarts} restarts" if seen.restarts else ""]
        return Dependency(
            name="llama.cpp",
            status=status,
            message=", ".join(p for p in [*parts, seen.last_error] if p),
            last_observed=seen.observed_at,
        )

    def _check(self) -> None:
        if self._supervisor is not None:
            raise Misconfigured("local model: started twice")
        refuse_model_file(self._model_path)

    async def _supervise(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            started = self._monotonic()
            try:
                await self._run_once()
            except (OSError, ValueError, Unavailable) as error:
                self._observe(str(error))
            finally:
                await self._end_child()
            self._settled.set()
            if self._monotonic() - started > _STABLE_S:
                pause = _FIRST_PAUSE_S
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            self._restarts += 1

    async def _run_once(self) -> None:
        """Start a child and wait for its end. Raises when it does not come up."""
        key = secrets.token_urlsafe(32)
        self._process = process = await self._spawn()
        assert process.stdin is not None
        config = {
            "model_path": str(self._model_path),
            "alias": self._model_path.stem,
            "api_key": key,
            "context_tokens": self._context_tokens,
            "parent_pid": os.getpid(),
        }
        try:
            async with asyncio.timeout(self._start_timeout_s):
                process.stdin.write(json.dumps(config).encode() + b"\n")
                base_url = await self._told(process)
                await _wait_for_health(base_url, key)
        except TimeoutError:
            message = f"no answer {self._start_timeout_s:g} s after its start"
            raise Unavailable(message) from None
        self._endpoint = Endpoint(base_url=base_url, api_key=key)
        self._observe(None)
        self._settled.set()
        code = await process.wait()
        self._observe(f"llama.cpp ended with {code}{self._log_hint()}")

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self.log_path.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "nestor.backends.llama_cpp.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    async def _told(self, process: asyncio.subprocess.Process) -> str:
        """Read the one line the child says about how loading went."""
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            code = await process.wait()
            raise Unavailable(f"llama.cpp ended with {code}{self._log_hint()}")
        told = json.loads(line)
        if "error" in told:
            raise Unavailable(f"{told['error']}{self._log_hint()}")
        return str(told["base_url"])

    async def _end_child(self) -> None:
        process, self._process, self._endpoint = self._process, None, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _observe(self, error: str | None) -> None:
        self._last_error = error
        self._observed_at = self._now()

    def _log_hint(self) -> str:
        """Return the last line of the log that speaks of an error, to be appended."""
        with suppress(OSError):
            tail = self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(
                errors="replace"
            )
            lines = [line.strip() for line in tail.splitlines() if "rror" in line]
            return f" ({lines[-1][:200]})" if lines else ""
        return ""


async def _wait_for_health(base_url: str, key: str) -> None:
    """Ask until the answer is 200; the caller sets the limit."""
    url = URL(base_url).with_path("/health")
    headers = {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=_HEALTH_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url, headers=headers) as response:
                    if response.ok:
                        return
            await asyncio.sleep(0.1)
