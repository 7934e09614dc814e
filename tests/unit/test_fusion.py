"""Fusion of words and vectors: what holds for any scores."""

import math
from operator import mul

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nestor.aidb import fusion
from nestor.aidb.fusion import WINDOW, feedback, fuse, smooth
from nestor.model.knowledge import Hit, Legs, Vectors

UNHURRIED = settings(deadline=None)
"""A busy machine is no counterexample."""
KEYS = [f"c{number:03d}" for number in range(30)]
bm25_scores = st.floats(0.1, 40)
cosines = st.floats(-1, 1)
both = st.dictionaries(
    st.sampled_from(KEYS), st.tuples(bm25_scores, cosines), min_size=1
)
queries = st.sampled_from(["walrus sleeps", "parse_config(", "the HTTP --retry", ""])
numbers = st.floats(-1, 1).map(lambda x: round(x, 3))
made = st.builds(
    Vectors,
    dense=st.lists(numbers, min_size=4, max_size=4).filter(any) | st.none(),
    words=st.dictionaries(st.integers(0, 9), st.floats(0.1, 2.2), max_size=6),
)


def likeness(one: Vectors, other: Vectors) -> float:
    """The mean of the cosines of words and vectors; by words alone where one has no vector."""
    same = math.fsum(w * other.words.get(n, 0.0) for n, w in one.words.items())
    if same:
        same /= math.hypot(*one.words.values()) * math.hypot(*other.words.values())
    if one.dense is None or other.dense is None:
        return same
    return (same + math.fsum(map(mul, one.dense, other.dense))) / 2


def hits(scores: dict[str, float]) -> list[Hit]:
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Hit(chunk_id=key, score=score) for key, score in ranked]


def legs(scores: dict[str, tuple[float, float]], split: int = 0) -> Legs:
    """Every chunk with both scores; who found it differs by ``split``."""
    words = {k: v[0] for k, v in scores.items()}
    near = {k: v[1] for k, v in scores.items()}
    of_words = {k for n, k in enumerate(sorted(scores)) if (n + split) % 3 != 0}
    of_near = {k for n, k in enumerate(sorted(scores)) if (n + split) % 3 != 1}
    return Legs(
        bm25=hits({k: words[k] for k in of_words}),
        dense=hits({k: near[k] for k in of_near}),
        bm25_of_dense={k: words[k] for k in of_near - of_words},
        dense_of_bm25={k: near[k] for k in of_words - of_near},
        terms=3,
        points=1000,
    )


def scores_of(ranked: list[Hit]) -> dict[str, float]:
    assert ranked == hits({hit.chunk_id: hit.score for hit in ranked})
    return {hit.chunk_id: hit.score for hit in ranked}


@UNHURRIED
@given(both, queries, st.sets(st.sampled_from(KEYS)))
def test_a_filter_changes_no_score_of_what_it_lets_through(
    scores: dict[str, tuple[float, float]], query: str, kept: set[str]
) -> None:
    through = {key: value for key, value in scores.items() if key in kept}
    every = scores_of(fuse(legs(scores), query))
    fewer = scores_of(fuse(legs(through), query))
    assert fewer == {key: every[key] for key in through}


@UNHURRIED
@given(both, queries, st.integers(0, 2))
def test_who_found_a_chunk_changes_nothing(
    scores: dict[str, tuple[float, float]], query: str, split: int
) -> None:
    assert fuse(legs(scores, split), query) == fuse(legs(scores), query)


@UNHURRIED
@given(both, queries)
def test_what_is_better_by_both_is_never_behind(
    scores: dict[str, tuple[float, float]], query: str
) -> None:
    found = scores_of(fuse(legs(scores), query))
    assert found.keys() == scores.keys()
    for one, (words, near) in scores.items():
        for other, (words_there, near_there) in scores.items():
            if words >= words_there and near >= near_there:
                assert found[one] >= found[other]


@UNHURRIED
@given(st.dictionaries(st.sampled_from(KEYS), bm25_scores), queries)
def test_one_leg_alone_keeps_its_order(scores: dict[str, float], query: str) -> None:
    ranked = hits(scores)
    ids = [hit.chunk_id for hit in ranked]
    for found in (
        Legs(bm25=ranked, terms=2, points=9),
        Legs(bm25=ranked, dense=[], terms=2, points=9),
        Legs(dense=ranked),
        Legs(bm25=[], dense=ranked, points=9),
    ):
        # Two that are all but equal may become equal: then the id decides.
        fused = fuse(found, query)
        assert [scores[h.chunk_id] for h in fused] == pytest.approx(
            [scores[key] for key in ids]
        )


def test_nothing_found_is_nothing() -> None:
    assert fuse(Legs(), "walrus") == []
    assert fuse(Legs(bm25=[], dense=[]), "walrus") == []
    assert smooth([], {}) == []


def test_words_and_vectors_weigh_alike_whatever_the_size_of_query_and_index() -> None:
    for terms, points in ((1, 100), (16, 100), (1, 1_000_000)):
        best = 2.2 * math.log(1 + (points + 0.5) / 0.5) * math.sqrt(terms)
        found = Legs(
            bm25=hits({"word": best}),
            dense=hits({"near": 1.0}),
            bm25_of_dense={"near": 0.0},
            dense_of_bm25={"word": 0.0},
            terms=terms,
            points=points,
        )
        assert scores_of(fuse(found, "walrus")) == pytest.approx(
            {"word": 1.0, "near": 1.0}
        )


