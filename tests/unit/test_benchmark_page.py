"""The page of benchmarks says what the results say."""

import re

import pytest
from bench.gateway import page


def test_the_page_is_what_the_results_say() -> None:
    written = page.PAGE.read_text()
    assert page.filled(written) == written, "run: python -m bench.gateway.page"


def test_every_table_of_the_page_is_known_and_shown_once() -> None:
    names = re.findall(r"<!-- measured: ([a-z0-9-]+) -->", page.PAGE.read_text())
    assert sorted(names) == sorted(page.PARTS)


def test_a_number_written_by_hand_is_overwritten() -> None:
    written = page.PAGE.read_text()
    changed = written.replace("<!-- end -->", "| 1 | 2 |\n<!-- end -->")
    assert changed != written
    assert page.filled(changed) == page.filled(written)


@pytest.mark.parametrize(("median", "word"), [(9.9, "**missed**"), (10.0, "reached")])
def test_a_missed_target_is_called_missed(median: float, word: str) -> None:
    seen = {"median": median, "low": 1.0, "high": 99.0}
    ratios = {"theirs_by_ours": seen, "ours_by_theirs": seen}
    loads = dict.fromkeys(page.LOADS, ratios)
    told = page.gateway_targets(
        {"ratios": {"nestor": {"bare": loads, "litellm": loads}}}
    )
    for line in told.splitlines()[2:]:
        assert line.split(" | ")[2] == word
        assert line.endswith("**missed** |"), "CPU of more than 1.5 times the bare one"
