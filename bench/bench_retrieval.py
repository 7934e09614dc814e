"""How good AIDB's retrieval is on judged collections: ``nestor bench retrieval`` over folders.

    python -m bench.bench_retrieval FOLDER [FOLDER …] --embeddings minilm [--json]

Each folder is a collection in BEIR's layout. The product's own command is run as a process
for each, and its answers are kept in bench/results/retrieval.json. A collection that is
measured again replaces its earlier row; the others stay.
"""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measured import RESULTS, commit, machine

RESULT = RESULTS / "retrieval.json"


def measured(folder: Path, embeddings: str | None) -> dict[str, Any]:
    """Run the command once."""
    chosen = ["--embeddings", embeddings] if embeddings else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nestor.cli", "bench", "retrieval"),
            *("--data", str(folder), "--json", *chosen),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def kept() -> dict[str, Any]:
    """Return what was measured before, by collection."""
    if not RESULT.exists():
        return {}
    found: dict[str, Any] = json.loads(RESULT.read_text())["collections"]
    return found


def main(options: argparse.Namespace) -> dict[str, Any]:
    collections = {} if options.json else kept()
    for folder in options.folders:
        print(folder, file=sys.stderr)
        found = measured(folder, options.embeddings)
        collections[found.pop("collection")] = found
    given = f" --embeddings {options.embeddings}" if options.embeddings else ""
    return {
        "command": f"python -m bench.bench_retrieval FOLDER …{given}",
        "at": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"commit": commit()},
        "collections": dict(sorted(collections.items())),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--embeddings", help="minilm, or a folder; else the settings")
    parser.add_argument("--json", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    result = json.dumps(main(given), indent=1)
    if given.json:
        print(result)
    else:
        RESULT.write_text(result + "\n")
