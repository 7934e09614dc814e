"""Learned patterns in SQL."""

import msgspec
from sqlalchemy import select, tuple_, update
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


async def replace(connection: AsyncConnection, old: Skill, new: Skill) -> bool:
    """Store ``new`` where ``old`` still stands. Raises ``NotFound``."""
    if await read(connection, old.id) != old:
        return False
    await connection.execute(
        update(schema.skill)
        .where(schema.skill.c.id == old.id)
        .values(at=time_text(new.created_at), body=encode(new))
    )
    return True


async def newest(
    connection: AsyncConnection, limit: int, after: Skill | None = None
) -> list[Skill]:
    """Read them, newest first; those that come ``after`` one."""
    place = (schema.skill.c.at, schema.skill.c.id)
    query = select(schema.skill.c.body).order_by(*(one.desc() for one in place))
    if after is not None:
        query = query.where(
            tuple_(*place) < tuple_(time_text(after.created_at), after.id)
        )
    query = query.limit(limit)
    bodies = (await connection.execute(query)).scalars().all()
    return [msgspec.json.decode(body, type=Skill) for body in bodies]
