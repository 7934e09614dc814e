"""nDCG and recall: against numbers worked out by hand, and what holds for any ranking."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.aidb import evaluation

IDS = [f"d{number}" for number in range(14)]
RANKINGS = st.lists(st.sampled_from(IDS), unique=True, max_size=14)
JUDGED = st.dictionaries(
    st.sampled_from(IDS), st.integers(-1, 3), min_size=1, max_size=14
).filter(lambda judged: any(gain > 0 for gain in judged.values()))


# Worked out by hand.


@pytest.mark.parametrize(
    ("ranking", "judged", "expected"),
    [
        (["a", "b"], {"a": 1}, 1.0),
        (["b", "a"], {"a": 1}, 1 / math.log2(3)),
        (["x", "y", "z"], {"a": 1}, 0.0),
        ([], {"a": 1}, 0.0),
        # The gain is the judgment itself, not 2 to its power: 1 + 3/log2(3) over 3 + 1/log2(3).
        (["one", "three"], {"one": 1, "three": 3}, 0.7967075809905066),
        # What is missing counts in the best order.
        (["a"], {"a": 1, "b": 1}, 1 / (1 + 1 / math.log2(3))),
        # Judged as wrong gains nothing, and costs nothing but its place.
        (["wrong", "a"], {"wrong": -1, "a": 1}, 1 / math.log2(3)),
    ],
)
def test_ndcg_is_what_paper_and_pencil_give(
    ranking: list[str], judged: Mapping[str, int], expected: float
) -> None:
    assert evaluation.ndcg(ranking, judged) == pytest.approx(expected, abs=1e-15)


def test_the_tenth_place_counts_and_the_eleventh_does_not() -> None:
    others = [f"x{number}" for number in range(10)]
    tenth = evaluation.ndcg([*others[:9], "a"], {"a": 1})
    assert tenth == pytest.approx(1 / math.log2(11))
    assert evaluation.ndcg([*others, "a"], {"a": 1}) == 0


def test_the_best_order_is_cut_at_ten_as_well() -> None:
    judged = {f"d{number}": 1 for number in range(40)}
    assert evaluation.ndcg(list(judged)[:10], judged) == pytest.approx(1.0)


def test_recall_counts_the_relevant_among_the_first_hundred() -> None:
    others = [f"x{number}" for number in range(99)]
    judged = {"a": 1, "b": 2, "c": 0, "d": -1, "e": 1}
    assert evaluation.recall([*others, "a", "b"], judged) == pytest.approx(1 / 3)
    assert evaluation.recall(["e", "b", "a"], judged) == 1.0
    assert evaluation.recall(["c", "d"], judged) == 0.0


def test_a_query_that_found_nothing_counts_and_one_without_an_answer_does_not() -> None:
    judged = {"good": {"a": 1}, "lost": {"b": 1}, "hopeless": {"c": 0}}
    found = evaluation.quality({"good": ["a"], "hopeless": ["c"]}, judged)
    assert found == evaluation.Quality(ndcg_at_10=0.5, recall_at_100=0.5)


def test_nothing_relevant_has_no_quality() -> None:
    for measure in (evaluation.ndcg, evaluation.recall):
        with pytest.raises(ValueError, match="no document is relevant"):
            measure(["a"], {"a": 0})
    with pytest.raises(ValueError, match="no query has a relevant document"):
        evaluation.quality({"q": ["a"]}, {"q": {"a": 0}})


def test_a_document_stands_where_its_best_piece_does() -> None:
    owner = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}
    hits = ["b1", "a2", "gone", "a1", "b1", "c1"]
    assert evaluation.documents_of(hits, owner) == ["b", "a", "c"]
    assert evaluation.documents_of(hits, owner, without="a") == ["b", "c"]
    assert evaluation.documents_of(hits, owner, without="z") == ["b", "a", "c"]


def test_the_numbers_of_pytrec_eval_for_a_ranking_with_all_there_is() -> None:
    """Computed once with pytrec-eval-terrier 0.5.11 (ndcg_cut_10, recall_100)."""
    judged = {"d0": 3, "d3": 1, "d5": 2, "d7": 0, "d9": -1, "d12": 1, "away": 2}
    ranking = ["d9", "d3", "d7", "d0", "d1", "d2", "d4", "d6", "d8", "d12", "d5"]
    assert evaluation.ndcg(ranking, judged) == pytest.approx(0.36385635143911554)
    assert evaluation.recall(ranking, judged) == pytest.approx(0.8)


# What holds for any ranking.


@given(RANKINGS, JUDGED)
def test_both_lie_between_nothing_and_all(
    ranking: list[str], judged: dict[str, int]
) -> None:
    assert 0 <= evaluation.ndcg(ranking, judged) <= 1 + 1e-12
    assert 0 <= evaluation.recall(ranking, judged) <= 1


@given(JUDGED)
def test_the_best_order_has_all_and_no_other_has_more(judged: dict[str, int]) -> None:
    best = sorted(judged, key=lambda key: -judged[key])
    assert evaluation.ndcg(best, judged) == pytest.approx(1.0)
    assert evaluation.recall(best, judged) == 1.0


@given(RANKINGS, JUDGED, st.integers(0, 12))
def test_moving_a_better_document_up_never_costs(
    ranking: list[str], judged: dict[str, int], place: int
) -> None:
    if place + 1 >= len(ranking):
        return
    above, below = (max(judged.get(key, 0), 0) for key in ranking[place : place + 2])
    swapped = list(ranking)
    swapped[place : place + 2] = reversed(ranking[place : place + 2])
    before, after = evaluation.ndcg(ranking, judged), evaluation.ndcg(swapped, judged)
    if below > above and place < evaluation.NDCG_AT:
        assert after > before
    elif below == above:
        assert after == before


@given(RANKINGS, JUDGED, st.integers(1, 13))
def test_looking_further_finds_no_less(
    ranking: list[str], judged: dict[str, int], at: int
) -> None:
    less, more = (evaluation.recall(ranking, judged, deep) for deep in (at, at + 1))
    assert less <= more


@given(RANKINGS, JUDGED)
def test_what_nobody_judged_may_be_added_below(
    ranking: list[str], judged: dict[str, int]
) -> None:
    longer = [*ranking, "new1", "new2"]
    assert evaluation.ndcg(longer, judged) == evaluation.ndcg(ranking, judged)
    assert evaluation.recall(longer, judged) == evaluation.recall(ranking, judged)


@given(st.lists(st.sampled_from("abcdefgh"), max_size=20))
def test_no_document_stands_twice_and_the_first_places_stay_in_order(
    hits: list[str],
) -> None:
    owner = {"a": "1", "b": "1", "c": "2", "d": "3", "e": "2", "f": "4"}
    found = evaluation.documents_of(hits, owner)
    assert len(found) == len(set(found))
    first = [hits.index(hit) for hit in hits if hit in owner]
    assert found == list(dict.fromkeys(owner[hits[at]] for at in sorted(set(first))))
