"""What every vector is held to before anybody stores or compares it."""

import math
from collections.abc import Sequence


def unit(values: Sequence[float]) -> list[float]:
    """Return ``values`` at length 1.

    Raises ``ValueError`` for what points nowhere: no numbers, NaN, infinity, only zeros.
    """
    length = math.hypot(*values)
    if not values:
        raise ValueError("a vector without numbers")
    if not math.isfinite(length):
        raise ValueError("a vector with a number that is none (NaN or infinite)")
    if length == 0:
        raise ValueError("a vector of zeros")
    return [value / length for value in values]
