"""A whole stack in a child process, on free ports and a folder of its own."""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nestor.cli.client import Stack, load_settings, read_run_file
from nestor.errors import NestorError, Unavailable
from nestor.settings import Settings

READY_S = 60.0
DRAIN_S = 20.0
_LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
_TAIL_LINES = 25


class ChildStack:
    """``nestor up`` as a child. Stopped by its pid when the block ends, whatever happens."""

    def __init__(self, home: Path, values: Mapping[str, object]) -> None:
        self.home = home
        self._values = {
            "home": home,
            "log_format": "json",
            **{f"{layer}_port": 0 for layer in _LAYERS},
            **values,
        }
        self._log = home.with_name("stack.log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stack:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nestor.cli", "up"],
                cwd=self.home.parent,  # so that no nestor.toml of the user is read
                env=Settings.environment_for(self._values),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us; we stop the child
            )
        try:
            return self._when_ready(time.monotonic() + READY_S)
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask the child to drain, then end it; returns once it is gone."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def tail(self) -> str:
        """Return the last lines of what the child printed."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def _when_ready(self, deadline: float) -> Stack:
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise NestorError(f"the stack did not start:\n{self.tail()}")
            run = read_run_file(self.home)
            if run is not None and run["pid"] == self._process.pid:
                stack = Stack("127.0.0.1", run["ports"], self._key())
                if all(_ready(stack, layer) for layer in run["ports"]):
                    return stack
            time.sleep(0.1)
        raise Unavailable(f"the stack was not ready in {READY_S:g} s:\n{self.tail()}")

    def _key(self) -> str:
        return (self.home / "api-key").read_text().strip()


def model_values(cassette: Path, secrets: Path) -> tuple[dict[str, Any], bool]:
    """Return the model settings of the demo, and whether the model is a replayed one.

    A model that the user configured is used; else the recording. The key goes by file,
    so that it stands in no environment.
    """
    mine = load_settings()
    if not (mine.local_model or mine.remote_model):
        replay = {
            "replay_cassette": cassette,
            "local_model": "demo-local",
            "remote_model": "demo-remote",
            "remote_price_input": "3",
            "remote_price_output": "15",
        }
        return replay, True
    names = (
        "local_base_url",
        "local_model",
        "remote_base_url",
        "remote_model",
        "remote_price_input",
        "remote_price_output",
        "routing_default",
        "model_timeout_s",
        "record_cassette",
        "replay_cassette",
        "sandbox",
    )
    values = {name: getattr(mine, name) for name in names}
    if mine.remote_api_key is not None:
        file = secrets / "remote-key"
        file.touch(mode=0o600)
        file.write_text(mine.remote_api_key.get_secret_value())
        values["remote_api_key_file"] = file
    found = {name: value for name, value in values.items() if value is not None}
    return found, mine.replay_cassette is not None


def _ready(stack: Stack, layer: str) -> bool:
    try:
        stack.call(layer, "GET", "/health/ready", timeout_s=5)
    except NestorError:
        return False
    return True
