"""The child process that builds the graph: ``python -m nestor.backends.qdrant.graph``.

The engine holds the interpreter's lock for as long as it builds (minutes), which would
stop everything else in the process. So a copy of the shard is given to a child.

Reads one JSON line from stdin: ``folder``, ``dimension`` and ``parent_pid``. Exits 0 when the shard in
``folder`` has its graph. It ends with its parent, however that happens.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_NICE = 10
_M, _EF_CONSTRUCT, _FULL_SCAN_KB = 16, 128, 10_000
_WORTH_A_GRAPH_KB = 1000
_LARGEST_SEGMENT_KB = 16 * 1024 * 1024


class GraphBuilder:
    """One child at work."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self.stopped = False

    async def build(self, folder: Path, dimension: int) -> str | None:
        """Build the graph of the closed shard in ``folder``; returns what went wrong."""
        if self.stopped:
            return "stopped"
        # -P: nothing of the current folder is imported.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "nestor.backends.qdrant.graph"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._process = process
        if self.stopped:
            process.kill()
        told = {
            "folder": str(folder),
            "dimension": dimension,
            "parent_pid": os.getpid(),
        }
        try:
            _, said = await process.communicate(json.dumps(told).encode() + b"\n")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return None
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return last or f"it ended with {process.returncode}"

    def stop(self) -> None:
        """End it, now or as soon as it starts."""
        self.stopped = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def main() -> None:
    """Build one graph."""
    told = json.loads(sys.stdin.readline())
    # The kernel's way, since nothing of ours runs while the engine builds.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != told["parent_pid"]:
        sys.exit("the parent has ended")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.nice(_NICE)
    _build(told["folder"], told["dimension"])


def _build(folder: str, dimension: int) -> None:
    # Here, since what the parent needs of this module is light.
    import qdrant_edge as qdrant  # noqa: PLC0415

    from nestor.backends.qdrant.shard import config_of  # noqa: PLC0415

    engine = qdrant.EdgeShard.load(
        folder,
        config_of(
            dimension,
            hnsw_config=qdrant.HnswIndexConfig(
                m=_M,
                ef_construct=_EF_CONSTRUCT,
                full_scan_threshold=_FULL_SCAN_KB,
                # One core stays free for those who ask meanwhile.
                max_indexing_threads=max(1, (os.cpu_count() or 2) - 1),
            ),
            optimizers=qdrant.EdgeOptimizersConfig(
                default_segment_number=1,
                max_segment_size=_LARGEST_SEGMENT_KB,
                indexing_threshold=_WORTH_A_GRAPH_KB,
            ),
        ),
    )
    engine.optimize()
    engine.flush()
    engine.close()


if __name__ == "__main__":
    main()
