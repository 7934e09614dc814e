"""The limits of a key: what they may be, and their text in a column."""

from decimal import Decimal

import msgspec

from nestor.backends.sql.rows import encode
from nestor.errors import FieldError, InvalidInput
from nestor.model.access import KeyLimits
from nestor.model.money import pico, usd_of

MAX_USD = Decimal(1_000_000)
MAX_COUNT = 10**15
"""Of tokens or requests: more is no limit, and does not fit where they are added up."""
_FINEST_USD = "0.000000000001"


def checked(limits: KeyLimits | None, *, of_a_task: bool) -> KeyLimits | None:
    """Return limits as they are kept: None when there is none. Raises ``InvalidInput``."""
    if limits is None or limits == KeyLimits():
        return None
    if of_a_task:
        raise InvalidInput.at(
            "limits", "a task's key has none of its own: its task has a budget"
        )
    counts = {name: getattr(limits, name) for name in ("tokens", "rpm", "tpm")}
    errors = [
        FieldError(f"limits.{name}", f"must be 1 to {MAX_COUNT}")
        for name, count in counts.items()
        if count is not None and not 0 < count <= MAX_COUNT
    ]
    if limits.usd is not None and (why := _wrong_usd(limits.usd)):
        errors.insert(0, FieldError("limits.usd", why))
    if errors:
        message = "; ".join(f"{error.field}: {error.message}" for error in errors)
        raise InvalidInput(message, *errors)
    if limits.usd is None:
        return limits
    return msgspec.structs.replace(limits, usd=usd_of(pico(limits.usd)))


def limits_text(limits: KeyLimits | None) -> str | None:
    """Return what stands in the column."""
    return None if limits is None else encode(limits)


def limits_of(text: str | None) -> KeyLimits | None:
    """Return what a column holds."""
    return None if text is None else msgspec.json.decode(text, type=KeyLimits)


def _wrong_usd(usd: Decimal) -> str | None:
    # Asked first: to compare a Decimal that is no number raises.
    if not usd.is_finite() or not 0 < usd <= MAX_USD:
        return f"must be above 0, and {MAX_USD} at most"
    if usd != usd_of(pico(usd)):
        return f"must be a multiple of {_FINEST_USD}"
    return None
