"""What a call through the Coordinator costs, beside other gateways.

    python -m bench.bench_gateway [--rounds 5] [--requests 1000] [--only nestor,bare] [--json]

One upstream (a scripted stand-in, in its own process), one load generator (in its own
process), and every gateway up all the time and asked in turn, round after round. CPU is
that of a gateway's process tree, from before the first request to half a second after the
last answer, so what it does in the background counts; what it uses while nobody asks is
measured apart and taken off. Every answer is checked; the
upstream must have seen as many requests as were sent; what Nestor's database recorded
must equal the upstream's own count, to the token. Written to bench/results/gateway.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from bench.gateway.generator import Job, Result
from bench.gateway.processes import Process, cpu_s, resident_mib
from bench.gateway.summary import versions
from bench.gateway.systems import (
    ALL,
    LITELLM,
    ROOT,
    Nestor,
    System,
    call,
    make,
)
from bench.measured import machine, spread

RESULT = ROOT / "bench/results/gateway.json"
SETTLE_S = 0.5
"""After the last answer: what is done in the background belongs to the requests."""
IDLE_S = 4.0
TINY_US = 1.0
"""Nothing is divided by less."""
GAP_MS = 1.0
"""Between two events of a stream."""


class Load(NamedTuple):
    """One kind of requests. ``share``: of ``--requests``."""

    name: str
    what: str
    stream: bool
    size: str
    concurrency: int
    share: float


LOADS = (
    Load("json-2k", "JSON, 2 kB request", False, "2k", 16, 1.0),
    Load("json-12k", "JSON, 12 kB request", False, "12k", 16, 0.6),
    Load("sse-2k", "SSE, 53 events, 2 kB request", True, "2k", 16, 0.2),
    Load("json-2k-alone", "JSON, 2 kB, one at a time", False, "2k", 1, 0.2),
    Load("sse-2k-alone", "SSE, 2 kB, one at a time", True, "2k", 1, 0.02),
)


class Bench:
    """The upstream, the generator and the systems while they run."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self._folder = folder
        self.upstream = Process(
            [sys.executable, "-m", "bench.gateway.upstream", "--gap-ms", str(GAP_MS)],
            folder / "upstream.log",
            cwd=ROOT,
            says_its_port=True,
        )
        self.generator = subprocess.Popen(
            [sys.executable, "-m", "bench.gateway.generator"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.systems = make(names, self.upstream.port, folder)
        self.idle: dict[str, float] = {}
        """CPU seconds a second while nobody asks."""
        self._serial = 1

    def start(self) -> None:
        """Start every system, one after the other."""
        for system in self.systems:
            system.start()
            print(
                f"{system.name}: ready in {system.ready_s or 0:.1f} s", file=sys.stderr
            )

    def stop(self) -> None:
        """End everything that was started."""
        for system in self.systems:
            system.stop()
        self.generator.kill()
        self.generator.communicate()
        self.upstream.stop()

    def ask(self, system: System, load: Load, requests: int) -> Result:
        """Put so many requests; refuses to go on when one answer is not right."""
        job = Job(
            port=system.port,
            path=system.path,
            key=system.key,
            model=system.model,
            stream=load.stream,
            size=load.size,
            requests=requests,
            concurrency=load.concurrency,
            first_serial=self._serial,
        )
        self._serial += requests
        before = self._seen(system)
        assert self.generator.stdin is not None
        assert self.generator.stdout is not None
        self.generator.stdin.write(msgspec.json.encode(job) + b"\n")
        self.generator.stdin.flush()
        result = msgspec.json.decode(self.generator.stdout.readline(), type=Result)
        if result.wrong or result.right != requests:
            raise SystemExit(
                f"{system.name}, {load.name}: {result.right} of {requests} answers are"
                f" right; {result.wrong} {result.example}\n{system.said()}"
            )
        if (seen := self._seen(system) - before) != requests:
            raise SystemExit(
                f"{system.name}, {load.name}: {requests} asked, upstream saw {seen}"
            )
        return result

    def measure(self, system: System, load: Load, requests: int) -> dict[str, float]:
        """Put so many requests; returns what they cost, per request where it says so."""
        upstream = cpu_s(self.upstream.pid)
        before = cpu_s(system.process.pid) if system.process else 0.0
        result = self.ask(system, load, requests)
        time.sleep(SETTLE_S)
        used = cpu_s(system.process.pid) - before if system.process else 0.0
        upstream = cpu_s(self.upstream.pid) - upstream
        idle = self.idle.get(system.name, 0.0) * (result.seconds + SETTLE_S)
        return {
            "cpu_us": max(0.0, used - idle) / requests * 1e6,
            "cpu_with_idle_us": used / requests * 1e6,
            "per_s": requests / result.seconds,
            "p50_ms": result.p50_ms,
            "p99_ms": result.p99_ms,
            "first_p50_ms": result.first_p50_ms,
            "first_p99_ms": result.first_p99_ms,
            "generator_cpu_us": result.cpu_s / requests * 1e6,
            "upstream_cpu_us": upstream / requests * 1e6,
        }

    def rest(self, system: System) -> float:
        """Return what a system uses while nobody asks, and remember it."""
        if system.process is None:
            return 0.0
        before = cpu_s(system.process.pid)
        time.sleep(IDLE_S)
        share = (cpu_s(system.process.pid) - before) / IDLE_S
        self.idle[system.name] = share
        return share

    def counts(self, system: System) -> dict[str, int]:
        """What the upstream saw of a system."""
        found = call(self.upstream.port, "GET", "/counts")[1]
        counts: dict[str, int] = found.get(system.sees, {})
        return counts

    def _seen(self, system: System) -> int:
        return self.counts(system).get("requests", 0)


def requests_of(system: System, load: Load, requests: int) -> int:
    """How many requests a system is asked."""
    share = system.share if not load.stream else min(system.share, 2.0)
    return max(10, round(requests * load.share * share))


def rounds_of(
    bench: Bench, rounds: int, requests: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Ask all systems in turn, round after round."""
    seen: dict[str, dict[str, list[dict[str, float]]]] = {
        system.name: {load.name: [] for load in LOADS} for system in bench.systems
    }
    for number in range(rounds):
        for load in LOADS:
            # Another one first in each round: what runs before leaves its traces.
            turn = number % len(bench.systems)
            for system in bench.systems[turn:] + bench.systems[:turn]:
                count = requests_of(system, load, requests)
                seen[system.name][load.name].append(bench.measure(system, load, count))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return seen


def run(bench: Bench, rounds: int, requests: int) -> dict[str, Any]:
    """Measure; returns what is written down."""
    bench.start()
    of_systems: dict[str, Any] = {}
    for system in bench.systems:
        memory = resident_mib(system.process.pid) if system.process else None
        for load in LOADS:  # warm: connections are made, code is loaded
            bench.ask(system, load, max(10, requests_of(system, load, requests) // 5))
        of_systems[system.name] = {
            "what": system.what,
            "settings": system.settings(),
            "ready_s": system.ready_s and round(system.ready_s, 2),
            "idle_cpu_share": round(bench.rest(system), 4),
            "resident_mib": {"at_start": memory},
        }
    seen = rounds_of(bench, rounds, requests)
    for system in bench.systems:
        found = of_systems[system.name]
        memory = resident_mib(system.process.pid) if system.process else None
        found["resident_mib"]["at_end"] = memory
        found["upstream_saw"] = bench.counts(system)
        found["loads"] = {
            load: {
                measure: spread(one[measure] for one in of_rounds)
                for measure in of_rounds[0]
            }
            for load, of_rounds in seen[system.name].items()
        }
    return {
        "command": f"python -m bench.bench_gateway --rounds {rounds} --requests {requests}",
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "versions": versions(LITELLM),
        "rounds": rounds,
        "requests": requests,
        "gap_ms": GAP_MS,
        "loads": {load.name: load._asdict() for load in LOADS},
        "systems": of_systems,
        "ratios": ratios(seen),
        "meter": meter(bench),
    }


def ratios(
    seen: dict[str, dict[str, list[dict[str, float]]]],
) -> dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]:
    """CPU per request, Nestor's by another's and the other way round, in pairs of a round."""
    found: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]] = {}
    for ours in [name for name in ("nestor", "nestor-limits") if name in seen]:
        for theirs in [name for name in seen if name not in {"direct", ours}]:
            of = found.setdefault(ours, {}).setdefault(theirs, {})
            for load in LOADS:
                pairs = [
                    (max(a["cpu_us"], TINY_US), max(b["cpu_us"], TINY_US))
                    for a, b in zip(
                        seen[ours][load.name], seen[theirs][load.name], strict=True
                    )
                ]
                of[load.name] = {
                    "ours_by_theirs": spread((a / b for a, b in pairs), 3),
                    "theirs_by_ours": spread((b / a for a, b in pairs), 3),
                }
    return found


def meter(bench: Bench) -> dict[str, Any] | None:
    """Compare what Nestor recorded with what the upstream counted; refuses a difference."""
    for system in bench.systems:
        if not isinstance(system, Nestor):
            continue
        recorded, counted = system.metered(), bench.counts(system)
        expected = {
            "calls": counted["requests"],
            "failed": 0,
            "unsettled": 0,
            "input_tokens": counted["input_tokens"],
            "output_tokens": counted["output_tokens"],
        }
        if recorded != expected:
            raise SystemExit(f"the meter says {recorded}, the upstream {expected}")
        return {"recorded": recorded, "upstream": counted, "equal": True}
    return None


def shown(found: dict[str, Any]) -> str:
    """Return the numbers for a terminal."""
    lines = []
    for load in LOADS:
        lines.append(f"{load.what}:")
        for name, system in found["systems"].items():
            of = {k: v["median"] for k, v in system["loads"][load.name].items()}
            lines.append(
                f"  {name:14}{of['cpu_us']:9.0f} µs CPU{of['per_s']:9.0f}/s"
                f"   p50 {of['p50_ms']:8.2f}  p99 {of['p99_ms']:8.2f} ms"
                f"   first {of['first_p50_ms']:8.2f} ms"
            )
    for ours, others in found["ratios"].items():
        for theirs, loads in others.items():
            said = ", ".join(
                f"{load} {of['ours_by_theirs']['median']:.2f}"
                for load, of in loads.items()
            )
            lines.append(f"CPU of {ours} by that of {theirs}: {said}")
    lines.append(f"meter: {found['meter']}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--only", default=",".join(kind.name for kind in ALL))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - {kind.name for kind in ALL}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(names, Path(folder))
        try:
            found = run(bench, given.rounds, given.requests)
        finally:
            bench.stop()
    if len(names) == len(ALL):  # a part would replace the whole
        RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2) if given.json else shown(found))


if __name__ == "__main__":
    main()
