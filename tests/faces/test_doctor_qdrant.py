"""``NESTOR_QDRANT_URL`` and its key: what is refused, and what doctor saw when it asked."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.faces.fake_stack import Cli
from tests.servers.qdrant_stand_in import (
    QdrantStandIn,
    Request,
    qdrant_stand_in,
    reply,
)

from nestor.errors import Misconfigured
from nestor.settings import Settings

KEY = "sk-qdrant-0123456789"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("qdrant:6333", "must be http(s)://HOST"),
        ("grpc://qdrant:6334", "'grpc' is not served"),
        ("file:///etc/passwd", "'file' is not served"),
        ("http://:secret@qdrant:6333", "a user or a password before '@'"),
        ("http://169.254.169.254", "link-local"),
        ("http://qdrant:99999", "the port must be"),
        ("http://qdrant?x=1", "a query"),
    ],
)
def test_a_url_that_leads_nowhere_good_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("NESTOR_QDRANT_URL", url)
    with pytest.raises(Misconfigured) as error:
        Settings.load()
    assert str(error.value).startswith("NESTOR_QDRANT_URL: ")
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_a_key_needs_a_server_and_may_stand_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "qdrant.key"
    key.touch(0o600)
    key.write_text(f"{KEY}\n")
    monkeypatch.setenv("NESTOR_QDRANT_API_KEY_FILE", str(key))
    with pytest.raises(
        Misconfigured, match="NESTOR_QDRANT_API_KEY needs NESTOR_QDRANT_URL"
    ):
        Settings.load()

    monkeypatch.setenv("NESTOR_QDRANT_URL", "https://qdrant.example:6333")
    loaded = Settings.load()

    assert loaded.qdrant_url == "https://qdrant.example:6333"
    assert loaded.qdrant_api_key is not None
    assert loaded.qdrant_api_key.get_secret_value() == KEY
    assert KEY not in repr(loaded)


def test_a_placeholder_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTOR_QDRANT_URL", "http://qdrant:6333")
    monkeypatch.setenv("NESTOR_QDRANT_API_KEY", "change_me_in_production")
    with pytest.raises(Misconfigured, match="NESTOR_QDRANT_API_KEY: "):
        Settings.load()


async def _row(cli: Cli, server: QdrantStandIn) -> tuple[dict[str, Any], int]:
    cli.extra |= {
        "NESTOR_QDRANT_URL": server.base_url,
        "NESTOR_QDRANT_API_KEY": KEY,
    }
    done = await asyncio.to_thread(cli, "doctor", "--json", timeout=120)
    assert KEY not in done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    [row] = [one for one in found if one["what"] == "search index"]
    return row, done.returncode


async def test_doctor_asks_the_server_with_the_key(cli: Cli) -> None:
    async with qdrant_stand_in() as server:
        row, _ = await _row(cli, server)
        assert row["state"] == "ok"
        assert row["detail"] == f"Qdrant 1.19.0 at {server.base_url}"
        assert server.asked == ["GET /", "GET /aliases"]
        assert {r.headers["api-key"] for r in server.requests} == {KEY}


async def test_doctor_says_what_is_wrong_with_the_server(cli: Cli) -> None:
    async with qdrant_stand_in() as server:
        server.version = "1.12.0"
        row, code = await _row(cli, server)
        assert (row["state"], code) == ("fail", 1)
        assert "version 1.12.0; it must be 1.19 or newer" in row["detail"]

        async def refuse(request: Request) -> bytes:
            if request.path == "/":
                return reply(200, {"title": "qdrant", "version": "1.19.0"})
            return reply(401, b"Must provide an API key")

        server.script = refuse
        row, _ = await _row(cli, server)
        assert row["state"] == "fail"
        assert "refuses NESTOR_QDRANT_API_KEY" in row["detail"]
        assert "NESTOR_QDRANT_URL" in row["remedy"]
    row, _ = await _row(cli, server)
    assert row["state"] == "fail"
    assert "does not answer" in row["detail"]


def test_doctor_asks_nobody_without_a_server(cli: Cli) -> None:
    found = json.loads(cli("doctor", "--json", timeout=120).stdout)["findings"]
    assert "search index" not in {one["what"] for one in found}
