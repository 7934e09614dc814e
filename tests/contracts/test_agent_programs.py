"""Where the programs of agents are found, what is shown of them inside, what they are asked."""

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from nestor.backends.agents import backends
from nestor.backends.agents.installing import install
from nestor.backends.agents.program_agent import ProgramAgent
from nestor.backends.agents.programs import ABOUT, PROGRAMS, find
from nestor.backends.sandbox.mounts import refuses
from nestor.errors import InvalidInput, Misconfigured, Unavailable
from nestor.ports.agent import AgentLook

CLAUDE = PROGRAMS["claude"]


def script(path: Path, text: str = "echo 2.1.330", first: str = "#!/bin/sh") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{first}\n{text}\n")
    path.chmod(0o755)
    return path


def on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv(
        "PATH", os.pathsep.join([*map(str, folders), "/usr/bin", "/bin"])
    )


def claude(folder: Path | None = None) -> ProgramAgent:
    found = backends(folder)["claude"]
    assert isinstance(found, ProgramAgent)
    return found


def shown(folder: Path | None = None) -> tuple[list[str], list[Path]]:
    found = find(CLAUDE, folder)
    assert found is not None
    for mount in found.mounts:
        assert str(mount.host) == mount.inside
        assert not mount.writable
    return found.argv, [mount.host for mount in found.mounts]


def test_an_installed_program_is_shown_as_its_own_folder_and_before_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch, script(tmp_path / "bin" / "claude").parent)
    own = script(tmp_path / "agents" / "claude" / "bin" / "claude")
    (tmp_path / "agents" / "claude" / ABOUT).write_text("{}")

    assert shown(tmp_path / "agents") == ([str(own)], [own.parent.parent])


def test_a_folder_that_was_not_finished_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch)
    script(tmp_path / "claude" / "bin" / "claude")

    assert find(CLAUDE, tmp_path) is None


def test_of_a_package_of_npm_all_its_modules_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "lib" / "node_modules"
    program = script(modules / "@x" / "y" / "node_modules" / "z" / "cli.sh")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "claude").symlink_to(program)
    on_path(monkeypatch, tmp_path / "bin")

    assert shown() == ([str(program)], [modules])


def test_a_node_that_is_not_the_systems_is_shown_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = script(tmp_path / "node" / "bin" / "node", 'exec /bin/sh "$@"')
    program = script(tmp_path / "bin" / "claude", first="#!/usr/bin/env node")
    on_path(monkeypatch, program.parent, node.parent)

    assert shown() == ([str(node), str(program)], [program, node])


def test_an_environment_of_python_is_shown_with_the_python_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, made = tmp_path / "python", tmp_path / "venv"
    python = script(base / "bin" / "python3.11", 'exec /bin/sh "$@"')
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python").symlink_to(python)
    (made / "pyvenv.cfg").write_text(f"version = 3.11\nhome = {base}/bin\n")
    program = script(made / "bin" / "claude", first=f"#!{made}/bin/python")
    on_path(monkeypatch, program.parent)

    argv, places = shown()
    assert argv[-1] == str(program)
    assert places == [made, base]


def test_of_a_program_of_the_system_nothing_more_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_path(monkeypatch)
    true = msgspec.structs.replace(PROGRAMS["goose"], command="true")

    found = find(true, None)

    assert found is not None
    assert (found.argv, found.mounts) == ([str(Path("/usr/bin/true").resolve())], [])


def test_the_sandbox_shows_what_was_installed_and_nothing_else_of_the_data_folder(
    tmp_path: Path,
) -> None:
    for name in ("agents/claude", "qdrant"):
        (tmp_path / "home" / name).mkdir(parents=True)
    home = tmp_path / "home"
    assert refuses(home / "agents" / "claude", home=home) is None
    for other in (home, home / "agents", home / "qdrant"):
        assert refuses(other, home=home), other


def look(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> AgentLook:
    on_path(monkeypatch, script(folder / "bin" / "claude", text).parent)
    return claude().look()


def test_the_tested_version_is_told_without_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(
        monkeypatch,
        tmp_path,
        "echo '2.1.330 (Claude Code)'; echo $HOME > seen; cp seen $0.home",
    )
    assert (found.version, found.tested, found.fault) == ("2.1.330", "2.1.330", None)
    home = Path((tmp_path / "bin" / "claude.home").read_text().strip())
    assert home != Path.home()
    assert not home.exists()


@pytest.mark.parametrize(
    ("text", "version", "fault"),
    [
        ("echo 9.9.9", "9.9.9", "tests run 2.1.330, not 9.9.9"),
        ("echo no number", None, "ended with 0: no number"),
        ("echo 2.1.330; exit 3", None, "ended with 3: 2.1.330"),
        ("head -c 9 /dev/zero | tr '\\0' '\\377'", None, "ended with 0"),
    ],
)
def test_another_version_or_none_is_a_fault_with_a_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    version: str | None,
    fault: str,
) -> None:
    found = look(monkeypatch, tmp_path, text)
    assert found.version == version
    assert fault in (found.fault or "")
    assert found.remedy == "run: nestor agents install claude"


