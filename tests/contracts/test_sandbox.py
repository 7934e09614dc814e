"""What every Sandbox promises of a command; limits and networks have files of their own."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from tests.contracts.sandbox_place import (
    Make,
    Place,
    appears,
    assert_still,
)

from nestor.errors import SandboxError
from nestor.ports.sandbox import Mount, Sandbox


async def test_exit_code_output_and_standard_input_come_through(
    sandbox: Sandbox, place: Place
) -> None:
    result = await sandbox.run(place.sh("cat; echo err >&2; exit 3", stdin=b"in\n\xff"))

    assert (result.exit_code, result.signal) == (3, None)
    assert result.output == "in\n\ufffderr\n"
    assert (result.timed_out, result.cancelled, result.truncated) == (False,) * 3
    assert result.sandboxed is (sandbox.name != "none")
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
    "host",
    ["{home}/tasks/other/history.git", "{home}/setup/digest/tree", "{home}/away"],
)
async def test_what_another_task_made_is_not_shown_to_who_asks_for_it(
    sandbox: Sandbox, place: Place, host: str
) -> None:
    for part in ("tasks/other/history.git", "setup/digest/tree"):
        (place.home / part).mkdir(parents=True)
    # Let in as a plain folder, it may be a link by the time of the run.
    (place.home / "away").symlink_to(place.home / "tasks/other/history.git")
    path = host.format(home=place.home)

    assert "data folder" in (sandbox.refuses_mount(Path(path)) or "")
    mounts = [Mount(host=Path(path), inside=path)]
    with pytest.raises(SandboxError, match="data folder"):
        await sandbox.run(place.sh("true", mounts=mounts))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (".npmrc", False),
        (".codex", False),
        (".claude", False),
        (".cargo", False),
        (".config", False),
        (".config/gh/hosts.yml", False),
        (".local/share", False),
        (".claude/local", True),
        (".cargo/registry", True),
        (".config/app", True),
        (".local/share/uv/tools", True),
    ],
)
def test_places_of_keys_are_refused_and_what_holds_them(
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    shown: bool,
) -> None:
    person = tmp_path / "person"
    (person / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(person))

    why = sandbox.refuses_mount(person / name)

    assert (why is None) == shown, why


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
