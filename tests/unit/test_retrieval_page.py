"""The page of retrieval benchmarks says what the results say."""

import re
from typing import Any

import pytest
from bench import bench_ingest
from bench.knowledge import page


def test_the_page_is_what_the_results_say() -> None:
    written = page.PAGE.read_text()
    assert page.filled(written) == written, "run: python -m bench.knowledge.page"


def test_every_table_of_the_page_is_known_and_shown_once() -> None:
    names = re.findall(r"<!-- measured: ([a-z0-9-]+) -->", page.PAGE.read_text())
    assert sorted(names) == sorted(page.PARTS)


def test_a_number_written_by_hand_is_overwritten() -> None:
    written = page.PAGE.read_text()
    changed = written.replace("<!-- end -->", "| 1 | 2 |\n<!-- end -->")
    assert changed != written
    assert page.filled(changed) == page.filled(written)


def collections(bm25: float, dense: float, fused: float) -> dict[str, Any]:
    legs = {"bm25": bm25, "dense": dense, "fused": fused}
    seen = {
        "legs": {name: {"ndcg@10": n, "recall@100": n} for name, n in legs.items()},
        "documents": 5,
        "queries": 2,
        "embedder": "m@1:3",
    }
    return {**made_on(), "collections": {"cranfield": seen, "other": seen}}


def made_on() -> dict[str, Any]:
    machine = {"cores": 2, "cpu": "c", "memory_gib": 1, "kernel": "k", "python": "3"}
    return {
        "command": "x",
        "at": "2026-01-01",
        "machine": {**machine, "load": [1.0]},
        "versions": {"commit": "abc"},
    }


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ((0.39, 0.30, 0.46), ["reached", "reached", "reached", "reached"]),
        ((0.389, 0.30, 0.459), ["**missed**", "**missed**", "reached", "reached"]),
        ((0.47, 0.30, 0.47), ["reached", "reached", "**missed**", "**missed**"]),
    ],
)
def test_a_missed_quality_is_called_missed(
    seen: tuple[float, float, float], words: list[str]
) -> None:
    told = page.quality(collections(*seen))
    rows = [line for line in told.splitlines() if line.endswith(("reached |", "** |"))]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == words


@pytest.mark.parametrize(
    ("times", "recall", "us", "words"),
    [
        (1.3, 0.99, 99.9, ["reached"] * 4),
        (1.31, 0.989, 100.0, ["**missed**"] * 4),
    ],
)
def test_a_slow_or_forgetful_index_is_called_so(
    times: float, recall: float, us: float, words: list[str]
) -> None:
    ratio = {"median": times, "low": 1.0, "high": 9.0}
    both = {"times_raw": ratio}
    systems = {"nestor": {**both, "recall@10": recall}, "nestor-both": both}
    told = page.latency_targets(
        {
            **made_on(),
            "searches": {"none": systems},
            "cached_context": {"calls": 5, "p50_us": us},
        }
    )
    rows = told.splitlines()[2:6]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == words


@pytest.mark.parametrize(
    ("times", "share", "word"), [(50.0, 0.9, "reached"), (49.9, 0.89, "**missed**")]
)
def test_a_slow_ingest_is_called_so(times: float, share: float, word: str) -> None:
    ours = {"first_by_again": times, "first": {"embedder_share_of_time": share}}
    told = page.ingest_targets(
        {**made_on(), "systems": {"nestor": ours}, "embedder": "m", "revision": "1"}
    )
    for row in told.splitlines()[2:4]:
        assert row.endswith(f"{word} |")


def test_who_is_not_measured_anew_stays_and_earlier_runs_are_told() -> None:
    def run(times: float, at: str) -> dict[str, Any]:
        return {
            "first": {"embedder_share_of_time": times / 100},
            "first_by_again": times,
            "first_by_again_cpu": times,
            "measured": {"at": at, "commit": "c", "load": [1.5]},
        }

    def result(**systems: dict[str, Any]) -> dict[str, Any]:
        more = {"files": 5, "embedder": "m", "revision": "1"}
        return {**made_on(), **more, "systems": systems}

    first = result(nestor=run(14.0, "monday"), llamaindex=run(4.0, "monday"))
    second = bench_ingest.merged(result(nestor=run(48.0, "tuesday")), first)
    third = bench_ingest.merged(result(nestor=run(60.0, "friday")), second)
    assert third["systems"]["llamaindex"] == first["systems"]["llamaindex"]
    rows = page.ingest_targets(third).splitlines()[2:]
    assert rows[0].split(" | ")[1] == "60"
    assert rows[2].startswith(
        "| the same two of the run of tuesday (load 1.5) | 48, 48 %"
    )
    assert rows[3].startswith(
        "| the same two of the run of monday (load 1.5) | 14, 14 %"
    )
    assert rows[4].startswith(
        "| the same two of LlamaIndex, the run of monday (load 1.5)"
    )
    assert bench_ingest.merged({**first, "files": 6}, first) == {**first, "files": 6}
