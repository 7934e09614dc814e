"""When an environment that was made before may serve again, and what is kept of them."""

import os
import subprocess
from pathlib import Path

import pytest

from nestor.backends.git.workspaces import GitWorkspaces
from nestor.errors import WorkspaceError
from nestor.model.task import TaskSpec, WorkspaceSpec
from nestor.ports.sandbox import SandboxResult, SandboxRun
from nestor.ralph.environment import Environments

PIP = "python3 -m venv $NESTOR_SETUP/venv"
INSTALL = "$NESTOR_SETUP/venv/bin/pip install -q -r requirements.txt 'pytest>=8'"
LOCKED = "a==1 \\\n    --hash=sha256:00ff\nb[extra]>=2  # why\n"


class Writing:
    """A sandbox that writes a file of ``size`` into each environment, or fails."""

    name = "fake"

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.size = 1000
        self.fails = False

    def probe(self) -> str | None:
        return None

    def refuses_mount(self, host: Path) -> str | None:  # noqa: ARG002
        return None

    async def kill(self, run_dir: Path) -> None:
        pass

    async def run(self, run: SandboxRun) -> SandboxResult:
        self.commands.append(run.argv[-1])
        place = next(m.host for m in run.mounts if m.inside == "/setup")
        (place / "program").write_bytes(b"x" * self.size)
        code = 1 if self.fails else 0
        return SandboxResult(exit_code=code, output="", duration_s=0, sandboxed=True)


class Rig:
    def __init__(self, root: Path, *, kept_bytes: int = 1 << 40) -> None:
        self.root = root
        self.home = root / "home"
        self.sandbox = Writing()
        self.workspaces = GitWorkspaces(self.home)
        self.environments = Environments(
            self.home, self.workspaces, self.sandbox, kept_bytes=kept_bytes
        )
        self._tasks = 0

    def repository(self, name: str, files: dict[str, str]) -> Path:
        repo = self.root / name
        for path, text in files.items():
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            (repo / path).write_text(text)
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "x")):
            subprocess.run(["git", *words], cwd=repo, check=True, capture_output=True)
        return repo

    async def ready(
        self, repo: Path, *setup: str, submitter: str = "a", ends: bool = True
    ) -> str:
        self._tasks += 1
        task = f"t{self._tasks}"
        place = WorkspaceSpec(repo=str(repo))
        spec = TaskSpec(task_id=task, task="x", setup=list(setup), workspace=place)
        clone = await self.workspaces.prepare(task, spec)
        found = await self.environments.ready(
            task, spec, base=clone.base, tree_id=clone.tree, submitter=submitter
        )
        if ends:
            await self.workspaces.discard(task)
        assert found is not None
        assert (Path(found) / "program").is_file()
        return found


@pytest.mark.parametrize(
    ("setup", "changed", "again"),
    [
        ([PIP, INSTALL], {"app.py": "2"}, True),
        ([PIP, INSTALL], {"requirements.txt": "a==2\n"}, False),
        ([PIP], {"requirements.txt": "a==2\n"}, True),
        (["npm ci --ignore-scripts"], {"app.py": "2"}, True),
        (["npm ci --ignore-scripts"], {".npmrc": "registry=x"}, False),
        (["npm ci"], {"scripts/after.js": "2"}, False),
        (["make deps"], {"Makefile": "deps:\n\tcp evil $NESTOR_SETUP/bin\n"}, False),
        ([PIP, "make deps"], {"Makefile": "deps:\n\techo 2\n"}, False),
        (["pip install ."], {"app.py": "2"}, False),
        (["pip install -r requirements.txt; make"], {"app.py": "2"}, False),
        (["pip install a > requirements.txt"], {"app.py": "2"}, False),
        (["pip install $(cat app.py)"], {"app.py": "2"}, False),
        (["pip install -r requirements.txt -r dev.txt"], {"vendored/a.py": "2"}, False),
        (["pip install a.whl"], {"a.whl": "2"}, False),
        (["./pip install a"], {"pip": "2"}, False),
        (["/setup/../workspace/pip install a"], {"pip": "2"}, False),
        (["pip install 'a"], {"app.py": "2"}, False),
    ],
)
async def test_an_environment_serves_again_while_what_its_commands_read_is_the_same(
    tmp_path: Path, setup: list[str], changed: dict[str, str], again: bool
) -> None:
    rig = Rig(tmp_path)
    files = {
        "requirements.txt": LOCKED,
        "dev.txt": "./vendored\n",
        "package.json": "{}",
        "Makefile": "deps:\n\techo 1\n",
        "app.py": "1",
    }
    repo = rig.repository("app", files)
    first = await rig.ready(repo, *setup)
    assert await rig.ready(repo, *setup) == first
    rig.repository("app", changed)

    second = await rig.ready(repo, *setup)

    assert (second == first) == again
    assert len(rig.sandbox.commands) == len(setup) * (1 if again else 2)


async def test_an_environment_is_of_one_repository_and_one_submitter(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    files = {"requirements.txt": "a==1\n"}
    mine, other = rig.repository("mine", files), rig.repository("other", files)

    made = {
        await rig.ready(mine, PIP, INSTALL),
        await rig.ready(mine, PIP, INSTALL, submitter="b"),
        await rig.ready(other, PIP, INSTALL),
    }

    assert len(made) == 3


@pytest.mark.parametrize("word", ["a" * 300, "a/" * 3000, "x" * 5000 + ".whl"])
async def test_a_long_word_of_a_command_is_no_fault(tmp_path: Path, word: str) -> None:
    rig = Rig(tmp_path)
    repo = rig.repository("app", {"a": ""})
    assert await rig.ready(repo, f"echo {word} | base64 -d")
    assert await rig.ready(repo, f"pip install -r {word}")


async def test_what_the_disk_refuses_is_told_as_a_fault_of_the_workspace(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    repo = rig.repository("app", {"a": ""})
    (rig.home / "setup").parent.mkdir(parents=True, exist_ok=True)
    (rig.home / "setup").write_text("no folder")
    with pytest.raises(WorkspaceError, match="environment of setup"):
        await rig.ready(repo, PIP)


async def test_a_setup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.sandbox.fails = True
    with pytest.raises(WorkspaceError, match=r"setup\.0"):
        await rig.ready(rig.repository("app", {"a": ""}), "make")
    assert list((rig.home / "setup").iterdir()) == []


async def test_beyond_the_limit_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, kept_bytes=2_500_000)
    rig.sandbox.size = 1_000_000
    repo = rig.repository("app", {"a": ""})
    (rig.home / "setup" / "rubble" / "tree").mkdir(parents=True)
    running = Path(await rig.ready(repo, "make running", ends=False))
    made = [Path(await rig.ready(repo, f"make {n}")) for n in range(4)]
    assert [place.exists() for place in made] == [False, True, True, True]

    for age, place in enumerate(made[1:]):
        os.utime(place.parent / "complete", (age, age))
    assert await rig.ready(repo, "make 1") == str(made[1]), "now the newest"
    made.append(Path(await rig.ready(repo, "make 4")))

    assert [place.exists() for place in made] == [False, True, False, True, True]
    assert running.exists(), "its task has not ended"
    left = {path.name for path in (rig.home / "setup").iterdir()}
    kept = (running, made[1], made[3], made[4])
    assert left == {path.parent.name for path in kept}
