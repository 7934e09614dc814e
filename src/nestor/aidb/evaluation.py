"""How good a ranking is, by what people judged. Pure functions; the field's definitions.

As ``trec_eval`` and BEIR compute them: the gain of a document is its judgment, discounted
by the logarithm (base 2) of its place plus one; whatever nobody judged, or judged 0 or
less, gains nothing. Only queries with at least one relevant document are counted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

NDCG_AT, RECALL_AT = 10, 100


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the judged queries, from 0 to 1."""

    ndcg_at_10: float = msgspec.field(name="ndcg@10")
    recall_at_100: float = msgspec.field(name="recall@100")


def relevant(judged: Mapping[str, int]) -> dict[str, int]:
    """Return the documents that gain something."""
    return {key: gain for key, gain in judged.items() if gain > 0}


def ndcg(ranking: Sequence[str], judged: Mapping[str, int], at: int = NDCG_AT) -> float:
    """Return what the first ``at`` gain, as a share of the best order's gain.

    ``ranking``: documents, best first, none twice. Raises ``ValueError`` when nothing is
    relevant: there is no best order then.
    """
    gains = relevant(judged)
    best = _discounted(sorted(gains.values(), reverse=True)[:at])
    if best == 0:
        raise ValueError("no document is relevant")
    return _discounted([gains.get(key, 0) for key in ranking[:at]]) / best


def recall(
    ranking: Sequence[str], judged: Mapping[str, int], at: int = RECALL_AT
) -> float:
    """Return the share of the relevant documents that stand among the first ``at``.

    ``ranking`` and ``ValueError`` as in ``ndcg``.
    """
    wanted = relevant(judged).keys()
    if not wanted:
        raise ValueError("no document is relevant")
    return len(wanted & set(ranking[:at])) / len(wanted)


def quality(
    rankings: Mapping[str, Sequence[str]], judged: Mapping[str, Mapping[str, int]]
) -> Quality:
    """Return the means over the queries in ``judged`` that have a relevant document.

    A query without a ranking found nothing, and counts. Raises ``ValueError`` when no
    query is left.
    """
    asked = [query for query in judged if relevant(judged[query])]
    if not asked:
        raise ValueError("no query has a relevant document")
    gained = [ndcg(rankings.get(query, ()), judged[query]) for query in asked]
    found = [recall(rankings.get(query, ()), judged[query]) for query in asked]
    return Quality(
        ndcg_at_10=math.fsum(gained) / len(asked),
        recall_at_100=math.fsum(found) / len(asked),
    )


def documents_of(
    hits: Iterable[str], owner: Mapping[str, str], *, without: str | None = None
) -> list[str]:
    """Turn pieces, best first, into their documents: each where its best piece stands.

    ``owner``: the document of a piece; pieces it does not know are passed over, as is the
    document ``without``.
    """
    found = dict.fromkeys(owner[hit] for hit in hits if hit in owner)
    found.pop(without or "", None)
    return list(found)


def _discounted(gains: Iterable[int]) -> float:
    return math.fsum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
