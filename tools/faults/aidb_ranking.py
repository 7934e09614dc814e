"""Faults in how words and vectors become one ranking, and in what the index says for it."""

from tools.faults.fault import Fault

_FUSION = "tests/unit/test_fusion.py"
_RANKING = "tests/contracts/test_ranking.py"
_CONTRACT = "tests/contracts/test_search_index.py"
_EDGE = "tests/contracts/test_search_index_edge.py"
_SERVER = "tests/contracts/test_search_index_server.py"

FAULTS = (
    Fault(
        "aidb ranking: a score depends on what else was found",
        (
            (
                "aidb/fusion.py",
                "    weight = _weight(query, legs.terms, legs.points)\n",
                "    weight = 1 / max([1e-9, *words.values()])\n",
            ),
        ),
        (_FUSION, "-k", "filter_changes_no_score"),
    ),
    Fault(
        "aidb ranking: what only the vectors found has no word of the query",
        (("aidb/fusion.py", " | legs.bm25_of_dense\n", "\n"),),
        (_FUSION, "-k", "who_found"),
    ),
    Fault(
        "aidb ranking: long queries count for more words than vectors",
        (("aidb/fusion.py", "math.sqrt(max(terms, 1))", "1"),),
        (_FUSION, "-k", "weigh_alike"),
    ),
    Fault(
        "aidb ranking: names in code are words like others",
        (("aidb/fusion.py", "return (1 + exact) /", "return 1 /"),),
        (_FUSION, "-k", "count_double"),
    ),
    Fault(
        "aidb ranking: who waits for a vector is far from everything",
        (("aidb/fusion.py", "near.get(key, usual)", "near.get(key, 0.0)"),),
        (_FUSION, "-k", "waits_for_its_vector"),
    ),
    Fault(
        "aidb ranking: the best hits replace the query",
        (("aidb/fusion.py", "_FEEDBACK = 0.3", "_FEEDBACK = 30.0"),),
        (_FUSION, "-k", "moves_only_a_little"),
    ),
    Fault(
        "aidb ranking: a hit is its own neighbour",
        (("aidb/fusion.py", "if at != own and value > 0]", "if value > 0]"),),
        (_FUSION, "-k", "say_the_same"),
    ),
    Fault(
        "aidb ranking: with numpy, lengths are forgotten",
        (("aidb/fusion.py", "(weights / lengths[which])[kept]", "weights[kept]"),),
        (_FUSION, "-k", "numpy"),
    ),
    Fault(
        "aidb ranking: nobody learns from the best hits",
        (("aidb/ranking.py", "if moved is not None:", "if moved is None:"),),
        (_RANKING, "-k", "does_not_name"),
    ),
    Fault(
        "aidb ranking: a large index is asked as often as a small one",
        (("aidb/ranking.py", " or legs.points > fusion.REFINED_POINTS", ""),),
        (_RANKING, "-k", "how_often"),
    ),
    Fault(
        "aidb ranking: pairs of words are forgotten",
        (("aidb/ranking.py", "pairs=True", "pairs=False"),),
        (_RANKING, "-k", "either_leg"),
    ),
    Fault(
        "aidb ranking: pairs count for whom did not ask",
        (("backends/qdrant/points.py", "        if pairs:\n", "        if True:\n"),),
        (_CONTRACT, "-k", "side_by_side"),
    ),
    Fault(
        "aidb ranking: a pair has no order",
        (
            (
                "backends/qdrant/points.py",
                "    both = one.to_bytes",
                "    one, other = sorted((one, other))\n    both = one.to_bytes",
            ),
        ),
        (_CONTRACT, "-k", "side_by_side"),
    ),
    Fault(
        "aidb ranking: pairs make a text longer",
        (
            (
                "backends/qdrant/points.py",
                "return sum(n for number, n in counts.items() if number <= _NEIGHBOURS)",
                "return sum(counts.values())",
            ),
        ),
        (_EDGE, "-k", "pairs_pass_over or engines_own_model"),
    ),
    Fault(
        "aidb ranking: pairs are words of a chunk",
        (
            (
                "backends/qdrant/points.py",
                "words = {number: value for number, value in weighed if number <= _NEIGHBOURS}",
                "words = dict(weighed)",
            ),
        ),
        (_CONTRACT, "-k", "knows_a_chunk"),
    ),
    Fault(
        "aidb ranking: an index without pairs is used as it is",
        (
            (
                "backends/qdrant/points.py",
                "return self.schema == SCHEMA and",
                "return self.schema <= SCHEMA and",
            ),
        ),
        (_EDGE, "-k", "made_in_another_way"),
    ),
    Fault(
        "aidb ranking: in process nobody asks for the other leg's scores",
        (
            (
                "backends/qdrant/shard.py",
                "_scores(engine, by_words, _only(near, words))",
                "{}",
            ),
        ),
        (_CONTRACT, "-k", "only_the_other_found and edge"),
    ),
    Fault(
        "aidb ranking: a server scores by the leg that found a chunk",
        (
            (
                "backends/qdrant/server_collection.py",
                'query=legs[leg]["query"],\n                using=leg,',
                'query=legs[other]["query"],\n                using=other,',
            ),
        ),
        (_CONTRACT, "-k", "only_the_other_found and memory"),
    ),
    Fault(
        "aidb ranking: vectors of any model are handed out",
        (
            (
                "backends/qdrant/server.py",
                "points.refuse_stamp(stamp, collection.made.stamp)",
                "pass",
            ),
        ),
        (_CONTRACT, "-k", "knows_a_chunk and memory"),
    ),
)
