"""Fill the tables of docs/explanation/benchmarks-retrieval.md from bench/results.

python -m bench.knowledge.page
"""

from collections.abc import Mapping
from typing import Any

from bench.tables import ROOT, Parts, fill, said, table, verdict

PAGE = ROOT / "docs/explanation/benchmarks-retrieval.md"
NDCG, BM25_NDCG = 0.46, 0.39
"""Asked for on Cranfield."""
GIVEN = "cranfield"
MOST_BY_RAW, LEAST_RECALL, MOST_CACHED_US = 1.3, 0.99, 100.0
LEAST_FASTER, LEAST_SHARE = 50.0, 0.9
NAMES = {
    "nestor": "AIDB's index",
    "nestor-both": "AIDB's index, by vector and words, 100 hits of each",
    "nestor-ranked": "the same, ranked",
    "raw": "Qdrant Edge, called directly",
    "raw-both": "Qdrant Edge, called directly, by vector and words",
    "raw-default": "Qdrant Edge, its own parameters",
    "chroma": "Chroma",
    "lancedb": "LanceDB",
    "llamaindex": "LlamaIndex",
}


def about(found: Mapping[str, Any]) -> str:
    """Say where and when a file of results was made."""
    of = found["machine"]
    versions = ", ".join(f"{name} {said}" for name, said in found["versions"].items())
    return (
        f"`{found['command']}` · {found['at']} · {of['cores']} cores of {of['cpu']},"
        f" {of['memory_gib']} GiB, Linux {of['kernel']}, Python {of['python']}; load"
        f" {of['load'][0]:g} at the end, of other work too · {versions}.\n"
    )


def quality(found: Mapping[str, Any]) -> str:
    """Return nDCG@10 and recall@100 of each collection."""
    rows = []
    for name, one in found["collections"].items():
        legs = one["legs"]
        row = [f"{name} ({one['documents']:,} documents, {one['queries']:,} queries)"]
        for leg in ("bm25", "dense", "fused"):
            seen = legs[leg]
            row += ["", ""] if seen is None else [_four(seen, m) for m in _MEASURES]
        rows.append(row)
    head = ["nDCG@10 and recall@100", "BM25", "", "vectors", "", "both", ""]
    stamps = {one["embedder"] for one in found["collections"].values()} - {None}
    vectors = f"\nVectors by {', '.join(sorted(stamps)) or 'nobody'}.\n"
    return f"{table(head, rows)}{vectors}\n{_quality_targets(found)}\n{about(found)}"


_MEASURES = ("ndcg@10", "recall@100")


def _four(seen: Mapping[str, float], measure: str) -> str:
    return f"{seen[measure]:.3f}"


def _quality_targets(found: Mapping[str, Any]) -> str:
    rows = []
    for name, one in found["collections"].items():
        legs = one["legs"]
        words, both = legs["bm25"]["ndcg@10"], legs["fused"]
        if name == GIVEN:
            rows.append([f"{name}, BM25", "≥ 0.39", verdict(words >= BM25_NDCG)])
        if both is None:
            continue
        fused, dense = both["ndcg@10"], legs["dense"]["ndcg@10"]
        if name == GIVEN:
            rows.append([f"{name}, both", "≥ 0.46", verdict(fused >= NDCG)])
        reached = verdict(fused > max(words, dense))
        rows.append([f"{name}, both", "above either", reached])
    return table(["target", "nDCG@10", ""], rows)


def latency(found: Mapping[str, Any]) -> str:
    """Return latency and recall by filter and system."""
    rows = []
    for held, systems in found["searches"].items():
        for name, seen in systems.items():
            times = seen.get("times_raw")
            other = seen.get("nestor_by_this_p50")
            recall = seen.get("recall@10")
            rows.append(
                [
                    f"{NAMES[name]}; filter: {held}",
                    said(seen["p50_ms"], 2),
                    said(seen["p95_ms"], 2),
                    "" if recall is None else f"{recall:.3f}",
                    "" if times is None else said(times, 2),
                    "" if other is None else said(other, 2),
                ]
            )
    head = [
        f"{found['chunks']:,} chunks of {found['dimension']} numbers",
        "p50, ms",
        "p95, ms",
        "recall@10",
        "times the engine's own",
        "AIDB's p50 by vector, times this one's",
    ]
    return table(head, rows)


