"""``nestor up`` takes over the deployments of nestor.toml on SIGHUP, and drops no stream."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.conftest import ROOT
from tests.servers.scripted_model import Rule, ScriptedModel
from tests.system.child import Child

from nestor.settings import Settings

pytestmark = pytest.mark.heavy
LONG = " ".join(f"word{n}" for n in range(150))
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


class Folder(Child):
    """A stack that is started in the folder of its nestor.toml."""

    def spawn(self, point: str = "never") -> None:
        layers = ("dashboard", "ralph", "aidb", "coordinator", "learning")
        values: dict[str, Any] = {f"{layer}_port": 0 for layer in layers}
        values |= {"home": self.home, "log_format": "json"}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.killed_stack", point],
                cwd=self.home.parent,
                env={**Settings.environment_for(values), "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def write(self, *tables: dict[str, Any], plain: str = "") -> None:
        """Write nestor.toml anew."""
        text = plain
        for table in tables:
            lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
            text += "\n".join(["", "[[deployment]]", *lines, ""])
        new = self.home.with_name("nestor.toml.new")
        new.write_text(text)
        new.replace(self.home.with_name("nestor.toml"))

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def logged(self) -> list[dict[str, Any]]:
        """Every whole line of the log."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.logged() if line["event"] == event]


class Caller:
    """Calls the Coordinator over HTTP with the admin's key."""

    def __init__(self, folder: Folder, session: aiohttp.ClientSession) -> None:
        self._base = f"http://127.0.0.1:{folder.port('coordinator')}"
        key = (folder.home / "api-key").read_text().strip()
        self._headers = {"Authorization": f"Bearer {key}"}
        self._session = session

    def chat(self, model: str, **more: Any) -> Any:
        return self._session.post(
            f"{self._base}/v1/chat/completions",
            json={**HELLO, "model": model, **more},
            headers=self._headers,
        )

    async def status(self, model: str) -> int:
        async with self.chat(model) as reply:
            await reply.read()
            return int(reply.status)

    async def get(self, path: str) -> Any:
        async with self._session.get(
            f"{self._base}{path}", headers=self._headers
        ) as reply:
            return await reply.json()


async def until(what: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.05)


def table(name: str, model: ScriptedModel, **more: Any) -> dict[str, Any]:
    plain = {"name": name, "side": "local", "model": f"{name}-model"}
    return {**plain, "base_url": model.base_url, **more}


@pytest.fixture
async def models() -> AsyncIterator[tuple[ScriptedModel, ScriptedModel]]:
    slow = Rule(when="hello", reply=LONG, chunk_delay_s=0.02)
    async with ScriptedModel([slow]) as old, ScriptedModel([Rule(reply="new")]) as new:
        yield old, new


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found


async def test_a_stream_goes_on_while_its_deployment_is_replaced(
    tmp_path: Path,
    models: tuple[ScriptedModel, ScriptedModel],
    session: aiohttp.ClientSession,
) -> None:
    old, new = models
    with Folder(tmp_path / "home") as folder:
        folder.write(table("fast", old), table("gone", old))
        await asyncio.to_thread(folder.start)
        caller = Caller(folder, session)
        got = b""
        async with caller.chat("fast", stream=True) as reply:
            assert reply.status == 200
            async for piece in reply.content.iter_any():
                if not got:
                    folder.write(table("fast", new), table("added", new))
                    folder.hang_up()
                got += piece
                if b"word20" in got and not new.requests:
                    await until(lambda: bool(folder.said("deployments_taken_over")))
                    assert await caller.status("fast") == 200
                    assert b"word149" not in got, "the stream is still under way"
        assert b"word149" in got
        assert b"[DONE]" in got
        assert (len(old.chats), len(new.chats)) == (1, 1)
        assert await caller.status("added") == 200
        assert await caller.status("gone") == 404
        (taken,) = folder.said("deployments_taken_over")
        assert taken["deployments"] == ["fast", "added"]

        stats = await caller.get("/stats")
        assert [one["name"] for one in stats["deployments"]] == ["fast", "added"]
        calls = sum(row["calls"] for row in stats["calls"])
        assert calls == 3, "the stream is metered, too"


