"""What remembering a folder of Markdown costs, and remembering it again when 1 % changed.

    python -m bench.bench_ingest --model FOLDER [--files 10000] [--peer llamaindex] [--json]

``FOLDER`` is a model of embeddings (``nestor models add minilm`` builds one in the data
folder). The whole stack runs in a scratch folder (``nestor up``; a clock around each text
that is embedded), ``nestor kb add`` is a process of its own, and an ingest ends when every
chunk is in the index with its vector. LlamaIndex's ``IngestionPipeline`` takes the same
files with the same embedder and keeps its stores in files, a process for each ingest.
Written to bench/results/ingest.json. Who was measured before with as many files and is not
now stays there, and of earlier runs the ratios stay: a busy machine changes them much.

The peer's environment is made by:

    .venv/bin/uv venv --python .venv/bin/python .cache/peers/llamaindex
    .venv/bin/uv pip install --python .cache/peers/llamaindex/bin/python \
        llama-index-core onnxruntime tokenizers numpy msgspec
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from bench.knowledge import files, timed_stack
from bench.measured import PEERS, RESULTS, ROOT, commit, machine, version_in

from nestor.backends.embeddings.folder import read_about

RESULT = RESULTS / "ingest.json"
PEER = PEERS / "llamaindex/bin/python"
SHARE, SEED = 0.01, 1
LOOK_S, PATIENCE_S, STALLED_S = 0.1, 60.0, 300.0
NEARLY = 300
EARLIER = 9
_TICKS = os.sysconf("SC_CLK_TCK")


class Stack:
    """``nestor up`` in a folder of its own."""

    def __init__(self, home: Path, model: Path) -> None:
        self._home = home
        self._clock = home.with_name("clock.bin")
        self._log = home.with_name("stack.log").open("wb")
        layers = ("DASHBOARD", "RALPH", "AIDB", "COORDINATOR", "LEARNING")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
        self._env = clean | {
            "NESTOR_HOME": str(home),
            "NESTOR_EMBEDDINGS_MODEL": str(model),
            "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
            **{f"NESTOR_{layer}_PORT": "0" for layer in layers},
        }

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.knowledge.timed_stack"),
                *(str(self._clock), "up"),
            ],
            cwd=self._home.parent,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        until = time.monotonic() + PATIENCE_S
        while not (self._home / "run.json").exists():
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(Path(self._log.name).read_text())
            time.sleep(LOOK_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._log.close()

    def add(self, folder: Path) -> dict[str, Any]:
        """Run ``nestor kb add`` and wait until everything is searchable both ways."""
        cpu = tree_cpu_s(self._process.pid)
        children = os.times()
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "nestor.cli", "kb", "add", str(folder), "--json"],
            cwd=self._home.parent,
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        added = time.monotonic()
        counts = self._settled()
        ended = time.monotonic()
        now = os.times()
        client = now.children_user - children.children_user
        client += now.children_system - children.children_system
        whole = tree_cpu_s(self._process.pid) - cpu + client
        spent = timed_stack.read(self._clock, began, ended)
        said = json.loads(done.stdout)
        return {
            "wall_s": round(ended - began, 3),
            "command_s": round(added - began, 3),
            "cpu_s": round(whole, 3),
            "texts_embedded": spent.texts,
            "embedder_busy_s": round(spent.busy_s, 3),
            "embedder_cpu_s": round(spent.cpu_s, 3),
            "embedder_share_of_time": _share(spent.busy_s, ended - began),
            "embedder_share_of_cpu": _share(spent.cpu_s, whole),
            "added": said["added"],
            "unchanged": said["unchanged"],
            "chunks": counts["chunks"],
        }

    def _settled(self) -> dict[str, int]:
        last: dict[str, int] = {}
        since = time.monotonic()
        while True:
            counts = self._counts()
            if not counts["waiting"] and not counts["without_vector"]:
                return counts
            if counts != last:
                last, since = counts, time.monotonic()
            if time.monotonic() - since > STALLED_S:
                raise SystemExit(f"nothing moves: {counts}; {self._log.name}")
            # Counting takes the processor from those who are measured.
            left = counts["waiting"] + counts["without_vector"]
            time.sleep(LOOK_S if left < NEARLY else 10 * LOOK_S)

    def _counts(self) -> dict[str, int]:
        run = json.loads((self._home / "run.json").read_text())
        key = (self._home / "api-key").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{run['ports']['aidb']}/documents?limit=1",
            headers={"Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            found: dict[str, int] = json.load(reply)["counts"]
        return found


def llamaindex(folder: Path, store: Path, model: Path) -> dict[str, Any]:
    """Ingest once by LlamaIndex."""
    script = Path(__file__).parent / "knowledge/llamaindex_peer.py"
    began = time.monotonic()
    done = subprocess.run(
        [str(PEER), str(script), str(folder), str(store), str(model)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall = time.monotonic() - began
    found = json.loads(done.stdout.splitlines()[-1])
    spent = found["embedder"]
    return {
        "wall_s": round(wall, 3),
        "persist_s": round(found["persist_s"], 3),
        "cpu_s": round(found["cpu_s"], 3),
        "texts_embedded": spent["texts"],
        "embedder_busy_s": round(spent["busy_s"], 3),
        "embedder_cpu_s": round(spent["cpu_s"], 3),
        "embedder_share_of_time": _share(spent["busy_s"], wall),
        "embedder_share_of_cpu": _share(spent["cpu_s"], found["cpu_s"]),
    }


def tree_cpu_s(pid: int) -> float:
    """Seconds of the processor that a process, its children and its dead children used."""
    parents: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        number = int(path.parent.name)
        parents.setdefault(int(fields[1]), []).append(number)
        used[number] = sum(int(one) for one in fields[11:15]) / _TICKS
    total, todo = 0.0, [pid]
    while todo:
        one = todo.pop()
        total += used.get(one, 0.0)
        todo += parents.get(one, [])
    return total


def measure(options: argparse.Namespace) -> dict[str, Any]:
    model = options.model.resolve()
    with tempfile.TemporaryDirectory(prefix="nestor-bench-") as scratch:
        folder = Path(scratch) / "notes"
        files.write_all(folder, options.files, SEED)
        ours: dict[str, Any] = {}
        home = Path(scratch) / "home"
        with Stack(home, model) as stack:
            _say("first ingest")
            ours["first"] = stack.add(folder)
            _say("nothing changed")
            ours["unchanged"] = stack.add(folder)
            changed = files.change(folder, options.files, SHARE, SEED)
            _say(f"{changed} files changed")
            ours["again"] = stack.add(folder)
        systems = {"nestor": ours}
        if options.peer and PEER.exists():
            theirs: dict[str, Any] = {}
            notes, store = Path(scratch) / "peer-notes", Path(scratch) / "peer-store"
            files.write_all(notes, options.files, SEED)
            _say("LlamaIndex: first ingest")
            theirs["first"] = llamaindex(notes, store, model)
            _say("LlamaIndex: nothing changed")
            theirs["unchanged"] = llamaindex(notes, store, model)
            files.change(notes, options.files, SHARE, SEED)
            _say("LlamaIndex: again")
            theirs["again"] = llamaindex(notes, store, model)
            systems["llamaindex"] = theirs
    for one in systems.values():
        one["measured"] = {
            "at": datetime.now(UTC).isoformat(timespec="minutes"),
            "commit": commit(),
            "load": machine()["load"],
        }
        one["first_by_again"] = round(
            one["first"]["wall_s"] / one["again"]["wall_s"], 2
        )
        one["first_by_again_cpu"] = round(
            one["first"]["cpu_s"] / one["again"]["cpu_s"], 2
        )
    versions = {"commit": commit()}
    if "llamaindex" in systems:
        versions["llama-index-core"] = version_in(PEER, "llama-index-core")
    return {
        "command": f"python -m bench.bench_ingest {_told(options)}",
        "at": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions,
        "files": options.files,
        "changed": changed,
        "embedder": read_about(model).name,
        "revision": read_about(model).revision,
        "systems": systems,
    }


def merged(new: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    """Keep who is not measured anew, and the ratios of earlier runs, newest first."""
    if old is None or old["files"] != new["files"]:
        return new
    systems = old["systems"] | new["systems"]
    for name in new["systems"].keys() & old["systems"].keys():
        before = old["systems"][name]
        run = {
            "first_by_again": before["first_by_again"],
            "first_by_again_cpu": before["first_by_again_cpu"],
            "embedder_share_of_time": before["first"]["embedder_share_of_time"],
            "measured": before["measured"],
        }
        earlier = [run, *before.get("earlier", [])][:EARLIER]
        systems[name] = {**systems[name], "earlier": earlier}
    return {**new, "versions": old["versions"] | new["versions"], "systems": systems}


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4)


def _told(options: argparse.Namespace) -> str:
    peer = f" --peer {options.peer}" if options.peer else ""
    return f"--model {options.model.name} --files {options.files}{peer}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--peer", choices=["llamaindex"])
    parser.add_argument("--json", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    found = measure(given)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        known = json.loads(RESULT.read_text()) if RESULT.exists() else None
        RESULT.write_text(json.dumps(merged(found, known), indent=1) + "\n")