def latency_targets(found: Mapping[str, Any]) -> str:
    """Say what was asked for and what was seen."""
    rows = []
    for held, systems in found["searches"].items():
        for name, what in (("nestor", "vector"), ("nestor-both", "vector and words")):
            times = systems[name]["times_raw"]
            rows.append(
                [
                    f"p50 by {what}, times the engine's own; filter: {held}",
                    said(times, 2),
                    "≤ 1.3",
                    verdict(times["median"] <= MOST_BY_RAW),
                ]
            )
        recall = systems["nestor"]["recall@10"]
        rows.append(
            [
                f"recall@10; filter: {held}",
                f"{recall:.3f}",
                "≥ 0.99",
                verdict(recall >= LEAST_RECALL),
            ]
        )
    cached = found["cached_context"]
    rows.append(
        [
            f"cached context, p50 of {cached['calls']:,} calls in process, µs",
            f"{cached['p50_us']:.0f}",
            "< 100",
            verdict(cached["p50_us"] < MOST_CACHED_US),
        ]
    )
    return f"{table(['', 'seen', 'target', ''], rows)}\n{about(found)}"


def ingest(found: Mapping[str, Any]) -> str:
    """Return what each ingest took."""
    rows = []
    for name, one in found["systems"].items():
        for step, what in (
            ("first", f"{found['files']:,} files"),
            ("unchanged", "again, nothing changed"),
            ("again", f"again, {found['changed']:,} files changed"),
        ):
            seen = one[step]
            rows.append(
                [
                    f"{NAMES.get(name, name)}: {what}",
                    f"{seen['wall_s']:.1f}",
                    f"{seen['cpu_s']:.1f}",
                    f"{seen['texts_embedded']:,}",
                    f"{100 * seen['embedder_share_of_time']:.0f} %",
                    f"{100 * seen['embedder_share_of_cpu']:.0f} %",
                ]
            )
    head = ["", "s", "CPU-s", "texts embedded", "embedder at work, of the time"]
    return table([*head, "embedder, of the CPU"], rows)


def ingest_targets(found: Mapping[str, Any]) -> str:
    """Say what was asked for and what was seen."""
    ours = found["systems"]["nestor"]
    times, share = ours["first_by_again"], ours["first"]["embedder_share_of_time"]
    rows = [
        [
            "first ingest, times the one after 1 % changed",
            f"{times:.0f}",
            "≥ 50",
            verdict(times >= LEAST_FASTER),
        ],
        [
            "embedder at work during the first ingest",
            f"{100 * share:.0f} %",
            "≥ 90 %",
            verdict(share >= LEAST_SHARE),
        ],
    ]
    for run in ours.get("earlier", ()):
        share = 100 * run["embedder_share_of_time"]
        seen = f"{run['first_by_again']:.0f}, {share:.0f} %"
        rows.append([f"the same two of {_of(run)}", seen, "", ""])
    if (peer := found["systems"].get("llamaindex")) is not None:
        share = 100 * peer["first"]["embedder_share_of_time"]
        both = f"{peer['first_by_again']:.0f}, {share:.0f} %"
        rows.append([f"the same two of LlamaIndex, {_of(peer)}", both, "", ""])
    made = f"Embedder: {found['embedder']}, {found['revision']}.\n"
    return f"{table(['', 'seen', 'target', ''], rows)}\n{made}\n{about(found)}"


def _of(one: Mapping[str, Any]) -> str:
    """Say when something was measured, and how busy the machine was."""
    made = one["measured"]
    busy = ", ".join(str(load) for load in made["load"])
    return f"the run of {made['at']} (load {busy})"


PARTS: Parts = {
    "retrieval-quality": ("retrieval", quality),
    "knowledge-targets": ("knowledge", latency_targets),
    "knowledge-latency": ("knowledge", latency),
    "ingest-targets": ("ingest", ingest_targets),
    "ingest": ("ingest", ingest),
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
