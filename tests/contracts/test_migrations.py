"""The migrations make what ``schema.py`` says; the database promises what it says."""

import asyncio
import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from tests.contracts.outside import Outside

from nestor.backends.sql import migrate, schema
from nestor.backends.sql.database import Database, async_url, sync_url
from nestor.backends.sql.key_store import SqlKeyStore
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.backends.sql.task_queue import SqlTaskQueue
from nestor.errors import Misconfigured, Unavailable
from nestor.model.dependency import Unmet
from nestor.model.knowledge import EmbeddingStamp, Where
from nestor.model.task import TaskStatus


@pytest.fixture
def database_url(empty_url: str) -> str:
    """What ``outside`` looks at."""
    return empty_url


async def test_a_migrated_database_is_what_the_schema_says(empty_url: str) -> None:
    await migrate.upgrade(empty_url)

    def ours(name: str | None, _kind: str, _parents: Any) -> bool:
        return not (name or "").startswith(("chunk_fts", "ix_chunk_full_text"))

    engine = create_engine(sync_url(empty_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_name": ours, "compare_type": True},
        )
        differences = compare_metadata(context, schema.metadata)
        primary = inspect(connection).get_pk_constraint("task_event")
    engine.dispose()
    assert differences == []
    assert primary["constrained_columns"] == ["task_id", "id"]


def test_head_names_the_newest_migration() -> None:
    folder = Path(migrate.__file__).parent / "migrations"
    scripts = ScriptDirectory(str(folder), version_locations=[str(folder)])
    assert scripts.get_current_head() == migrate.HEAD


async def test_migrating_twice_changes_nothing(
    empty_url: str, outside: Outside
) -> None:
    await migrate.upgrade(empty_url)
    before = dump(outside)
    await migrate.upgrade(empty_url)
    assert dump(outside) == before


async def test_a_database_of_the_first_version_keeps_its_rows(
    empty_url: str,
) -> None:
    made_at(
        "0001",
        empty_url,
        "INSERT INTO api_key (id, name, secret_hash, scopes, created_at)"
        " VALUES ('k', 'old', 'h', '[\"read\"]', '2026-01-02T03:04:05+00:00')",
    )

    await migrate.upgrade(empty_url)

    async with Database.open(empty_url) as database:
        kept = await SqlKeyStore(database).all()
    assert [(key.id, key.scopes, key.last_used_at) for key in kept] == [
        ("k", ["read"], None)
    ]


async def test_texts_of_before_the_vectors_wait_for_the_new_index(
    empty_url: str,
) -> None:
    document = (
        "'p', 'a.md', 'codebase-context', 'h', 9, 'ab\ncd', '{}',"
        " '2026-01-02T03:04:05+00:00'"
    )
    chunk = 'INSERT INTO chunk (id, document_id, ordinal, heading, text, start, "end",'
    made_at(
        "0003",
        empty_url,
        f"INSERT INTO document VALUES ('d', {document})",
        chunk + " indexed) VALUES ('c1', 'd', 0, 'H', 'ab', 0, 2, 1)",
        chunk + " indexed) VALUES ('c2', 'd', 1, '', 'cd', 3, 5, 0)",
    )

    await migrate.upgrade(empty_url)

    async with Database.open(empty_url) as database:
        store = SqlKnowledgeStore(database)
        entries = await store.waiting(None)
        stamp = EmbeddingStamp(model="m", revision="1", dimension=1)
        lacking = await store.unembedded(stamp)
        hits = await store.search("ab", limit=9, where=Where())
        counts = await store.counts()
    assert [(e.chunk.id, e.chunk.first_line) for e in entries] == [
        *(("c1", None), ("c2", None))
    ]
    assert {e.document.media for e in entries} == {"text/plain"}
    wanted = ("H\nab", "cd")
    assert sorted(lacking) == sorted(
        (hashlib.sha256(one.encode()).hexdigest(), one) for one in wanted
    )
    assert [hit.chunk_id for hit in hits] == ["c1"]
    assert (counts.chunks, counts.waiting) == (2, 2)


async def test_tasks_of_before_have_their_place_in_the_queue(empty_url: str) -> None:
    body = {
        "task_id": "",
        "name": "n",
        "description": "d",
        "status": "queued",
        "priority": "P2",
        "phase": None,
        "backend": "claude",
        "budget": {},
        "created_at": "2026-01-02T03:04:05Z",
        "max_iterations": 1,
        "trace_id": "0",
        "spec": {"task": "x", "sandbox": {"memory_bytes": 7}},
    }
    more: dict[str, dict[str, Any]] = {
        "new": {"submitted_by": "k", "attempt": 3, "waits_for": ["old"]},
        "old": {"status": "running", "cancel_requested": True, "spec": {"task": "x"}},
        **{f"t{n:02}": {} for n in range(45)},
    }
    rows = []
    for name, given in more.items():
        text_ = json.dumps({**body, "task_id": name, **given})
        status = given.get("status", "queued")
        rows.append(f"('{name}', 'd', '{status}', 'P2', NULL, '2026', '{text_}')")
    insert = (
        "INSERT INTO task (task_id, digest, status, priority, phase, created_at, body)"
    )
    edge = "INSERT INTO task_dependency VALUES ('new', 'old')"
    made_at("0005", empty_url, f"{insert} VALUES {', '.join(rows)}", edge)

    await migrate.upgrade(empty_url)

    async with Database.open(empty_url) as database:
        queue = SqlTaskQueue(database, lambda *_: None)
        new, old = await queue.needs(["new", "old"])
        assert len(await queue.needs(list(more))) == len(more)
        assert [one.task_id for one in await queue.to_end()] == ["old"]
        waiting = await queue.waiting()
    assert (new.backend, new.memory_bytes, new.attempt) == ("claude", 7, 3)
    assert (old.memory_bytes, old.attempt, old.cancel_requested) == (None, 1, True)
    assert waiting == {"new": [Unmet(task_id="old", status=TaskStatus.RUNNING)]}


def made_at(revision: str, url: str, *statements: str) -> None:
    """Make a database as a version of before has left it."""
    folder = Path(migrate.__file__).parent / "migrations"
    scripts = ScriptDirectory(str(folder), version_locations=[str(folder)])
    engine = create_engine(sync_url(url))
    steps = EnvironmentContext(
        Config(), scripts, fn=lambda rev, _: scripts._upgrade_revs(revision, rev)
    )
    with engine.begin() as connection, steps:
        steps.configure(connection=connection)
        steps.run_migrations()
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_database_that_is_up_to_date_is_opened_without_alembic(
    empty_url: str,
) -> None:
    asyncio.run(migrate.upgrade(empty_url))
    script = (
        "import asyncio, sys\n"
        "from nestor.backends.sql.migrate import upgrade\n"
        "asyncio.run(upgrade(sys.argv[1]))\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, empty_url], check=True)


async def test_four_processes_may_migrate_at_once(
    empty_url: str, outside: Outside
) -> None:
    script = (
        "import asyncio, sys\n"
        "from nestor.backends.sql.migrate import upgrade\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "asyncio.run(upgrade(sys.argv[1]))\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            empty_url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        await process.stdout.readline()
    ended = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [process.returncode for process in processes] == [0] * 4, ended
    assert [error for _, error in ended] == [b""] * 4  # and quietly
    rows = outside.rows("SELECT version_num FROM alembic_version")
    assert rows == [(migrate.HEAD,)]


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(
    empty_url: str, outside: Outside
) -> None:
    await migrate.upgrade(empty_url)
    await outside.run("UPDATE alembic_version SET version_num = '9999'")
    before = dump(outside)
    with pytest.raises(Misconfigured, match=r"newer Nestor.*restore a backup"):
        await migrate.upgrade(empty_url)
    assert dump(outside) == before


async def test_a_migration_that_breaks_leaves_nothing_half_made(
    empty_url: str, outside: Outside
) -> None:
    await outside.run("CREATE TABLE model_call (mine TEXT)")
    before = dump(outside)
    with pytest.raises(DBAPIError, match=r'model_call"? already exists'):
        await migrate.upgrade(empty_url)
    assert dump(outside) == before


async def test_migrating_says_nothing(
    empty_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await migrate.upgrade(empty_url)
    assert [record for record in caplog.records if record.name != "asyncio"] == []


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with database.write() as connection:
            await connection.execute(text("INSERT INTO counter VALUES ('a', 1)"))
            raise ZeroDivisionError
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM counter")) == 0


async def test_wrong_sql_is_a_bug_not_an_outage(database: Database) -> None:
    with pytest.raises(Exception, match=r"no such table|does not exist") as caught:
        async with database.read() as connection:
            await connection.execute(text("SELECT * FROM absent"))
    assert not isinstance(caught.value, Unavailable)


def test_a_database_nobody_supports_is_refused_by_name() -> None:
    with pytest.raises(Misconfigured, match="DATABASE_URL: 'mysql'"):
        async_url("mysql://x/y")


def dump(outside: Outside) -> list[str]:
    """Everything that a migration makes, and what it notes."""
    if outside.url.startswith("sqlite"):
        things = outside.rows("SELECT type, name, sql FROM sqlite_master")
    else:
        things = outside.rows(
            "SELECT 'column', table_name, column_name, data_type, collation_name,"
            " column_default FROM information_schema.columns"
            " WHERE table_schema = 'public'"
            " UNION ALL SELECT 'index', tablename, indexname, indexdef, '', ''"
            " FROM pg_indexes WHERE schemaname = 'public'"
            " UNION ALL SELECT 'config', cfgname, '', '', '', '' FROM pg_ts_config"
            " ORDER BY 1, 2, 3"
        )
    known = "alembic_version" in repr(things)
    version = outside.rows("SELECT * FROM alembic_version") if known else []
    return [*map(repr, things), repr(version)]
