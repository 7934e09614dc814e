"""Fill the tables of docs/explanation/benchmarks.md from bench/results.

python -m bench.gateway.page
"""

from collections.abc import Mapping
from typing import Any

from bench.ralph.page import loop
from bench.tables import ROOT, Parts, fill, read, said, table, verdict

PAGE = ROOT / "docs/explanation/benchmarks.md"
LEAST_BY_LITELLM, MOST_BY_BARE = 10.0, 1.5
READY_S, RESIDENT_MIB, VERSION_S = 3.0, 200.0, 0.25
GROWTH = 0.05
LOADS = {
    "json-2k": "JSON, 2 kB",
    "json-12k": "JSON, 12 kB",
    "sse-2k": "stream, 2 kB",
}
ALONE = {"json-2k-alone": "JSON, 2 kB", "sse-2k-alone": "stream, 2 kB"}


def machine(found: Mapping[str, Any]) -> str:
    """Say where and when a file of results was made."""
    of = found["machine"]
    return (
        f"`{found['command']}` · {found['at']} · {of['cores']} cores of {of['cpu']},"
        f" {of['memory_gib']} GiB, Linux {of['kernel']}, Python {of['python']};"
        " shared with other work, so times of the wall clock are of a busy machine.\n"
    )


def gateway_about(found: Mapping[str, Any]) -> str:
    """Say how it was measured."""
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    lines = [machine(found), f"\n{versions}; {found['rounds']} rounds.\n\n"]
    lines += [
        f"- **{system['what']}**: {'; '.join(system['settings'])}.\n"
        for system in found["systems"].values()
        if system["settings"]
    ]
    return "".join(lines)


def gateway_targets(found: Mapping[str, Any]) -> str:
    """Return the two ratios that are asked for."""
    ours = found["ratios"]["nestor"]
    rows = []
    for load, what in LOADS.items():
        by_bare = ours["bare"][load]["ours_by_theirs"]
        litellm = ours["litellm"][load]["theirs_by_ours"]
        rows.append(
            [
                what,
                said(litellm, 1),
                verdict(litellm["median"] >= LEAST_BY_LITELLM),
                said(by_bare, 2),
                verdict(by_bare["median"] <= MOST_BY_BARE),
            ]
        )
    head = ["", "requests per CPU-second, times LiteLLM's", "≥ 10"]
    return table([*head, "CPU, times the bare pass-through's", "≤ 1.5"], rows)


def gateway_cpu(found: Mapping[str, Any]) -> str:
    """Return CPU per request and requests per CPU-second."""
    rows = []
    for name, system in found["systems"].items():
        if name == "direct":
            continue
        row = [system["what"]]
        for load in LOADS:
            cpu = system["loads"][load]["cpu_us"]
            row += [said(cpu), f"{1e6 / max(cpu['median'], 1):,.0f}"]
        rows.append(row)
    head = ["CPU per request, µs"]
    for what in LOADS.values():
        head += [what, "per CPU-second"]
    return table(head, rows)


def gateway_wall(found: Mapping[str, Any]) -> str:
    """Return requests a second with 16 under way, and what one alone waits longer."""
    direct = found["systems"]["direct"]["loads"]
    rows = []
    for name, system in found["systems"].items():
        loads = system["loads"]
        row = [system["what"], *(said(loads[load]["per_s"]) for load in LOADS)]
        for load in ALONE:
            measure = "first" if load.startswith("sse") else ""
            for share in ("p50", "p99"):
                key = f"{measure}_{share}_ms".lstrip("_")
                added = loads[load][key]["median"] - direct[load][key]["median"]
                row.append("" if name == "direct" else f"{added:+.2f}")
        rows.append(row)
    head = ["", *(f"{what}, requests/s" for what in LOADS.values())]
    head += ["added p50, JSON, ms", "added p99", "added p50, first event, ms"]
    return table([*head, "added p99"], rows)


