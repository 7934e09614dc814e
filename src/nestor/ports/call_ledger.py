"""The meter's memory: settled model calls. tests/contracts/test_call_ledger.py."""

from typing import Any, Protocol

from nestor.model.routing import ModelCall
from nestor.ports.router import Meter


class CallLedger(Protocol):
    """Append-only; a call is kept under its interaction id, so a repeat changes nothing."""

    async def record(self, call: ModelCall) -> None:
        """Keep a settled call."""
        ...

    async def meter(self, task_id: str, *, iteration: int | None = None) -> Meter:
        """Add up a task's calls, or those of one iteration."""
        ...

    async def calls(self, task_id: str) -> list[ModelCall]:
        """Read a task's calls, oldest first."""
        ...

    async def totals(self) -> list[dict[str, Any]]:
        """Calls, tokens and cost by model and route."""
        ...
