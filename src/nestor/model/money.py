"""Money as whole numbers: 1 USD is 10^12 pico-USD, so sums are exact and quick."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

MAX_PICO_USD = 2**62 - 1
"""About 4.6 million USD. More is kept as this much: the columns have 64 bits, and two such
amounts still add up within them."""
_MAX_USD = Decimal(MAX_PICO_USD).scaleb(-12)


def pico(usd: Decimal) -> int:
    """Return an amount in pico-USD, at most ``MAX_PICO_USD`` of it, owed or had.

    What is finer is rounded up: nothing costs 0 that does not.
    """
    # Compared first: an amount such as 1E+999999 has more digits than fit anywhere.
    if abs(usd) >= _MAX_USD:
        return MAX_PICO_USD if usd > 0 else -MAX_PICO_USD
    return int(usd.scaleb(12).to_integral_value(ROUND_CEILING))


def pico_limit(usd: Decimal) -> int:
    """Return a limit in pico-USD, rounded down, at most ``MAX_PICO_USD``."""
    if usd >= _MAX_USD:
        return MAX_PICO_USD
    return int(usd.scaleb(12).to_integral_value(ROUND_FLOOR))


def usd_of(pico_usd: int) -> Decimal:
    """Return an amount in USD, without zeros at its end."""
    usd = Decimal(pico_usd).scaleb(-12).normalize()
    # 1E+2 is right, but no way to write an amount.
    return usd if usd.as_tuple().exponent <= 0 else usd.quantize(Decimal(1))  # type: ignore[operator]