@pytest.mark.parametrize(
    "name",
    ["max_retries", "--verbose", "readFile", "HTTP", "open(", "os.path(", "std::map"],
)
def test_words_count_double_where_all_of_the_query_is_a_name(name: str) -> None:
    found = Legs(bm25=hits({"a": 5.0}), terms=1, points=100)
    [plain] = fuse(found, "walrus")
    [named] = fuse(found, name)
    [half] = fuse(found, f"{name} walrus")
    assert named.score == pytest.approx(2 * plain.score)
    assert half.score == pytest.approx(1.5 * plain.score)


def test_a_chunk_that_waits_for_its_vector_is_as_near_as_the_others() -> None:
    found = Legs(
        bm25=hits({"waits": 9.0, "near": 9.0, "far": 9.0}),
        dense=hits({"near": 0.8}),
        dense_of_bm25={"far": 0.2},
        terms=1,
        points=10,
    )
    ranked = fuse(found, "walrus")
    assert [hit.chunk_id for hit in ranked] == ["near", "waits", "far"]


@UNHURRIED
@given(st.lists(made, max_size=5), st.lists(numbers, min_size=4, max_size=4))
def test_feedback_is_of_unit_length_and_nearer_to_the_best(
    best: list[Vectors], query: list[float]
) -> None:
    assume(math.hypot(*query) > 0.1)
    moved = feedback(query, best)
    dense = [one.dense for one in best if one.dense is not None]
    if not dense:
        assert moved is None
        return
    assert moved is not None
    assert math.hypot(*moved) == pytest.approx(1)
    middle = [sum(values) for values in zip(*dense, strict=True)]
    length = math.hypot(*query)

    def toward(vector: list[float]) -> float:
        return math.fsum(a * b for a, b in zip(vector, middle, strict=True))

    assert toward(moved) >= toward([value / length for value in query]) - 1e-9


def test_feedback_moves_only_a_little() -> None:
    moved = feedback([1.0, 0.0], [Vectors(dense=[0.0, 1.0]), Vectors()])
    length = math.hypot(1, 0.3)
    assert moved == pytest.approx([1 / length, 0.3 / length])


@UNHURRIED
@given(
    st.dictionaries(st.sampled_from(KEYS), st.floats(-1, 3)),
    st.dictionaries(st.sampled_from(KEYS), made),
)
def test_smoothing_loses_nothing_and_stays_between_worst_and_best(
    scores: dict[str, float], vectors: dict[str, Vectors]
) -> None:
    ranked = hits(scores)
    smoothed = scores_of(smooth(ranked, vectors))
    assert smoothed.keys() == scores.keys()
    for key, score in smoothed.items():
        assert min(scores.values()) - 1e-9 <= score <= max(scores.values()) + 1e-9
        if key not in vectors:
            assert score == scores[key]


def test_a_hit_rises_with_those_that_say_the_same() -> None:
    ranked = hits({"a": 1.0, "b": 0.99, "c": 0.5, "d": 0.49})
    vectors = {
        "a": Vectors(dense=[1.0, 0.0], words={1: 1.0}),
        "b": Vectors(dense=[1.0, 0.0], words={1: 2.0}),
        "c": Vectors(dense=[0.0, 1.0], words={2: 1.0}),
        "d": Vectors(dense=[1.0, 0.0], words={1: 1.0}),
    }
    smoothed = smooth(ranked, vectors)
    assert [hit.chunk_id for hit in smoothed] == ["a", "b", "d", "c"]
    found = scores_of(smoothed)
    assert found["d"] == pytest.approx(0.8 * 0.49 + 0.2 * (1.0 + 0.99) / 2)
    assert found["c"] == 0.5  # nobody is like it


def test_what_follows_the_window_stays_behind_it_in_its_order() -> None:
    scores = {f"k{n:03d}": 1.0 - n / 100 for n in range(WINDOW + 20)}
    ranked = hits(scores)
    vectors = {key: Vectors(words={n % 7: 1.0}) for n, key in enumerate(scores)}
    smoothed = smooth(ranked, vectors)
    assert smoothed[WINDOW:] == ranked[WINDOW:]
    assert {h.chunk_id for h in smoothed[:WINDOW]} == set(list(scores)[:WINDOW])


@UNHURRIED
@given(st.dictionaries(st.sampled_from(KEYS), st.tuples(st.floats(0, 3), made)))
def test_likeness_with_numpy_is_what_it_is_pair_by_pair(
    found: dict[str, tuple[float, Vectors]],
) -> None:
    ranked = hits({key: score for key, (score, _) in found.items()})
    vectors = {key: held for key, (_, held) in found.items()}
    rows = [vectors[hit.chunk_id] for hit in ranked]
    alike = fusion._alike(rows)
    for at, one in enumerate(rows):
        for there, other in enumerate(rows):
            if at != there:
                wanted = likeness(one, other)
                assert alike[at][there] == pytest.approx(wanted, abs=1e-5)
