"""Learned patterns in SQL."""

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql import schema
from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode, insert, time_text
from nestor.errors import NotFound
from nestor.model.knowledge import Skill


async def put(database: Database, connection: AsyncConnection, skill: Skill) -> bool:
    """Store or replace one; False where it is there already, just so."""
    body = encode(skill)
    values = {"at": time_text(skill.created_at), "body": body}
    written = await connection.execute(
        insert(database, schema.skill)
        .values(id=skill.id, **values)
        .on_conflict_do_update(
            index_elements=["id"], set_=values, where=schema.skill.c.body != body
        )
        .returning(schema.skill.c.id)
    )
    return written.first() is not None


async def read(connection: AsyncConnection, skill_id: str) -> Skill:
    """Read one. Raises ``NotFound``."""
    body = await connection.scalar(
        select(schema.skill.c.body).where(schema.skill.c.id == skill_id)
    )
    if body is None:
        raise NotFound.at("id", f"there is no learned pattern {skill_id}")
    return msgspec.json.decode(body, type=Skill)


async def newest(connection: AsyncConnection, limit: int) -> list[Skill]:
    """Read them, newest first."""
    query = (
        select(schema.skill.c.body)
        .order_by(schema.skill.c.at.desc(), schema.skill.c.id.desc())
        .limit(limit)
    )
    bodies = (await connection.execute(query)).scalars().all()
    return [msgspec.json.decode(body, type=Skill) for body in bodies]
