"""What every Sandbox promises."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nestor.backends.sandbox import BubblewrapSandbox, NoSandbox
from nestor.errors import SandboxError
from nestor.model.task import Network
from nestor.ports.sandbox import Mount, Sandbox, SandboxRun

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Place:
    """A data folder with one task, and a short way to make a run in it."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.task = self.home / "tasks" / "t1"
        self.tree = self.task / "tree"
        self.run_dir = self.task / "run"
        self.tree.mkdir(parents=True)

    def run(self, *argv: str, **more: Any) -> SandboxRun:
        mounts = [Mount(host=self.tree, inside="/workspace", writable=True)]
        values: dict[str, Any] = {
            "name": "t1/agent-1",
            "argv": argv,
            "cwd": "/workspace",
            "mounts": mounts,
            "timeout_s": 30,
            "run_dir": self.run_dir,
        }
        return SandboxRun(**(values | more))

    def sh(self, line: str, **more: Any) -> SandboxRun:
        return self.run("/bin/sh", "-c", line, **more)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


Make = Callable[[str], Sandbox]


@pytest.fixture(params=[BubblewrapSandbox, NoSandbox])
def make(request: pytest.FixtureRequest, place: Place) -> Make:
    def build(coordinator_url: str) -> Sandbox:
        sandbox: Sandbox = request.param(
            coordinator_url=coordinator_url, home=place.home
        )
        return sandbox

    return build


@pytest.fixture
def sandbox(make: Make) -> Sandbox:
    return make("http://127.0.0.1:9")


@asynccontextmanager
async def coordinator() -> AsyncIterator[tuple[str, list[web.BaseRequest]]]:
    """A model server that keeps what it was sent and streams an answer in two parts."""
    seen: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request)
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await response.write(b"data: two\n\n")
        return response

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        await runner.cleanup()


async def test_exit_code_output_and_standard_input_come_through(
    sandbox: Sandbox, place: Place
) -> None:
    result = await sandbox.run(place.sh("cat; echo err >&2; exit 3", stdin=b"in\n\xff"))

    assert (result.exit_code, result.signal) == (3, None)
    assert result.output == "in\n\ufffderr\n"
    assert (result.timed_out, result.cancelled, result.truncated) == (False,) * 3
    assert result.sandboxed is (sandbox.name == "bubblewrap")
    assert 0 < result.duration_s < 10


async def test_work_is_done_in_the_mounted_folder(
    sandbox: Sandbox, place: Place
) -> None:
    (place.tree / "sub").mkdir()

    result = await sandbox.run(
        place.sh(
            "echo $WORD > /workspace/made", cwd="/workspace/sub", env={"WORD": "w"}
        )
    )

    assert result.exit_code == 0
    assert (place.tree / "made").read_text() == "w\n"


