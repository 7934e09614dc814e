"""Which side answers. Pure: no clock, no I/O."""

from collections.abc import Collection

from nestor.errors import InvalidInput
from nestor.model.routing import Decision, Mode, Side


def decide(
    *,
    mode: Mode,
    configured: Collection[Side],
    default: Side,
    iteration: int | None,
) -> Decision:
    """Choose the side that is asked first. ``configured`` holds at least one.

    Confidence is always None for now: nothing is known yet about how good the local
    model's answers are, and a number would be invented. Raises ``InvalidInput``.
    """
    if mode is not Mode.AUTO:
        side = Side(mode.value)
        if side not in configured:
            raise InvalidInput.at("mode", f"no {side} model is configured")
        return Decision(side=side, confidence=None, reason=f"asked for {side}")
    if len(configured) == 1:
        (side,) = configured
        reason = f"only a {side} model is configured"
        return Decision(side=side, confidence=None, reason=reason)
    if iteration is not None and iteration > 1:
        reason = f"escalated: iteration {iteration} after a failed verification"
        return Decision(side=Side.REMOTE, confidence=None, reason=reason)
    reason = f"no evidence yet: the configured default is {default}"
    return Decision(side=default, confidence=None, reason=reason)
