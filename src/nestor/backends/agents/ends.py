"""What the end of an agent's program means: exit code first, then what it printed."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from nestor.backends.agents.command import how_it_ended, last_line
from nestor.ports.agent import AgentEnd
from nestor.ports.sandbox import SandboxResult

_LINE_CHARS = 1024 * 1024
_SUMMARY_CHARS = 500
_NOT_STARTED = {126, 127}
_REFUSED = re.compile(
    r"\b(?:status(?:[ _]?code)?|error|HTTP|answered|code)\W{1,3}(?:401|402|403)\b"
    r"|\b(?:401|402|403)\W{1,3}(?:unauthorized|payment required|forbidden|\{)"
    r"|\A(?:401|402|403)\b|\bAuthenticationError\b|\bPermissionDeniedError\b",
    re.IGNORECASE,
)
"""How programs say that the model's server will not serve them."""
_TAIL_CHARS = 64 * 1024


def was_refused(text: str) -> bool:
    """Tell whether the model's server answered 401, 402 or 403, as it is told here."""
    return _REFUSED.search(text[-_TAIL_CHARS:]) is not None


def objects(output: str) -> Iterator[dict[str, Any]]:
    """Yield every line that is a JSON object; what is none, too deep or cut is left out."""
    for line in output.splitlines():
        if not line.startswith("{") or len(line) > _LINE_CHARS:
            continue
        try:
            found = msgspec.json.decode(line.encode(errors="replace"))
        except (msgspec.DecodeError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def text_of(value: object) -> str:
    """Return a text in one line, cut; "" for anything else."""
    if not isinstance(value, str):
        return ""
    return " ".join(value[:_LINE_CHARS].split())[:_SUMMARY_CHARS]


def ended(
    result: SandboxResult,
    *,
    summary: str = "",
    failed: str | None = None,
    usage: Callable[[SandboxResult], bool] = lambda _: False,
) -> AgentEnd:
    """Class how a program ended.

    ``summary``: what it said itself. ``failed``: what it said went wrong, although it
    may have ended with 0 ("": it did not say). ``usage``: tells an end at a wrong
    command line.
    """
    if result.exit_code == 0 and failed is None:
        return AgentEnd(
            failure=None, claims_done=True, summary=summary or last_line(result.output)
        )
    said = failed or ""
    if result.exit_code is None:
        failure = "agent_error"
    elif result.exit_code in _NOT_STARTED or usage(result):
        failure = "usage_error"
    elif was_refused(said or result.output):
        failure = "refused"
    else:
        failure = "agent_error"
    how = how_it_ended(result)
    return AgentEnd(
        failure=failure,
        claims_done=False,
        summary=f"{how.partition(':')[0]}: {said}"[:_SUMMARY_CHARS] if said else how,
    )
