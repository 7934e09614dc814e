"""Plant one fault at a time in a copy of the tree and see whether its test notices.

    python -m tools.plant_faults            # all
    python -m tools.plant_faults outbox     # those whose name holds a word

A test is trusted once it has failed. The first row has no fault and must stay green.
Prints CAUGHT or MISSED a row, exits 1 when one was missed, and keeps the newest result of
each fault in ``bench/results/faults.json``.
"""

import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import faults
from tools.faults.fault import Fault

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "faults.json"
_PARTS = [
    importlib.import_module(f"tools.faults.{part.name}")
    for part in pkgutil.iter_modules(faults.__path__)
]
FAULTS: tuple[Fault, ...] = tuple(
    sorted(
        (row for part in _PARTS for row in getattr(part, "FAULTS", ())),
        key=lambda row: bool(row.edits),  # the control first
    )
)


def main() -> int:
    """Run the faults that the arguments name; each result is kept at once."""
    words = sys.argv[1:]
    chosen = [f for f in FAULTS if not words or any(word in f.name for word in words)]
    rows = []
    for fault in chosen:
        rows.append(_plant(fault))
        _keep(rows[-1])
    return 1 if any(row["result"] == "MISSED" for row in rows) else 0


def _keep(row: dict[str, str]) -> None:
    """Put a row in the place of its last run; rows of faults that are gone go."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    found = {old["fault"]: old for old in kept} | {row["fault"]: row}
    rows = [found[fault.name] for fault in FAULTS if fault.name in found]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def _plant(fault: Fault) -> dict[str, str]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "copy"
        for part in ("src", "tests", "tools"):
            shutil.copytree(
                ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / ".cache").mkdir()
        (copy / ".cache" / "agents").symlink_to((ROOT / ".cache" / "agents").resolve())
        for name, text, other in fault.edits:
            path = copy / "src" / "nestor" / name
            source = path.read_text()
            if text not in source:
                raise SystemExit(f"error: {fault.name}: {name} has no {text!r}")
            path.write_text(source.replace(text, other, 1))
        run = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*run, f"--basetemp={folder}/t", *fault.tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}"},
            capture_output=True,
            text=True,
            check=False,
        )
    last = (done.stdout.strip().splitlines() or [done.stderr])[-1]
    if done.returncode not in {0, 1}:  # 1: a test failed; others: none was run
        raise SystemExit(f"error: {fault.name}: pytest said {done.returncode}: {last}")
    noticed = done.returncode == 1
    result = "CAUGHT" if noticed == bool(fault.edits) else "MISSED"
    if not fault.edits:
        result = "GREEN" if not noticed else "MISSED"
    print(f"{result:6} {fault.name}: {last[:100]}", flush=True)
    return {"fault": fault.name, "result": result, "test": " ".join(fault.tests)}


if __name__ == "__main__":
    sys.exit(main())
