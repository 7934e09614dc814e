"""Interactions and what is said of them. tests/contracts/test_interaction_store.py."""

from collections.abc import Sequence
from typing import Protocol

from nestor.model.event import Event
from nestor.model.interaction import Feedback, Interaction


class InteractionStore(Protocol):
    """Append-only. Telemetry is committed with its row, and sent from there."""

    async def keep(
        self, interaction: Interaction, *, telemetry: Sequence[Event] = ()
    ) -> None:
        """Keep an interaction; one whose id is kept changes nothing, nor its telemetry."""
        ...

    async def get(self, interaction_id: str) -> Interaction | None:
        """Return an interaction; None for an unknown one."""
        ...

    async def say(self, feedback: Feedback, *, telemetry: Sequence[Event] = ()) -> None:
        """Keep what a key said. It never replaces what was said before."""
        ...

    async def said(self, interaction_id: str) -> list[Feedback]:
        """Return all that was said about an interaction, oldest first.

        What counts of it: ``model.interaction.standing``.
        """
        ...
