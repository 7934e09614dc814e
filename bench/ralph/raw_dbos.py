"""The durable engine by itself: as many steps as an iteration of the loop has, each empty.

    python -m bench.ralph.raw_dbos FOLDER --iterations 30 --starts 5     # prints JSON
    python -m bench.ralph.raw_dbos FOLDER --hang                          # until it is killed
    python -m bench.ralph.raw_dbos FOLDER --recover                       # prints "again"

Set up as its documentation says: SQLite, its own queue, nothing else turned on or off.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from dbos import DBOS

STEPS = ("prepare", "context", "guidance", "agent", "snapshot", "verify", "decide")
STARTED: dict[str, float] = {}


@DBOS.step()
def step(name: str, n: int) -> dict[str, Any]:
    """Do nothing, and be recorded."""
    return {"name": name, "n": n}


@DBOS.workflow()
def iterate(task: str, iterations: int) -> str:
    """Take the steps of so many iterations."""
    STARTED[task] = time.time()
    for n in range(iterations):
        for name in STEPS:
            step(name, n)
    return task


@DBOS.step()
def wait_long() -> None:
    """What an agent is at when its worker is killed."""
    print("agent", flush=True)
    time.sleep(600)


@DBOS.workflow()
def hang() -> None:
    """A workflow that is killed in a step."""
    wait_long()


def cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(iterations: int, starts: int) -> dict[str, Any]:
    """Return CPU of an iteration and the time from enqueue to start, in milliseconds."""
    queue = DBOS.register_queue("bench")
    queue.enqueue(iterate, "warm", 2).get_result()
    begun, before = time.monotonic(), cpu()
    time.sleep(3)
    idle = (cpu() - before) / (time.monotonic() - begun)
    waits = []
    for number in range(starts):
        at = time.time()
        queue.enqueue(iterate, f"start-{number}", 1).get_result()
        waits.append(round((STARTED[f"start-{number}"] - at) * 1e3, 1))
    begun, before = time.monotonic(), cpu()
    queue.enqueue(iterate, "loop", iterations).get_result()
    wall = time.monotonic() - begun
    spent = cpu() - before - idle * wall
    per = 1e3 / iterations
    return {
        "iterations": iterations,
        "engine_cpu_ms": round(spent * per, 3),
        "wall_ms": round(wall * per, 3),
        "idle_cpu_share": round(idle, 4),
        "starts_ms": waits,
    }


def main() -> None:
    """Do one of the three things that the module says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--recover", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{given.folder / 'dbos.sqlite'}",
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    if given.hang:
        DBOS.start_workflow(hang)
    if given.hang or given.recover:
        time.sleep(600)
    print(json.dumps(measure(given.iterations, given.starts)))
    DBOS.destroy()


if __name__ == "__main__":
    main()
