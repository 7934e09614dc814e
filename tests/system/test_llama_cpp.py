"""llama.cpp as a child: real engine, random weights, real processes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from tests.servers.tiny_gguf import make_tiny_gguf

from nestor.backends.llama_cpp.client import LlamaCppClient
from nestor.backends.llama_cpp.server import LlamaCppServer
from nestor.errors import CircuitOpen, Misconfigured, Unavailable
from nestor.model.routing import Deployment, Side

ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return make_tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
async def server(gguf: Path, tmp_path: Path) -> AsyncIterator[LlamaCppServer]:
    server = LlamaCppServer(gguf, run_dir=tmp_path / "run", context_tokens=512)
    await server.start()
    yield server
    await server.stop()


def gone(pid: int) -> bool:
    """Neither running nor a zombie that somebody still has to collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


async def until_gone(pid: int, wait_s: float = 10) -> bool:
    for _ in range(int(wait_s / 0.05)):
        if gone(pid):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_it_answers_with_the_key_only(server: LlamaCppServer) -> None:
    endpoint = server.endpoint()
    url = f"{endpoint.base_url}/chat/completions"
    async with aiohttp.ClientSession() as session:
        async with session.post(url, json=ASK) as reply:
            assert reply.status == 401
        wrong = {"Authorization": "Bearer wrong"}
        async with session.post(url, json=ASK, headers=wrong) as reply:
            assert reply.status == 401
        headers = {
            "Authorization": f"Bearer {endpoint.api_key}",
            "Origin": "http://evil",
        }
        async with session.post(url, json=ASK, headers=headers) as reply:
            assert reply.status == 200
            assert reply.headers.get("Access-Control-Allow-Origin") not in {
                "*",
                "http://evil",
            }


async def test_k1_the_key_is_in_no_command_line_and_only_loopback_listens(
    server: LlamaCppServer,
) -> None:
    seen = server.snapshot()
    endpoint = server.endpoint()
    command = Path(f"/proc/{seen.pid}/cmdline").read_bytes()
    environment = Path(f"/proc/{seen.pid}/environ").read_bytes()

    assert endpoint.api_key.encode() not in command + environment
    assert endpoint.api_key not in server.log_path.read_text()
    assert endpoint.base_url.startswith("http://127.0.0.1:")
    port = f":{seen.port:04X}"
    tables = [Path(f"/proc/{seen.pid}/net/{name}") for name in ("tcp", "tcp6")]
    rows = [row.split() for t in tables for row in t.read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(port)]
    assert listening == [f"0100007F{port}"]


async def test_the_snapshot_says_what_was_seen(server: LlamaCppServer) -> None:
    seen = server.snapshot()

    assert (seen.state, seen.model, seen.restarts) == ("ready", "tiny.gguf", 0)
    assert seen.last_error is None
    assert seen.observed_at is not None
    assert server.dependency().status == "healthy"


async def test_a_killed_child_is_started_again_and_answers(
    server: LlamaCppServer,
) -> None:
    first = server.snapshot()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    while server.snapshot().state == "ready":
        await asyncio.sleep(0.02)
    down = server.snapshot()
    with pytest.raises(CircuitOpen, match="starting again"):
        server.endpoint()
    async with asyncio.timeout(30):
        while server.snapshot().state != "ready":
            await asyncio.sleep(0.05)
    after = server.snapshot()

    assert down.state == "down"
    assert "-9" in (down.last_error or "")
    assert (after.restarts, after.last_error) == (1, None)
    assert after.pid != first.pid
    deployment = Deployment(name="local", side=Side.LOCAL, model="m", base_url="")
    async with aiohttp.ClientSession() as session:
        client = LlamaCppClient(server, deployment, session)
        assert (await client.complete(ASK)).usage.output_tokens


async def test_stopping_leaves_no_process(gguf: Path, tmp_path: Path) -> None:
    server = LlamaCppServer(gguf, run_dir=tmp_path / "run")
    await server.start()
    pid = server.snapshot().pid
    assert pid is not None
    await server.stop()
    await server.stop()

    assert gone(pid)
    assert server.snapshot().state == "stopped"


async def test_beginning_returns_at_once_and_calls_say_that_it_loads(
    gguf: Path, tmp_path: Path
) -> None:
    server = LlamaCppServer(gguf, run_dir=tmp_path / "run")
    with pytest.raises(CircuitOpen, match="not started"):
        server.endpoint()
    server.begin()
    with pytest.raises(CircuitOpen, match="loading"):
        server.endpoint()
    assert server.dependency().status == "degraded"
    await asyncio.sleep(0.05)
    await server.stop()

    assert server.snapshot().pid is None


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"PK\x03\x04", "not a GGUF file"), (b"", "not a GGUF")],
)
async def test_a_file_that_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    server = LlamaCppServer(path, run_dir=tmp_path / "run")

    with pytest.raises(Misconfigured, match=says):
        await server.start()

    assert not (tmp_path / "run").exists()


async def test_a_damaged_model_is_unavailable_with_the_reason(
    gguf: Path, tmp_path: Path
) -> None:
    gguf.write_bytes(gguf.read_bytes()[:20_000])
    server = LlamaCppServer(gguf, run_dir=tmp_path / "run")

    with pytest.raises(Unavailable, match="did not start: Failed to init"):
        await server.start()

    assert server.snapshot().pid is None


async def test_the_child_dies_with_its_parent(gguf: Path, tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from nestor.backends.llama_cpp.server import LlamaCppServer\n"
        "async def main():\n"
        "    run = pathlib.Path(sys.argv[2])\n"
        "    server = LlamaCppServer(pathlib.Path(sys.argv[1]), run_dir=run)\n"
        "    await server.start()\n"
        "    print(server.snapshot().pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", program, str(gguf), str(tmp_path / "run")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert not gone(pid)
        parent.kill()

    assert await until_gone(pid)
