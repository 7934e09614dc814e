"""The stack as it is, with a clock around each text that its embedder is given.

    python -m bench.knowledge.timed_stack CLOCK.bin up

Everything after ``CLOCK.bin`` is what ``nestor`` gets. For each text three numbers are
appended: when it began and ended (CLOCK_MONOTONIC, the same in all processes) and the
seconds of the processor that its thread used meanwhile.
"""

import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

RECORD = struct.Struct("<ddd")


class Spent(NamedTuple):
    """What the embedder took between two moments. ``busy_s``: at least one text was in work."""

    texts: int
    busy_s: float
    cpu_s: float


def read(path: Path, began: float, ended: float) -> Spent:
    """Read what was noted within a time."""
    raw = path.read_bytes()
    whole = raw[: len(raw) // RECORD.size * RECORD.size]
    found = sorted(
        one for one in RECORD.iter_unpack(whole) if began <= one[0] and one[1] <= ended
    )
    busy, until = 0.0, began
    for start, end, _ in found:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return Spent(len(found), busy, sum(cpu for _, _, cpu in found))


def main() -> None:
    """Run ``nestor``."""
    from nestor.backends.embeddings.onnx_model import OnnxModel  # noqa: PLC0415
    from nestor.cli import main as cli  # noqa: PLC0415

    clock = Path(sys.argv[1]).open("ab", buffering=0)  # noqa: SIM115 - as long as the process
    embed = OnnxModel.vector

    def timed(self: OnnxModel, text: str, *, query: bool = False) -> list[float]:
        began, cpu = time.monotonic(), time.thread_time()
        try:
            return embed(self, text, query=query)
        finally:
            spent = time.thread_time() - cpu
            clock.write(RECORD.pack(began, time.monotonic(), spent))

    OnnxModel.vector = timed  # type: ignore[method-assign]
    sys.argv = ["nestor", *sys.argv[2:]]
    cli.main()


if __name__ == "__main__":
    main()
