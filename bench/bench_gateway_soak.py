"""Hold the Coordinator under load, with clients that leave and an upstream that fails.

    python -m bench.bench_gateway_soak [--minutes 30] [--rate 200] [--seed 1]

Three processes: the upstream (a scripted stand-in), the clients, and a real ``nestor up``.
40 % of the requests are streams, 6 % of the clients leave in the middle, and for 4 % the
upstream answers 500 or 503, hangs up, or breaks off. Resident memory and open files are
sampled. At the end three counts are laid side by side, request by request: what the
clients saw, what the upstream did, and what Nestor's database recorded. Written to
bench/results/gateway-soak.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from bench.gateway import traffic
from bench.gateway.processes import Process, cpu_s, resident_mib, tree
from bench.gateway.soak_generator import Outcomes, SoakJob
from bench.gateway.summary import versions
from bench.gateway.systems import LITELLM, PRICES, ROOT, Nestor, call
from bench.measured import machine

RESULT = ROOT / "bench/results/gateway-soak.json"
GAP_MS = 4.0
WARM_SHARE, END_SHARE = 0.2, 0.1
"""Memory is compared between the time after the first share and the last share."""
LIMITS = {"usd": "1000000", "tokens": 10**13, "rpm": 10**7, "tpm": 10**12}
_MILLION = 1_000_000
_ROWS = """
select json_extract(body, '$.usage.input_tokens'),
       json_extract(body, '$.usage.output_tokens'),
       json_extract(body, '$.cost_usd'),
       json_extract(body, '$.unsettled'),
       json_extract(body, '$.ok')
