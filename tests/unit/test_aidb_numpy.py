"""numpy takes a while to import: nobody waits for it, and who needs none has none."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

PROGRAM = """
import asyncio, sys, threading
from pathlib import Path
from nestor.model.knowledge import EmbeddingStamp
from tests.unit.aidb_world import WALRUS, World

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            here = threading.current_thread() is threading.main_thread()
            print("imported in", "the loop" if here else "a thread", flush=True)

class Scripted:
    # An embedder elsewhere: vectors without numpy.
    async def stamp(self):
        return EmbeddingStamp(model="m", revision="1", dimension=3)
    async def embed(self, texts, *, query=False):
        return [[1.0, float(len(text) % 7), 1.0] for text in texts]
    async def close(self):
        pass

async def main():
    embeds = sys.argv[2] == "embeds"
    world = await World(Path(sys.argv[1])).open(embedder=Scripted() if embeds else None)
    sys.meta_path.insert(0, Finder())
    assert "numpy" not in sys.modules
    await world.aidb.start()
    print("started")
    await world.add("a.md", WALRUS)
    await world.add("b.md", "The walrus again.")
    if embeds:
        await world.embedded()
    found = await world.ask("walrus")
    assert len(found.items) == 2 and not found.degraded, found
    await world.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("embeds", ["imported in a thread", "started"]),
        ("words alone", ["started"]),
    ],
)
def test_numpy_is_imported_beside_the_loop_and_only_where_vectors_are(
    tmp_path: Path, what: str, said: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [one for one in done.stdout.splitlines() if not one.startswith("{")]
    assert lines == said
