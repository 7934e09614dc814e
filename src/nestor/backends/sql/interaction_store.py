"""Interactions and feedback in SQL."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import select

from nestor.backends.sql.database import Database
from nestor.backends.sql.outbox import queue
from nestor.backends.sql.rows import encode, insert, time_text
from nestor.backends.sql.schema import feedback as feedback_table
from nestor.backends.sql.schema import interaction as interaction_table
from nestor.model.event import Event
from nestor.model.interaction import Feedback, Interaction


class SqlInteractionStore:
    """``ports.interaction_store.InteractionStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(
        self, interaction: Interaction, *, telemetry: Sequence[Event] = ()
    ) -> None:
        """See InteractionStore.keep. One transaction."""
        statement = insert(self._database, interaction_table).values(
            id=interaction.id, at=time_text(interaction.at), body=encode(interaction)
        )
        async with self._database.write() as connection:
            new = await connection.scalar(
                statement.on_conflict_do_nothing(index_elements=["id"]).returning(
                    interaction_table.c.id
                )
            )
            if new is not None:
                await queue(self._database, connection, telemetry)

    async def get(self, interaction_id: str) -> Interaction | None:
        """See InteractionStore.get."""
        query = select(interaction_table.c.body).where(
            interaction_table.c.id == interaction_id
        )
        async with self._database.read() as connection:
            body = await connection.scalar(query)
        return None if body is None else msgspec.json.decode(body, type=Interaction)

    async def say(self, feedback: Feedback, *, telemetry: Sequence[Event] = ()) -> None:
        """See InteractionStore.say. One transaction."""
        async with self._database.write() as connection:
            await connection.execute(
                feedback_table.insert().values(
                    id=feedback.id,
                    interaction_id=feedback.interaction_id,
                    at=time_text(feedback.at),
                    body=encode(feedback),
                )
            )
            await queue(self._database, connection, telemetry)

    async def said(self, interaction_id: str) -> list[Feedback]:
        """See InteractionStore.said."""
        query = (
            select(feedback_table.c.body)
            .where(feedback_table.c.interaction_id == interaction_id)
            .order_by(feedback_table.c.seq)
        )
        async with self._database.read() as connection:
            bodies = (await connection.execute(query)).scalars().all()
        return [msgspec.json.decode(body, type=Feedback) for body in bodies]
