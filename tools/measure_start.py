"""Measure what starting costs: `python tools/measure_start.py`.

CPU of `nestor --version`, time from start to ready, and resident memory of an idle
`nestor up`; medians and ranges of several rounds, to bench/results/start.json.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
IDLE_S = 5.0
RESULT = Path("bench/results/start.json")
NESTOR = [sys.executable, "-m", "nestor.cli"]
LAYERS = ("DASHBOARD", "RALPH", "AIDB", "COORDINATOR", "LEARNING")


def version_cpu_s() -> float:
    """Return the CPU seconds of one `nestor --version`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*NESTOR, "--version"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start(folder: Path) -> tuple[float, float]:
    """Start a stack; returns seconds to ready and MiB resident after some idle seconds."""
    home = folder / "home"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
    ports = {f"NESTOR_{layer}_PORT": "0" for layer in LAYERS}
    env = clean | ports | {"NESTOR_HOME": str(home)}
    began = time.monotonic()
    process = subprocess.Popen(
        [*NESTOR, "up"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (home / "run.json").exists():
            if process.poll() is not None or time.monotonic() - began > 60:
                raise SystemExit("the stack did not start")
            time.sleep(0.01)
        ready_s = time.monotonic() - began
        time.sleep(IDLE_S)
        return ready_s, resident_mib(process.pid)
    finally:
        process.terminate()
        process.wait()


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    total = 0.0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            total += int(line.split()[1]) / 1024
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total + sum(resident_mib(int(child)) for child in children)


def summary(values: list[float]) -> dict[str, float]:
    """Return median and range."""
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


def main() -> None:
    """Measure, print, and keep."""
    subprocess.run([*NESTOR, "--version"], check=True, stdout=subprocess.DEVNULL)
    cpu = [version_cpu_s() for _ in range(ROUNDS)]
    ready, memory = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            seconds, mebibytes = start(Path(folder))
        ready.append(seconds)
        memory.append(mebibytes)
    found = {
        "rounds": ROUNDS,
        "python": platform.python_version(),
        "version_cpu_s": summary(cpu),
        "ready_s": summary(ready),
        "idle_resident_mib": summary(memory),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