async def test_the_workers_environment_and_descriptors_stay_outside(
    sandbox: Sandbox, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_SECRET", "sk-canary")
    with (place.home / "open").open("w") as held:
        assert held.fileno() > 2
        result = await sandbox.run(place.sh("env; exec ls -l /proc/self/fd"))

    assert "canary" not in result.output
    assert str(place.home / "open") not in result.output
    assert "LANG=C.UTF-8" in result.output
    descriptors = [line for line in result.output.splitlines() if " -> " in line]
    assert len(descriptors) == 4, descriptors  # 0, 1, 2, and the listing itself


async def test_a_command_killed_by_a_signal_says_which(
    sandbox: Sandbox, place: Place
) -> None:
    result = await sandbox.run(place.sh("kill -SEGV $$"))

    assert (result.exit_code, result.signal) == (None, 11)


async def test_an_exit_code_above_128_is_not_taken_for_a_signal(
    sandbox: Sandbox, place: Place
) -> None:
    result = await sandbox.run(place.sh("exit 137"))

    assert (result.exit_code, result.signal) == (137, None)


async def test_a_command_that_is_not_there_ends_with_127(
    sandbox: Sandbox, place: Place
) -> None:
    result = await sandbox.run(place.run("no-such-program"))

    assert result.exit_code == 127
    assert "no-such-program" in result.output


async def test_the_time_limit_ends_a_command_with_its_children(
    sandbox: Sandbox, place: Place
) -> None:
    started = time.monotonic()
    result = await sandbox.run(
        place.sh("(while :; do date >> beat; sleep 0.05; done) & wait", timeout_s=0.5)
    )

    assert result.timed_out
    assert result.exit_code is None
    assert time.monotonic() - started < 5
    await assert_still(place.tree / "beat")


async def test_a_background_process_does_not_outlive_its_command(
    sandbox: Sandbox, place: Place
) -> None:
    line = "setsid -f sh -c 'while :; do date >> /workspace/beat; sleep 0.05; done'; sleep 0.3"
    result = await sandbox.run(place.sh(line))

    assert result.exit_code == 0
    await assert_still(place.tree / "beat")


async def test_cancelling_kills_and_then_raises(sandbox: Sandbox, place: Place) -> None:
    running = asyncio.create_task(
        sandbox.run(place.sh("while :; do date >> beat; sleep 0.05; done"))
    )
    await appears(place.tree / "beat")

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    await assert_still(place.tree / "beat")


async def test_kill_ends_a_run_of_this_folder_and_is_fine_without_one(
    make: Make, place: Place
) -> None:
    one, two = make("http://127.0.0.1:9"), make("http://127.0.0.1:9")
    await two.kill(place.run_dir)
    running = asyncio.create_task(
        one.run(place.sh("while :; do date >> beat; sleep 0.05; done"))
    )
    await appears(place.tree / "beat")

    await two.kill(place.run_dir)

    await assert_still(place.tree / "beat")
    result = await running
    assert result.cancelled
    assert result.exit_code is None
    await two.kill(place.run_dir)


async def test_kill_leaves_a_process_alone_that_has_the_old_pid(
    sandbox: Sandbox, place: Place
) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "60")
    holder = await asyncio.create_subprocess_exec(
        "flock", str(place.home / "lock"), "sleep", "0.5"
    )
    try:
        place.run_dir.mkdir()
        about = {"guardian": [other.pid, "1"], "init": None}
        (place.run_dir / "guardian.json").write_text(json.dumps(about))
        await appears(place.home / "lock")
        (place.run_dir / "lock").hardlink_to(place.home / "lock")

        await sandbox.kill(place.run_dir)

        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()
        await holder.wait()


async def test_runs_of_one_folder_never_overlap(sandbox: Sandbox, place: Place) -> None:
    line = "mkdir busy && sleep 0.3 && rmdir busy"
    results = await asyncio.gather(*(sandbox.run(place.sh(line)) for _ in range(3)))

    assert [r.exit_code for r in results] == [0, 0, 0], results


async def test_each_run_of_one_folder_gets_its_own_result(
    sandbox: Sandbox, place: Place
) -> None:
    runs = [sandbox.run(place.sh(f"echo {number}")) for number in range(12)]
    results = await asyncio.gather(*runs)

    assert [r.output for r in results] == [f"{number}\n" for number in range(12)]


async def test_output_keeps_the_newest_part_within_its_limit(
    sandbox: Sandbox, place: Place
) -> None:
    result = await sandbox.run(
        place.sh("seq 100000; echo last", output_limit_bytes=10_000)
    )

    assert result.truncated
    assert result.output.endswith("99999\n100000\nlast\n")
    assert 5_000 <= len(result.output) <= 10_000
    assert sum(p.stat().st_size for p in place.run_dir.glob("output*")) <= 10_000


async def test_output_below_the_limit_is_whole(sandbox: Sandbox, place: Place) -> None:
    result = await sandbox.run(place.sh("seq 1000", output_limit_bytes=4_000))

    assert not result.truncated
    assert result.output == "".join(f"{n}\n" for n in range(1, 1001))


async def test_the_memory_limit_binds(sandbox: Sandbox, place: Place) -> None:
    program = "x = bytearray(600_000_000); print('got it')"
    result = await sandbox.run(
        place.run("python3", "-c", program, memory_bytes=300_000_000)
    )

    assert "got it" not in result.output
    assert "MemoryError" in result.output


@pytest.mark.parametrize("detached", [False, True])
async def test_a_fork_bomb_is_ended(
    sandbox: Sandbox, place: Place, detached: bool
) -> None:
    program = """
import os, time
for n in range(400):
    if os.fork() == 0:
        DETACH
        time.sleep(60)
time.sleep(60)
""".replace("DETACH", "os.setsid()" if detached else "pass")
    started = time.monotonic()
    result = await sandbox.run(place.run("python3", "-c", program, processes=50))

    assert result.exit_code != 0
    assert time.monotonic() - started < 15