from model_call
"""


class Sample(msgspec.Struct):
    """What was seen at one moment."""

    at_s: float
    resident_mib: float
    files: int
    cpu_s: float


def sample(pid: int, began: float) -> Sample:
    """Look at a process now."""
    files = sum(len(list(Path(f"/proc/{one}/fd").iterdir())) for one in tree(pid))
    at = round(time.monotonic() - began, 1)
    return Sample(at, round(resident_mib(pid), 2), files, round(cpu_s(pid), 2))


def watched(nestor: Nestor, job: SoakJob) -> tuple[Outcomes, list[Sample]]:
    """Let the clients ask; returns how that ended for them, and the samples."""
    assert nestor.process is not None
    clients = subprocess.Popen(
        [sys.executable, "-m", "bench.gateway.soak_generator"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    every = max(1.0, job.seconds / 360)
    samples: list[Sample] = []
    try:
        assert clients.stdin is not None
        clients.stdin.write(msgspec.json.encode(job) + b"\n")
        clients.stdin.close()
        clients.stdin = None
        began = time.monotonic()
        while time.monotonic() - began < job.seconds:
            samples.append(sample(nestor.process.pid, began))
            time.sleep(every)
        said, _ = clients.communicate(timeout=120)
        samples.append(sample(nestor.process.pid, began))
    finally:
        clients.kill()
        clients.communicate()
    return msgspec.json.decode(said, type=Outcomes), samples


def memory(samples: list[Sample], seconds: float) -> dict[str, Any]:
    """Compare the memory after warming up with that of the end."""
    first = [
        one.resident_mib
        for one in samples
        if WARM_SHARE <= one.at_s / seconds <= WARM_SHARE + END_SHARE
    ]
    last = [one.resident_mib for one in samples if one.at_s / seconds >= 1 - END_SHARE]
    before, after = statistics.median(first), statistics.median(last)
    return {
        "at_start_mib": samples[0].resident_mib,
        "warm_mib": before,
        "end_mib": after,
        "growth_share": round(after / before - 1, 4),
        "files_at_start": samples[0].files,
        "files_at_end": samples[-1].files,
        "cpu_share": round(
            (samples[-1].cpu_s - samples[0].cpu_s) / samples[-1].at_s, 3
        ),
        "samples": [
            [one.at_s, one.resident_mib, one.files]
            for one in samples[:: max(1, len(samples) // 120)]
        ],
    }


def recorded(nestor: Nestor) -> dict[str, Any]:
    """Return what the database holds: calls with tokens by serial number, and the others."""
    sums = nestor.metered()
    with closing(nestor.database()) as database:
        rows = database.execute(_ROWS).fetchall()
    known: dict[int, tuple[int, str | None]] = {}
    twice: list[int] = []
    unknown = unsettled = 0
    for serial, output, cost, open_end, _ in rows:
        unsettled += bool(open_end)
        if serial is None:
            unknown += 1
        elif serial in known:
            twice.append(serial)
        else:
            known[serial] = (output, cost)
    return {
        "rows": len(rows),
        "sums": sums,
        "known": known,
        "twice": twice,
        "unknown": unknown,
        "unsettled": unsettled,
    }


def cost_of(serial: int) -> Decimal:
    """Return what request ``serial`` costs, USD."""
    spent = serial * Decimal(PRICES["input"])
    spent += traffic.answer_tokens(serial) * Decimal(PRICES["output"])
    return spent / _MILLION


def reconciled(
    out: Outcomes,
    upstream: dict[str, Any],
    counts: dict[str, int],
    meter: dict[str, Any],
) -> dict[str, Any]:
    """Lay the three counts side by side; ``faults`` is empty when they agree."""
    answered, right = set(upstream["answered"]), set(out.right)
    known: dict[int, tuple[int, str | None]] = meter["known"]
    missing = answered - known.keys()
    excused = set(out.left) | set(out.faulty)
    told = {serial for serials in out.told.values() for serial in serials}
    most_unknown = len(out.left) + counts["faults"]
    never_sent = meter["rows"] - counts["requests"]
    wrong_tokens = [
        serial
        for serial, (output, cost) in known.items()
        if output != traffic.answer_tokens(serial)
        or cost is None
        or Decimal(cost) != cost_of(serial)
    ]
    looks = {
        "an answer was wrong": out.wrong,
        "a right answer that the upstream did not give": sorted(right - answered)[:9],
        "recorded, but not answered": sorted(known.keys() - answered)[:9],
        "recorded twice": meter["twice"][:9],
        "recorded with other tokens or another cost": wrong_tokens[:9],
        "answered and not recorded, though the client stayed": sorted(
            missing - excused
        )[:9],
        "an error that nobody asked for": sorted(told - excused)[:9],
        "calls that are not recorded": max(0, counts["requests"] - meter["rows"]),
        # Begun, and the client left before the upstream was reached.
        "more calls than were asked": max(0, never_sent - len(out.left)),
        "more unknown than faults and leavers": max(0, meter["unknown"] - most_unknown),
        "spend is not the sum of its calls": sum(known) - meter["sums"]["input_tokens"],
    }
    return {
        "clients": {
            "right": len(right),
            "explicit_errors": {what: len(of) for what, of in out.told.items()},
            "left": len(out.left),
            "asked_for_a_fault": len(out.faulty),
            "wrong": {what: len(of) for what, of in out.wrong.items()},
            "not_put": out.not_put,
            "latest_ms": round(out.late_ms, 1),
        },
        "upstream": counts,
        "meter": {
            "calls": meter["rows"],
            "with_tokens": len(known),
            "input_tokens": sum(known),
            "output_tokens": sum(output for output, _ in known.values()),
            "unknown": meter["unknown"],
            "of_these_unsettled": meter["unsettled"],
            "at_most_unknown": most_unknown,
            "answered_but_unknown": len(missing),
            "never_sent": never_sent,
        },
        "faults": {what: found for what, found in looks.items() if found},
    }


def run(minutes: float, rate: float, seed: int, folder: Path) -> dict[str, Any]:
    """Hold it under load; returns what is written down."""
    upstream = Process(
        [sys.executable, "-m", "bench.gateway.upstream", "--gap-ms", str(GAP_MS)],
        folder / "upstream.log",
        cwd=ROOT,
        says_its_port=True,
    )
    nestor = Nestor(upstream.port, folder)
    try:
        nestor.start()
        job = SoakJob(
            port=nestor.port,
            keys=[nestor.key, nestor.new_key(LIMITS)],
            model=nestor.model,
            rate=rate,
            seconds=minutes * 60,
            seed=seed,
        )
        out, samples = watched(nestor, job)
        time.sleep(2)  # who was left by a client is told so
        records = call(upstream.port, "GET", f"/records/{nestor.sees}")[1]
        counts = call(upstream.port, "GET", "/counts")[1][nestor.sees]
        found = reconciled(out, records, counts, recorded(nestor))
    finally:
        nestor.stop()
        upstream.stop()
    return {
        "command": "python -m bench.bench_gateway_soak"
        f" --minutes {minutes:g} --rate {rate:g} --seed {seed}",
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "versions": versions(LITELLM),
        "minutes": minutes,
        "rate": rate,
        "memory": memory(samples, job.seconds),
        **found,
    }


def main() -> None:
    """Run, print, and keep; fails when the counts do not agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=RESULT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(given.minutes, given.rate, given.seed, Path(folder))
    given.keep.write_text(json.dumps(found, indent=2) + "\n")
    shown = {**found, "memory": {**found["memory"], "samples": "…"}}
    print(json.dumps(shown, indent=2))
    if found["faults"]:
        raise SystemExit("the counts do not agree")


if __name__ == "__main__":
    main()