def test_a_program_that_does_not_answer_is_left_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestor.backends.agents.program_agent.ASK_S", 0.5)
    began = time.monotonic()
    found = look(monkeypatch, tmp_path, "sleep 4271 & sleep 4271")
    assert time.monotonic() - began < 20
    assert (found.version, found.path is not None) == (None, True)
    assert "does not say its version" in (found.fault or "")
    while _sleeping() and time.monotonic() - began < 20:  # killed, not yet gone
        time.sleep(0.05)
    assert not _sleeping()


def _sleeping() -> list[Path]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [entry] if entry.read_bytes() == b"sleep\x004271\0" else []
    return found


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_missing_program_is_told_with_its_remedy_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    on_path(monkeypatch)
    if shutil.which(PROGRAMS[name].command):
        monkeypatch.setenv("PATH", str(tmp_path))
    backend = backends(tmp_path)[name]
    found, why = backend.look(), backend.unavailable()
    assert (found.path, found.version) == (None, None)
    assert found.remedy
    assert why is not None
    assert found.remedy in why
    assert PROGRAMS[name].title in why


NPM = """\
test "$1" = install || exit 9
mkdir -p "$3/node_modules/@anthropic-ai/claude-code-linux-x64"
cd "$3/node_modules"
"""
"""Stands in for npm: prints, fails or writes what a test says."""


def installs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> Path:
    on_path(monkeypatch, script(tmp_path / "npm" / "npm", NPM + text).parent)
    return tmp_path / "agents"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "echo 'error: no such host' >&2; exit 1",
            "could not be fetched: error: no such host",
        ),
        (
            "echo '{\"packages\": {}}' > .package-lock.json",
            "another one than was tested",
        ),
    ],
)
def test_what_cannot_be_fetched_as_tested_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    folder = installs(monkeypatch, tmp_path, text)
    old = script(folder / "claude" / "bin" / "claude", "echo 1.0.0")

    with pytest.raises(Unavailable, match=why):
        install("claude", folder, say=lambda _: None)

    assert old.read_text() == "#!/bin/sh\necho 1.0.0\n"
    assert sorted(p.name for p in folder.iterdir()) == [".claude.lock", "claude"]


def lock_of(name: str, digest: str) -> str:
    package = f"node_modules/@anthropic-ai/{name}"
    about = f'{{"packages": {{"{package}": {{"integrity": "sha512-{digest}"}}}}}}'
    return f"echo '{about}' > .package-lock.json\n"


def test_what_does_not_run_is_not_installed_and_what_runs_is_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    digest = CLAUDE.source.sha512["x64"]  # type: ignore[union-attr]
    lock = lock_of("claude-code-linux-x64", digest)
    program = "@anthropic-ai/claude-code-linux-x64/claude"
    make = f"{lock}printf '#!/bin/sh\\necho VERSION\\n' > {program}"
    say: list[str] = []

    folder = installs(monkeypatch, tmp_path, make.replace("VERSION", "1.2.3"))
    with pytest.raises(Unavailable, match="instead of 2"):
        install("claude", folder, say=say.append)
    assert [p.name for p in folder.iterdir()] == [".claude.lock"]

    installs(monkeypatch, tmp_path, make.replace("VERSION", "2.1.330"))
    (folder / ".claude-left-behind").mkdir()
    assert install("claude", folder, say=say.append)
    assert not install("claude", folder, say=say.append)
    assert sorted(p.name for p in folder.iterdir()) == [".claude.lock", "claude"]
    assert claude(folder).look().fault is None
    assert "asking its version" in say


def test_without_npm_it_is_named_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match=r"Node\.js"):
        install("claude", tmp_path / "agents", say=lambda _: None)


@pytest.mark.parametrize("name", ["goose", "builtin", "../x", ""])
def test_what_nestor_does_not_install_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        install(name, tmp_path / "agents", say=lambda _: None)
    assert error.value.errors[0].field == "NAME"
    assert not (tmp_path / "agents").exists()


def test_every_environment_is_locked_with_hashes() -> None:
    folder = Path(sys.modules[install.__module__].__file__ or "").with_name("locks")
    for name in ("aider", "mini"):
        requirement = PROGRAMS[name].source.requirement  # type: ignore[union-attr]
        text = (folder / f"{name}.txt").read_text()
        assert f"\n{requirement} " in f"\n{text}"
        blocks = text.replace("\\\n", " ").strip().splitlines()
        assert all(" --hash=sha256:" in block for block in blocks)
