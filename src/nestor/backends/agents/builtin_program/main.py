"""``python3 -I -c START FOLDER``: read the brief on stdin, work, print the end line.

The brief is one JSON object: ``prompt``, ``model_base_url``, and if given ``model``,
``network``, ``hosts``, ``time_s``, ``limits``. What is sent to the model depends on the
brief, the replies and the commands' output alone: no times, random ids or paths are added,
so that recorded traffic can be matched.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .faults import AgentError
from .limits import Limits
from .output import say_end
from .work import Work


def main() -> int:
    """Do all of it. 0: it ended by itself; 1: it failed."""
    stdout: Any = sys.stdout
    stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    error: str | None = None
    claims_done, summary, work = False, "", None
    try:
        brief = json.loads(sys.stdin.buffer.read())
        work = Work(brief, Limits(**brief.get("limits", {})))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        error, summary = "usage_error", f"the brief is not usable: {problem!r}"
    try:
        if work is not None:
            claims_done, summary = work.run()
    except AgentError as failure:
        error, summary = failure.kind, str(failure)
    except Exception as fault:  # noqa: BLE001 - the edge of a process: it still says how it ended
        error, summary = "agent_error", f"a fault of the agent itself: {fault!r}"
    say_end(
        claims_done=claims_done,
        summary=summary,
        turns=work.turns if work else 0,
        error=error,
    )
    return 0 if error is None else 1