async def test_a_bad_file_changes_nothing_but_what_health_says(
    tmp_path: Path,
    models: tuple[ScriptedModel, ScriptedModel],
    session: aiohttp.ClientSession,
) -> None:
    _, new = models
    with Folder(tmp_path / "home") as folder:
        folder.write(table("fast", new))
        await asyncio.to_thread(folder.start)
        caller = Caller(folder, session)
        folder.write(table("fast", new), table("bad", new, weight=-1))
        folder.hang_up()
        await until(lambda: bool(folder.said("configuration_not_taken_over")))

        (line,) = folder.said("configuration_not_taken_over")
        assert "deployment.1.weight" in line["error"]
        assert await caller.status("fast") == 200
        assert await caller.status("bad") == 404
        health = await caller.get("/health/detailed")
        assert health["status"] == "degraded"
        assert "nestor.toml was not taken over: deployment.1.weight" in str(health)

        folder.home.with_name("nestor.toml").write_text("[[deployment")
        folder.hang_up()
        await until(lambda: len(folder.said("configuration_not_taken_over")) == 2)
        assert await caller.status("fast") == 200

        folder.write(table("fast", new), table("bad", new, weight=1))
        folder.hang_up()
        await until(lambda: bool(folder.said("deployments_taken_over")))
        assert await caller.status("bad") == 200
        assert "not taken over" not in str(await caller.get("/health/detailed"))


async def test_other_settings_are_named_as_needing_a_restart(
    tmp_path: Path,
    models: tuple[ScriptedModel, ScriptedModel],
    session: aiohttp.ClientSession,
) -> None:
    _, new = models
    with Folder(tmp_path / "home") as folder:
        folder.write(table("fast", new), plain="workers = 2\n")
        await asyncio.to_thread(folder.start)
        caller = Caller(folder, session)
        beside = 'local_model = "m"\nlocal_base_url = "http://127.0.0.1:9/v1"\n'
        folder.write(table("fast", new), plain=f"workers = 3\n{beside}")
        folder.hang_up()
        await until(lambda: bool(folder.said("settings_need_a_restart")))

        (line,) = folder.said("settings_need_a_restart")
        assert line["settings"] == ["local_base_url", "local_model", "workers"]
        assert await caller.status("fast") == 200
        stats = await caller.get("/stats")
        assert [one["name"] for one in stats["deployments"]] == ["fast"]

        # What would lead to a deployment that is only there after a restart is refused.
        folder.write(table("fast", new, fallbacks=["local"]), plain=beside)
        folder.hang_up()
        await until(lambda: bool(folder.said("configuration_not_taken_over")))
        (line,) = folder.said("configuration_not_taken_over")
        assert "'local' is no deployment" in line["error"]


async def test_a_new_key_is_used_and_told_nowhere(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    first, second = "prov-one-0123456789abcdef", "prov-two-0123456789abcdef"
    key = tmp_path / "provider.key"
    key.touch(0o600)
    key.write_text(first)
    told = Rule(status=400, reply=f"{second} is another provider's key")
    async with ScriptedModel([Rule(reply="fine")]) as model, ScriptedModel([told]) as b:
        with Folder(tmp_path / "home") as folder:
            folder.write(table("fast", model, api_key_file=str(key)), table("other", b))
            await asyncio.to_thread(folder.start)
            caller = Caller(folder, session)
            assert await caller.status("fast") == 200
            key.write_text(second)
            folder.hang_up()
            await until(lambda: bool(folder.said("deployments_taken_over")))
            assert await caller.status("fast") == 200
            async with caller.chat("other") as reply:
                assert reply.status == 400
                assert "another provider's key" in (text := await reply.text())
                assert second not in text

            sent = [one.headers["authorization"] for one in model.chats]
            assert sent == [f"Bearer {first}", f"Bearer {second}"]
            seen = folder.log.read_text() + json.dumps(folder.events())
            assert first not in seen
            assert second not in seen


async def test_any_number_of_signals_at_any_time_end_nothing(
    tmp_path: Path,
    models: tuple[ScriptedModel, ScriptedModel],
    session: aiohttp.ClientSession,
) -> None:
    _, new = models
    with Folder(tmp_path / "home") as folder:
        folder.write(table("fast", new))
        await asyncio.to_thread(folder.start)
        caller = Caller(folder, session)
        answers = [asyncio.create_task(caller.status("fast")) for _ in range(40)]
        for number in range(30):
            folder.write(table("fast", new, weight=number % 7 + 1))
            folder.hang_up()
            await asyncio.sleep(0.02)
        assert set(await asyncio.gather(*answers)) == {200}
        assert folder.process is not None
        assert folder.process.poll() is None
        await until(lambda: bool(folder.said("deployments_taken_over")))
        assert await caller.status("fast") == 200
        assert not [line for line in folder.logged() if line["level"] == "error"]