async def test_the_model_is_reached_with_the_tasks_key_and_trace(
    make: Make, place: Place
) -> None:
    program = """
import os, urllib.request
request = urllib.request.Request(
    os.environ["MODEL_URL"] + "/chat/completions", data=b'{"stream": true}',
    headers={"Content-Type": "application/json", "Authorization": "Bearer dummy",
             "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "X-Api-Key": "other"})
print(urllib.request.urlopen(request).read())
"""
    async with coordinator() as (url, seen):
        result = await make(url).run(
            place.run(
                "python3",
                "-c",
                program,
                env={"MODEL_URL": "http://127.0.0.1:8092/v1"},
                network=Network.COORDINATOR,
                task_key="task-secret",
                trace_id=TRACE,
                iteration=4,
            )
        )

    assert result.output == "b'data: one\\n\\ndata: two\\n\\n'\n"
    (request,) = seen
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer task-secret"
    assert request.headers["traceparent"].split("-")[1] == TRACE
    assert request.headers["x-nestor-iteration"] == "4"
    assert not {"Cookie", "X-Forwarded-For", "X-Api-Key"} & set(request.headers)


async def test_the_tasks_key_is_nowhere_the_command_can_look(
    make: Make, place: Place
) -> None:
    line = (
        "env; cat /proc/self/environ /proc/1/environ /proc/$PPID/environ "
        "/proc/[0-9]*/cmdline; ls -lR /run/nestor; cat /run/nestor/*; true"
    )
    result = await make("http://127.0.0.1:9").run(
        place.sh(line, network=Network.COORDINATOR, task_key="task-secret")
    )

    assert "task-secret" not in result.output
    for path in place.home.rglob("*"):
        assert not path.is_file() or b"task-secret" not in path.read_bytes()


async def test_a_model_that_is_down_is_told_as_502(make: Make, place: Place) -> None:
    line = "curl -s -o /dev/null -w '%{http_code}' $MODEL_URL/models"
    result = await make("http://127.0.0.1:9").run(
        place.sh(
            line,
            env={"MODEL_URL": "http://127.0.0.1:8092/v1"},
            network=Network.COORDINATOR,
            task_key="k",
        )
    )

    assert result.output == "502"


async def test_network_coordinator_without_a_key_is_refused(
    sandbox: Sandbox, place: Place
) -> None:
    with pytest.raises(SandboxError, match="task key"):
        await sandbox.run(place.sh("true", network=Network.COORDINATOR))


@pytest.mark.parametrize(
    "host",
    ["{home}", "{home}/..", "{home}/tasks", "{home}/tasks/t1", "{home}/secret",
     "{home}/tasks/t1/run", "{home}/link", "/", "/proc", "/proc/self", "/sys", "/dev",
     "/run", "/etc", "~", "~/..", "{home}/absent"],
)  # fmt: skip
async def test_a_mount_that_shows_too_much_is_refused(
    sandbox: Sandbox, place: Place, host: str
) -> None:
    (place.home / "secret").write_text("s")
    (place.home / "link").symlink_to("/proc")
    path = Path(host.format(home=place.home)).expanduser()
    mounts = [Mount(host=path, inside="/m")]

    with pytest.raises(SandboxError, match="mount"):
        await sandbox.run(place.sh("touch /workspace/ran", mounts=mounts))

    assert not (place.tree / "ran").exists()


@pytest.mark.parametrize(
    "inside", ["/", "/usr", "/usr/bin", "/etc/passwd", "/proc", "/run/nestor", "/dev/x", "/tmp", "rel", "/a/../usr"],
)  # fmt: skip
async def test_a_mount_that_hides_the_sandbox_is_refused(
    sandbox: Sandbox, place: Place, inside: str
) -> None:
    with pytest.raises(SandboxError, match="mount"):
        await sandbox.run(
            place.sh("true", mounts=[Mount(host=place.tree, inside=inside)])
        )


async def test_a_run_folder_that_cannot_be_made_is_a_clear_error(
    sandbox: Sandbox, place: Place
) -> None:
    (place.home / "file").write_text("")
    with pytest.raises(SandboxError):
        await sandbox.run(place.sh("true", run_dir=place.home / "file" / "run"))


async def appears(path: Path, wait_s: float = 10) -> None:
    deadline = time.monotonic() + wait_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        await asyncio.sleep(0.02)


async def assert_still(path: Path) -> None:
    """Nobody writes to the file any more."""
    size = path.stat().st_size
    await asyncio.sleep(0.4)
    assert path.stat().st_size == size
