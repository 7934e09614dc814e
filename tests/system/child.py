"""``nestor up`` in a child process, called over HTTP, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.conftest import ROOT

from nestor.cli.client import Stack, read_run_file
from nestor.errors import NestorError
from nestor.model.task import FINAL_STATUSES
from nestor.settings import Settings

_LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")


class Child:
    """One data folder; processes on it one after the other."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home.with_name(f"{home.name}.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def start(self, point: str = "never", *, ready_s: float = 60.0) -> Stack:
        """Start; returns once every layer is ready."""
        self.spawn(point)
        deadline = time.monotonic() + ready_s
        while time.monotonic() < deadline:
            if (stack := self.stack()) is not None and self._ready(stack):
                return stack
            assert self.process is not None
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"not ready:\n{self.log.read_text()[-4000:]}")

    def spawn(self, point: str = "never") -> None:
        """Start and do not wait."""
        values = {
            "home": self.home,
            "log_format": "json",
            **{f"{layer}_port": 0 for layer in _LAYERS},
            **self._settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.killed_stack", point],
                cwd=ROOT,
                env=Settings.environment_for(values),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stack(self) -> Stack | None:
        """Return the address book of the process that runs now, once it wrote one."""
        run = read_run_file(self.home)
        if run is None or self.process is None or run["pid"] != self.process.pid:
            return None
        return Stack(
            "127.0.0.1", run["ports"], (self.home / "api-key").read_text().strip()
        )

    def port(self, layer: str) -> int:
        """Where a layer listens."""
        run = read_run_file(self.home)
        assert run is not None
        return int(run["ports"][layer])

    def kill(self) -> None:
        """``kill -9``, and wait."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def killed_itself(self, *, within_s: float = 60.0) -> None:
        """Wait for the end that it was started for."""
        assert self.process is not None
        assert self.process.wait(within_s) == -signal.SIGKILL, self.log.read_text()[
            -4000:
        ]

    def events(self) -> list[dict[str, Any]]:
        """Every whole line of the telemetry."""
        path = self.home / "telemetry" / "unified-events.jsonl"
        # Texts hold other line ends than this one (U+2028), which JSON does not escape.
        lines = path.read_text().split("\n") if path.exists() else []
        return [json.loads(line) for line in lines if line]

    def _ready(self, stack: Stack) -> bool:
        try:
            for layer in _LAYERS:
                stack.call(layer, "GET", "/health/ready")
        except NestorError:
            return False
        return True


def until_ended(
    stack: Stack, task_id: str, *, within_s: float = 90.0
) -> Mapping[str, Any]:
    """Wait for the end of a task, over HTTP."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        task: dict[str, Any] = stack.call("ralph", "GET", f"/tasks/{task_id}")
        if task["status"] in FINAL_STATUSES:
            return task
        time.sleep(0.05)
    raise AssertionError(f"still {task['status']}: {task}")