def gateway_meter(found: Mapping[str, Any]) -> str:
    """Say what the meter recorded beside what the upstream counted."""
    meter = found["meter"]
    recorded, counted = meter["recorded"], meter["upstream"]
    rows = [
        ["calls", f"{counted['requests']:,}", f"{recorded['calls']:,}"],
        *(
            [name.replace("_", " "), f"{counted[name]:,}", f"{recorded[name]:,}"]
            for name in ("input_tokens", "output_tokens")
        ),
    ]
    return table(["in that run", "the upstream counted", "Nestor recorded"], rows)


def start(found: Mapping[str, Any]) -> str:
    """Return what starting costs, beside LiteLLM of the other file."""
    ready, memory, cpu = (
        found[name] for name in ("ready_s", "idle_resident_mib", "version_cpu_s")
    )
    rows = [
        ["time to ready, s", said(ready, 2), "< 3", verdict(ready["high"] < READY_S)],
        [
            "resident memory, idle, MiB",
            said(memory),
            "< 200",
            verdict(memory["high"] < RESIDENT_MIB),
        ],
        [
            "`nestor --version`, CPU, ms",
            said(cpu, 0, 1000),
            "< 250",
            verdict(cpu["high"] < VERSION_S),
        ],
    ]
    shown = table(["Nestor", "seen", "target", ""], rows)
    if (beside := read("gateway")) is None:
        return shown
    pair = [
        [
            system["what"],
            f"{system['ready_s']:.1f}",
            f"{system['resident_mib']['at_start']:.0f}",
            f"{system['resident_mib']['at_end']:.0f}",
            f"{100 * system['idle_cpu_share']:.1f} %",
        ]
        for name, system in beside["systems"].items()
        if name in {"nestor", "litellm", "bare"}
    ]
    head = ["once each, before the gateways were measured", "ready, s"]
    head += ["resident at start, MiB", "after all requests", "CPU while idle"]
    return f"{shown}\n{table(head, pair)}"


def soak(found: Mapping[str, Any]) -> str:
    """Return what came of holding it under load."""
    memory, clients = found["memory"], found["clients"]
    upstream, meter = found["upstream"], found["meter"]
    told = sum(clients["explicit_errors"].values())
    growth = 100 * memory["growth_share"]
    was_now = f"{memory['warm_mib']:.1f} → {memory['end_mib']:.1f}"
    rows = [
        [
            "resident memory, warm → end, MiB",
            f"{was_now} ({growth:+.1f} %, {verdict(memory['growth_share'] < GROWTH)})",
        ],
        [
            "open files, start → end",
            f"{memory['files_at_start']} → {memory['files_at_end']}",
        ],
        ["answers that were right", f"{clients['right']:,}"],
        ["clients that left in the middle", f"{clients['left']:,}"],
        ["faults of the upstream", f"{upstream['faults']:,}"],
        ["explicit errors that clients were told", f"{told:,}"],
        ["answers that were wrong", f"{sum(clients['wrong'].values()):,}"],
        [
            "calls recorded with tokens, each equal to the upstream's",
            f"{meter['with_tokens']:,}",
        ],
        [
            "calls recorded as unknown (at most: leavers and faults)",
            f"{meter['unknown']:,} ({meter['at_most_unknown']:,})",
        ],
        [
            "the three counts, request by request",
            "they agree" if not found["faults"] else f"**differ**: {found['faults']}",
        ],
    ]
    minutes, rate = found["minutes"], found["rate"]
    head = [f"{minutes:g} minutes at {rate:g} requests/s", ""]
    return f"{table(head, rows)}\n{machine(found)}"


PARTS: Parts = {
    "gateway-about": ("gateway", gateway_about),
    "gateway-targets": ("gateway", gateway_targets),
    "gateway-cpu": ("gateway", gateway_cpu),
    "gateway-wall": ("gateway", gateway_wall),
    "gateway-meter": ("gateway", gateway_meter),
    "start": ("start", start),
    "gateway-soak": ("gateway-soak", soak),
    "ralph": ("ralph", lambda found: loop(found, machine(found))),
}
"""Part of the page: which results it shows, and how."""


def filled(page: str) -> str:
    """Return the page with its tables as the results are now."""
    return fill(page, PARTS)


def main() -> None:
    """Write the page."""
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
