"""What the task loop costs besides its agent, beside the durable engine alone.

    python -m bench.bench_ralph [--rounds 5] [--iterations 30] [--only nestor,dbos] [--json]

Per round and system, another one first in each: CPU of an iteration (of the process
itself; of git and the sandbox apart), the time from submit to start, and how long after
``kill -9`` and a restart the interrupted agent runs again. Nestor is `nestor bench ralph`
and `nestor up`; the other is DBOS 3.4 with as many recorded steps, each empty
(bench/ralph/raw_dbos.py). Temporal and Prefect need a server that cannot be had here.
Written to bench/results/ralph.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.measured import RESULTS, commit, machine, spread

from nestor.cli.client import Stack, read_run_file
from nestor.errors import NestorError
from nestor.settings import Settings

RESULT = RESULTS / "ralph.json"
NESTOR = [sys.executable, "-m", "nestor.cli"]
DBOS = [sys.executable, "-m", "bench.ralph.raw_dbos"]
LAYERS = ("dashboard", "ralph", "aidb", "coordinator", "learning")
SYSTEMS = ("nestor", "dbos")
WITHIN_S = 120.0


def quiet_env(home: Path | None = None) -> dict[str, str]:
    """Return an environment without settings of whoever measures."""
    values = {"home": home} if home else {}
    ports = {f"{layer}_port": 0 for layer in LAYERS} if home else {}
    return Settings.environment_for({**values, **ports})


def cost(name: str, folder: Path, iterations: int, starts: int) -> dict[str, Any]:
    """Have one system take its iterations; returns what it says of itself."""
    counts = ["--iterations", str(iterations), "--starts", str(starts)]
    argv = [*NESTOR, "bench", "ralph", *counts, "--json"]
    if name == "dbos":
        argv = [*DBOS, str(folder / "raw"), *counts]
    done = subprocess.run(
        argv, env=quiet_env(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    said = done.stdout
    found: dict[str, Any] = json.loads(said[said.index("{") :])
    return found


def recovery_s(name: str, folder: Path) -> float:
    """Kill it while an agent runs; return seconds from the restart until one runs again."""
    return _nestor_recovery(folder) if name == "nestor" else _dbos_recovery(folder)


def _dbos_recovery(folder: Path) -> float:
    def until_agent(*options: str) -> tuple[subprocess.Popen[str], float]:
        begun = time.monotonic()
        process = subprocess.Popen(
            [*DBOS, str(folder / "killed"), *options],
            env=quiet_env(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line.strip() == "agent":
                return process, time.monotonic() - begun
        raise SystemExit("dbos: it ended before its agent ran")

    took = 0.0
    for options in (["--hang"], ["--recover"]):
        process, took = until_agent(*options)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return took


def _nestor_recovery(folder: Path) -> float:
    home = folder / "home"
    up = _Up(home)
    try:
        stack = up.start()
        body = {"task_id": "t", "task": "wait", "backend": "command"}
        body |= {"command": "sleep 600", "checks": [{"run": "false"}]}  # type: ignore[dict-item]
        stack.call("ralph", "POST", "/tasks", body=body)
        _until_agents(stack, 1)
        up.kill()
        begun = time.monotonic()
        _until_agents(up.start(), 2)
        return time.monotonic() - begun
    finally:
        up.end()


class _Up:
    """``nestor up`` on one data folder, several times."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Stack:
        """Start it; returns once its addresses are known."""
        out = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [*NESTOR, "up"], env=quiet_env(self._home), stdout=out, stderr=out
        )
        begun = time.monotonic()
        while time.monotonic() - begun < WITHIN_S:
            run = read_run_file(self._home)
            if run is not None and run["pid"] == self._process.pid:
                key = (self._home / "api-key").read_text().strip()
                return Stack("127.0.0.1", run["ports"], key)
            time.sleep(0.01)
        raise SystemExit("nestor: it did not start")

    def kill(self) -> None:
        """``kill -9``, and wait."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """End what runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


def _until_agents(stack: Stack, count: int) -> None:
    """Wait until the agent's step was begun so often, as the live stream says."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        try:
            seen = 0
            for event in stack.stream("ralph", "/tasks/t/events"):
                seen += event.kind == "iteration" and event.data.get("step") == "agent"
                if seen >= count:
                    return
        except NestorError:
            time.sleep(0.01)
    raise SystemExit("nestor: the agent did not run")


def summary(rounds: list[dict[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return medians and ranges, and ours by theirs round by round."""
    systems: dict[str, Any] = {}
    for name in rounds[0]:
        seen = [one[name] for one in rounds]
        numbers = [
            key for key, value in seen[0].items() if isinstance(value, int | float)
        ]
        systems[name] = {key: spread(one[key] for one in seen) for key in numbers}
        systems[name]["starts_ms"] = spread(w for one in seen for w in one["starts_ms"])
    found: dict[str, Any] = {"systems": systems}
    if set(SYSTEMS) <= systems.keys():
        found["ours_by_theirs"] = {
            key: spread(one["nestor"][key] / one["dbos"][key] for one in rounds)
            for key in ("engine_cpu_ms", "recovery_s")
        }
    return found


def main() -> None:
    """Measure, print, and keep what is whole."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--only", default=",".join(SYSTEMS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = given.only.split(",")
    rounds = []
    for number in range(given.rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        seen: dict[str, Mapping[str, Any]] = {}
        for name in order:
            with tempfile.TemporaryDirectory(prefix="nestor-bench-") as text:
                folder = Path(text)
                told = cost(name, folder, given.iterations, given.starts)
                seen[name] = {**told, "recovery_s": round(recovery_s(name, folder), 3)}
            print(f"round {number + 1}, {name}: {seen[name]}", file=sys.stderr)
        rounds.append({name: seen[name] for name in names})
    result = {
        "command": f"python -m bench.bench_ralph --rounds {given.rounds}"
        f" --iterations {given.iterations}",
        "at": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "commit": commit(),
        "versions": {name: version(name) for name in ("dbos", "sqlalchemy")},
        "rounds": given.rounds,
        **summary(rounds),
    }
    if given.json:
        print(json.dumps(result, indent=1))
    if set(names) == set(SYSTEMS):
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
