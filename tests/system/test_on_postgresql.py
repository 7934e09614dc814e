"""The whole stack on PostgreSQL: opened by several at once, looked at by ``nestor doctor``."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers import postgres
from tests.servers.postgres import PASSWORD, Postgres

from nestor.settings import Settings

OPENED = """
import asyncio, sys
from nestor.settings import Settings
from nestor.wiring.stack import running

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    async with running(Settings.load(), coordinator_url="http://127.0.0.1:1") as nestor:
        await nestor.keys.create(sys.argv[1], ["read"])
        print(len(await nestor.keys.all()), flush=True)
        sys.stdin.readline()
        print(*sorted(key.name for key in await nestor.keys.all()), flush=True)

asyncio.run(main())
"""


ENDED = """
import asyncio, sys
from nestor.backends.dbos.engine import DbosEngine
from nestor.backends.sql.database import Database

async def main():
    async with Database.open(sys.argv[1]) as database:
        engine = DbosEngine(sys.argv[1], executor_id="a", workers=1, on_failure=None)
        done = asyncio.Event()

        async def workflow(task_id, steps):
            print("begun", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            done.set()

        await engine.start(workflow)
        async with database.write() as connection:
            await connection.run_sync(engine.enqueue_in, "a", priority=1)
        await done.wait()
        await asyncio.sleep(1)  # the outcome is being written, and cannot be
        await engine.stop()
        print("ended", flush=True)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres.running() as running:
        yield running


def opened(home: Path, url: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OPENED, name],
        env=Settings.environment_for({"home": home / name, "database_url": url}),
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def doctor(home: Path, *more: str, **settings: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nestor.cli", "doctor", "--json", *more],
        env=Settings.environment_for({"home": home, **settings}),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert PASSWORD not in done.stdout + done.stderr
    return done.returncode, done.stdout


@pytest.mark.heavy
def test_two_processes_open_an_empty_database_at_once(
    server: Postgres, tmp_path: Path
) -> None:
    url = server.url(server.database())
    counts: list[str] = []
    children = [opened(tmp_path, url, name) for name in ("one", "two")]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            assert child.stdout is not None
            counts.append(child.stdout.readline().strip())
        ended = [child.communicate("go on\n", timeout=60) for child in children]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert [child.returncode for child in children] == [0, 0], ended
    assert set(counts) <= {"1", "2"}
    assert [out for out, _ in ended] == ["one two\n"] * 2
    assert PASSWORD not in "".join(out + err for out, err in ended)


@pytest.mark.heavy
def test_doctor_says_which_server_there_is_and_how_to_mend_it(
    server: Postgres, tmp_path: Path
) -> None:
    name = server.database()

    def finding(url: str) -> dict[str, str]:
        code, out = doctor(tmp_path, database_url=url)
        (found,) = (f for f in json.loads(out)["findings"] if f["what"] == "database")
        assert code == (1 if found["state"] == "fail" else code)
        return dict(found)

    good = finding(server.url(name))
    assert (good["state"], good["remedy"]) == ("ok", "")
    assert good["detail"] == f"PostgreSQL 18.4, {name} at 127.0.0.1:{server.port}"
    wrong = finding(server.url("absent"))
    assert wrong["state"] == "fail"
    assert wrong["detail"].startswith("NESTOR_DATABASE_URL: ")
    assert "NESTOR_DATABASE_URL" in wrong["remedy"]
    with postgres.free_port() as port:
        gone = finding(server.url(name).replace(str(server.port), str(port)))
    assert gone["state"] == "fail"
    assert gone["remedy"] == "start PostgreSQL, or correct NESTOR_DATABASE_URL"


@pytest.mark.heavy
def test_the_settings_are_shown_without_the_password(
    server: Postgres, tmp_path: Path
) -> None:
    _, out = doctor(tmp_path, "--config", database_url=server.url())
    (shown,) = (
        s for s in json.loads(out)["settings"] if s["setting"] == "database_url"
    )
    assert shown["value"] == f"postgresql://nestor:***@127.0.0.1:{server.port}/postgres"
    assert shown["from"] == "NESTOR_DATABASE_URL"


@pytest.mark.heavy
def test_a_server_that_refuses_keeps_the_stack_from_starting_by_name(
    server: Postgres, tmp_path: Path
) -> None:
    ports = {f"{n}_port": 0 for n in ("dashboard", "ralph", "aidb", "coordinator")}
    for url, code in (
        (server.url("absent"), 2),
        (server.url("absent").replace(PASSWORD, "fQ8zB1nV0sT4yL7wKcR2"), 2),
        ("postgresql://u@127.0.0.1:1/x", 3),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "nestor.cli", "up"],
            env=Settings.environment_for(
                {
                    "home": tmp_path / "h",
                    "learning_port": 0,
                    "database_url": url,
                    **ports,
                }
            ),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "NESTOR_DATABASE_URL" in done.stderr
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stderr + done.stdout


@pytest.mark.heavy
def test_a_process_ends_though_the_server_is_gone(
    server: Postgres, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDED, server.url(server.database())],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        server.stop()
        try:
            out, err = child.communicate("go on\n", timeout=40)
        finally:
            child.kill()
            server.start()
    assert (child.returncode, out) == (0, "ended\n"), err
    assert PASSWORD not in err
