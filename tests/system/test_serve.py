import asyncio
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import aiohttp
import pytest
from tests.faces.shell import (
    ADMIN_KEY,
    served,
    serving,
    small_app,
    small_nestor,
    tell,
)

from nestor.errors import Misconfigured
from nestor.model.health import HealthStatus
from nestor.web.serve import bind, serve


async def until(condition: object, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


def busy_port() -> tuple[socket.socket, int]:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


async def test_a_port_in_use_names_its_setting_and_nothing_is_taken() -> None:
    other, port = busy_port()
    spare, first = busy_port()
    spare.close()
    with pytest.raises(Misconfigured) as caught:
        bind({"aidb": ("127.0.0.1", first), "ralph": ("127.0.0.1", port)})
    assert str(caught.value) == (
        f"NESTOR_RALPH_PORT: {port} is in use by another program;"
        " stop it or set another port"
    )
    assert is_free(first)
    other.close()


async def test_a_port_that_another_only_bound_belongs_to_who_listens_first() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        taken = bind({"ralph": ("127.0.0.1", sock.getsockname()[1])})
        with pytest.raises(OSError, match="in use"):
            sock.listen()
        taken["ralph"].close()


async def test_two_layers_on_one_port_are_told_apart() -> None:
    known = "NESTOR_AIDB_PORT: 8090 is also NESTOR_RALPH_PORT"
    with pytest.raises(Misconfigured, match=known):
        bind({"ralph": ("127.0.0.1", 8090), "aidb": ("127.0.0.1", 8090)})


async def test_what_fails_while_starting_leaves_no_port_open(tmp_path: Path) -> None:
    async def fail() -> None:
        raise Misconfigured("no")

    app = small_app(small_nestor(tmp_path))
    sockets = bind({"ralph": ("127.0.0.1", 0)})
    port = sockets["ralph"].getsockname()[1]
    with pytest.raises(Misconfigured):
        await serve({"ralph": app}, sockets, ready=fail, stop=asyncio.Event())
    assert is_free(port)
    assert not app.health.started


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_a_host_that_is_not_here_names_its_setting(host: str) -> None:
    with pytest.raises(Misconfigured, match="NESTOR_HOST"):
        bind({"ralph": (host, 0)})


async def test_all_layers_are_served_and_each_free_port_is_told(tmp_path: Path) -> None:
    nestor = small_nestor(tmp_path)
    layers = ["ralph", "aidb", "coordinator", "learning", "dashboard"]
    stop, told = asyncio.Event(), asyncio.Event()
    apps = {layer: small_app(nestor, layer) for layer in layers}
    sockets = bind(dict.fromkeys(layers, ("127.0.0.1", 0)))
    ports = {layer: sock.getsockname()[1] for layer, sock in sockets.items()}
    task = asyncio.create_task(serve(apps, sockets, ready=tell(told), stop=stop))
    await told.wait()
    assert len(set(ports.values())) == 5
    async with aiohttp.ClientSession() as session:
        for layer, port in ports.items():
            async with session.get(f"http://127.0.0.1:{port}/health/ready") as reply:
                assert reply.status == 200
            headers = {"X-API-Key": ADMIN_KEY}
            url = f"http://127.0.0.1:{port}/health/detailed"
            async with session.get(url, headers=headers) as reply:
                assert (await reply.json())["details"]["layer"] == layer
    stop.set()
    await task
    assert all(is_free(port) for port in ports.values())


async def test_startup_is_healthy_only_once_all_ports_answer(tmp_path: Path) -> None:
    nestor = small_nestor(tmp_path)
    app = small_app(nestor)
    assert app.health.startup().status is HealthStatus.UNHEALTHY
    async with serving(nestor, app) as shell:
        assert (await shell.call("GET", "/health/startup", key=None)).status == 200


async def test_the_same_port_can_be_taken_again_at_once(tmp_path: Path) -> None:
    nestor = small_nestor(tmp_path)
    async with served(nestor) as shell:
        await shell.call("GET", "/things")
        port = shell.port
    for sock in bind({"ralph": ("127.0.0.1", port)}).values():
        sock.close()


async def test_signals_stay_as_the_process_set_them(tmp_path: Path) -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    async with served(small_nestor(tmp_path)):
        assert {s: signal.getsignal(s) for s in before} == before


async def test_stopping_answers_what_was_asked_and_takes_nothing_new(
    tmp_path: Path,
) -> None:
    nestor = small_nestor(tmp_path)
    async with served(nestor) as shell:
        slow = asyncio.create_task(shell.call("POST", "/slow"))
        await until(lambda: "slow began" in nestor.done)
        shell.stop.set()
        await until(lambda: is_free(shell.port))
        assert shell.app.health.draining
        assert (await shell.app.health.ready()).status is HealthStatus.UNHEALTHY
        assert not shell.ended.done()
        nestor.hold.set()
        assert (await slow).status == 201
        async with asyncio.timeout(3):
            await shell.ended


async def test_stopping_ends_endless_streams_cleanly(tmp_path: Path) -> None:
    nestor = small_nestor(tmp_path)
    async with served(nestor) as shell:
        follow = asyncio.create_task(shell.raw(shell.head("GET /follow HTTP/1.1")))
        await asyncio.sleep(0.2)
        shell.stop.set()
        answer = await follow
        assert b"data: tick" in answer
        assert answer.endswith(b"0\r\n\r\n")  # the end of chunks, not a broken stream
        assert nestor.done == ["stream ended"]
        async with asyncio.timeout(3):
            await shell.ended


async def test_stopping_lets_a_models_answer_come_to_its_end(tmp_path: Path) -> None:
    nestor = small_nestor(tmp_path)
    async with served(nestor) as shell:
        head = shell.head("POST /v1/chat/completions HTTP/1.1", "Content-Length: 0")
        answer = asyncio.create_task(shell.raw(head))
        await asyncio.sleep(0.2)
        shell.stop.set()
        await asyncio.sleep(0.3)
        nestor.hold.set()
        text = await answer
        assert b"data: first" in text
        assert b"data: last" in text
        assert text.endswith(b"0\r\n\r\n")


async def test_a_stream_whose_reader_left_is_ended(tmp_path: Path) -> None:
    nestor = small_nestor(tmp_path)
    async with served(nestor) as shell:
        _, writer = await asyncio.open_connection("127.0.0.1", shell.port)
        writer.write(shell.head("GET /follow HTTP/1.1"))
        await asyncio.sleep(0.2)
        writer.close()
        await until(lambda: nestor.done == ["stream ended"])


async def test_what_does_not_finish_in_time_is_cut(tmp_path: Path) -> None:
    nestor = small_nestor(tmp_path)
    app = small_app(nestor)
    stop, told = asyncio.Event(), asyncio.Event()
    sockets = bind({"ralph": ("127.0.0.1", 0)})
    port = sockets["ralph"].getsockname()[1]
    task = asyncio.create_task(
        serve({"ralph": app}, sockets, ready=tell(told), stop=stop, drain_s=1)
    )
    await told.wait()
    half = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /things HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {ADMIN_KEY}\r\n"
    half[1].write(f"{head}Content-Length: 9\r\n\r\n{{".encode())
    slow = await asyncio.open_connection("127.0.0.1", port)
    slow[1].write(head.replace("/things", "/slow").encode() + b"\r\n")
    stubborn = await asyncio.open_connection("127.0.0.1", port)
    stubborn[1].write(head.replace("/things", "/stubborn").encode() + b"\r\n")
    await until(lambda: {"slow began", "stubborn began"} <= set(nestor.done))
    stop.set()
    async with asyncio.timeout(6):
        await task
        assert "slow ended" not in nestor.done
        for reader, writer in (half, slow, stubborn):
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
    nestor.hold.set()


@pytest.mark.heavy
async def test_a_process_on_uvloop_drains_on_sigterm_and_says_nothing(
    tmp_path: Path,
) -> None:
    script = dedent("""
        import asyncio, signal, sys
        from pathlib import Path
        import structlog
        from nestor.web.serve import bind, event_loop, serve
        from tests.faces.shell import small_app, small_nestor

        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

        async def main():
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, stop.set)
            nestor = small_nestor(Path(sys.argv[1]))
            async def release():
                await stop.wait()
                await asyncio.sleep(0.3)
                nestor.hold.set()
            asyncio.create_task(release())
            sockets = bind({"ralph": ("127.0.0.1", 0)})
            async def ready():
                print(sockets["ralph"].getsockname()[1], flush=True)
            await serve({"ralph": small_app(nestor)}, sockets, ready=ready, stop=stop)
            print("ended on", type(loop).__module__, flush=True)

        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(main())
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", script, str(tmp_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    port = int(await process.stdout.readline())
    async with aiohttp.ClientSession(headers={"X-API-Key": ADMIN_KEY}) as session:

        async def slow() -> int:
            async with session.post(f"http://127.0.0.1:{port}/slow") as reply:
                return reply.status

        asked = asyncio.create_task(slow())
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert await asked == 201
    async with asyncio.timeout(10):
        output = await process.stdout.read()
        errors = await process.stderr.read()
        assert await process.wait() == 0, errors
    assert output.startswith(b"ended on uvloop")
    lines = [line for line in errors.splitlines() if b"request" not in line]
    assert lines == []
