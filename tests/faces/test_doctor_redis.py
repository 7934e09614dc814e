"""``NESTOR_REDIS_URL``: what doctor saw when it asked; none is no failure, as all goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.faces.fake_stack import Cli
from tests.servers import redis_server


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(cli: Cli) -> list[dict[str, Any]]:
    done = cli("doctor", "--json", timeout=120)
    assert redis_server.PASSWORD not in done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    return [one for one in found if one["what"] == "redis"]


def test_doctor_asks_redis_and_says_what_is_wrong_with_it(
    cli: Cli, tmp_path: Path
) -> None:
    with redis_server.running(tmp_path) as server:
        cli.extra |= {"NESTOR_REDIS_URL": server.url}
        [row] = rows(cli)
        assert row["state"] == "ok"
        assert row["detail"] == f"answers at redis://:***@127.0.0.1:{server.port}/0"

        wrong = server.url.replace(redis_server.PASSWORD, "another")
        cli.extra |= {"NESTOR_REDIS_URL": wrong}
        [row] = rows(cli)
        assert row["state"] == "warn"
        assert "name or password in NESTOR_REDIS_URL" in row["detail"]

    [row] = rows(cli)
    assert row["state"] == "warn"
    assert "Redis does not answer" in row["detail"]
    assert "limits and answers are of one process" in row["detail"]
    assert row["remedy"] == "start it, or correct NESTOR_REDIS_URL"


def test_doctor_asks_no_redis_where_none_is_named(cli: Cli) -> None:
    assert rows(cli) == []
