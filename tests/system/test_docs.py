"""The docs are true: their commands run, their links lead somewhere, their tables are current."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import yaml

from nestor.model.task import Budget, Check, SandboxSpec, TaskSpec, WorkspaceSpec
from nestor.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
RUN, RUN_HERE = "run", "run in the project"
NOT_RUN = re.compile(
    r"not run: (needs a model of yours|it is what runs this page|it rewrites the recording|it takes long and needs the peers|it fetches hundreds of megabytes)"
)


@dataclass(frozen=True)
class Block:
    page: Path
    number: int
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer((ROOT / page).read_text())
    shell = [m for m in found if m["kind"] in {"bash", "sh", "shell", "console"}]
    return [Block(page, n, m["mark"] or "", m["text"]) for n, m in enumerate(shell, 1)]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_shell_block_says_whether_it_is_run(page: Path) -> None:
    for block in blocks(page):
        known = block.mark in {RUN, RUN_HERE} or NOT_RUN.fullmatch(block.mark)
        assert known, f"{page}, block {block.number}: {block.mark!r}"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A stack of its own; returns the environment in which `nestor` finds it."""
    home = tmp_path / "home"
    layers = ("DASHBOARD", "RALPH", "AIDB", "COORDINATOR", "LEARNING")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
    env = clean | {
        "NESTOR_HOME": str(home),
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
        **{f"NESTOR_{layer}_PORT": "0" for layer in layers},
    }
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            ["nestor", "up"], env=env, stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        deadline = time.monotonic() + 60
        while not (home / "run.json").exists():
            assert process.poll() is None, (tmp_path / "up.log").read_text()
            assert time.monotonic() < deadline, "not ready in 60 s"
            time.sleep(0.05)
        yield env
    finally:
        process.terminate()
        assert process.wait(30) == 0, "it drains and ends with 0"


def with_runnable_blocks(mark: str) -> list[Path]:
    return [page for page in PAGES if any(b.mark == mark for b in blocks(page))]


@pytest.mark.heavy
@pytest.mark.parametrize("page", with_runnable_blocks(RUN), ids=str)
def test_the_blocks_of_a_page_run_in_order(
    page: Path, stack: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    for block in blocks(page):
        if block.mark == RUN:
            run(at_its_ports(block, stack), folder, stack)


@pytest.mark.heavy
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", with_runnable_blocks(RUN_HERE), ids=str)
def test_the_blocks_that_stand_in_the_project_run(page: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
    for block in blocks(page):
        if block.mark == RUN_HERE:
            run(block, ROOT, env)


def at_its_ports(block: Block, env: dict[str, str]) -> Block:
    """Send what is meant for the default ports to those of the test's own stack."""
    home = Path(env["NESTOR_HOME"])
    ports = json.loads((home / "run.json").read_text())["ports"]
    text = block.text
    for layer, port in ports.items():
        default = Settings.model_fields[f"{layer}_port"].default
        text = text.replace(f"127.0.0.1:{default}", f"127.0.0.1:{port}")
    return dataclasses.replace(block, text=text)


def run(block: Block, folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", block.text],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    where = f"{block.page}, block {block.number}"
    assert done.returncode == 0, f"{where}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (ROOT / page.parent / target).exists(), f"{page}: {target}"


def test_the_reference_pages_are_what_the_code_says(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tools.make_reference", str(tmp_path)],
        cwd=ROOT,
        check=True,
    )
    written = {page.name: page.read_text() for page in tmp_path.iterdir()}
    committed = {
        page.name: page.read_text() for page in (ROOT / "docs/reference").iterdir()
    }
    assert committed == written, "run: make docs"


def test_the_examples_are_task_files() -> None:
    examples = sorted((ROOT / "examples").glob("*.yaml"))
    assert examples
    for example in examples:
        task = msgspec.convert(yaml.safe_load(example.read_text()), TaskSpec)
        assert task.goal, example
        assert task.all_checks, example


def test_every_field_of_a_task_file_is_explained() -> None:
    page = (ROOT / "docs/howto/task-file.md").read_text()
    for part in (TaskSpec, Check, WorkspaceSpec, Budget, SandboxSpec):
        for field in part.__struct_fields__:
            assert re.search(rf"`[\w.]*\b{field}[`.]", page), field


@pytest.mark.heavy
def test_the_example_without_a_model_is_verified(stack: dict[str, str]) -> None:
    command = ["nestor", "submit", "--file", "examples/write-greeting.yaml"]
    done = subprocess.run(
        [*command, "--wait", "--json"],
        cwd=ROOT,
        env=stack,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["status"] == "verified"


def test_make_help_names_every_target() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = [
        "setup",
        "demo",
        "up",
        "test",
        "test-fast",
        "prove",
        "lint",
        "bench",
        "docs",
        "clean",
        "lock",
    ]
    shown = [line.split()[1] for line in done.stdout.splitlines()]
    assert [name for name in shown if name != "help"] == wanted
