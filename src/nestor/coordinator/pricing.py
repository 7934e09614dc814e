"""What a model's counts are worth: which are believed, and what they cost."""

from decimal import Decimal

import msgspec

from nestor.model.routing import Deployment, Kind
from nestor.model.task import Usage

MAX_TOKENS = 10**8
"""A count beyond it is no count: the longest contexts there are take 10 million tokens.
Nobody may ask for more, either."""
MAX_COST_USD = Decimal(10_000)
"""A call that cost more did not: what it cost is not known. So much costs the longest
context there is at 1000 USD per million tokens."""
_PER_MILLION = Decimal(1_000_000)


def cost_usd(deployment: Deployment, usage: Usage, *, replayed: bool) -> Decimal | None:
    """Price a call in USD; None when a price or a count is not known, or not believed.

    Input that the provider had cached, or puts in its cache, is priced apart from the
    rest; without a price of its own as any input. Reasoning is priced as the output it is
    part of. A replayed answer was not billed: 0.
    """
    if replayed:
        return Decimal(0)
    read, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    plain = usage.input_tokens
    if plain is not None:
        plain = max(0, plain - read - written)
    parts: list[tuple[Decimal | None, int | None]] = [(deployment.price_input, plain)]
    if deployment.kind is Kind.CHAT:  # embeddings have no output to pay for
        parts.append((deployment.price_output, usage.output_tokens))
    for own, count in (
        (deployment.price_cached, read),
        (deployment.price_cache_write, written),
    ):
        if count:
            parts.append((deployment.price_input if own is None else own, count))
    total = Decimal(0)
    for price, tokens in parts:
        if price == 0:
            continue
        if price is None or tokens is None:
            return None
        total += price * tokens / _PER_MILLION
    return total if total <= MAX_COST_USD else None


def believable(usage: Usage) -> Usage:
    """Drop counts that no model can have; the same object where all can be.

    One upstream that counts like that must not stop the meter: for whoever prices or
    charges what an upstream said.
    """
    limit = MAX_TOKENS
    if (
        0 <= (usage.input_tokens or 0) <= limit
        and 0 <= (usage.output_tokens or 0) <= limit
        and 0 <= (usage.cached_tokens or 0) <= limit
        and 0 <= (usage.cache_write_tokens or 0) <= limit
        and 0 <= (usage.reasoning_tokens or 0) <= limit
    ):
        return usage
    return Usage(
        **{
            name: count if count is not None and 0 <= count <= limit else None
            for name, count in msgspec.structs.asdict(usage).items()
        }
    )
