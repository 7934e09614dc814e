"""Calls that SQL does not take, whatever is tried: kept where a person finds them.

The file has the lines of a journal. Once the fault is mended it can be given the name of
one (``ID.0.jsonl``, beside an empty ``ID.lock``), and the next start folds it.
"""

import os
from pathlib import Path

from nestor.backends.files import journal_lines as lines
from nestor.backends.files.append_file import open_folder, open_regular
from nestor.errors import Unavailable
from nestor.ports.call_journal import Settled
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger

_log = get_logger("nestor.call_journal")


def keep_aside(folder: Path, settled: Settled, why: str) -> None:
    """Write calls to ``FOLDER/ID.aside.bad``, durably. Raises ``Unavailable``.

    A taker that dies just after may leave a call there twice.
    """
    path = folder / f"{settled.journal}{lines.ASIDE}"
    said = [lines.ended(at, call) for at, call in enumerate(settled.calls, 1)]
    try:
        _append(path, b"".join([lines.HEADER, *said]))
    except OSError as error:
        message = f"{path.name} cannot be written: {error.strerror or error}"
        raise Unavailable(message) from error
    metrics.CALLS_ASIDE.inc(len(settled.calls))
    _log.error(
        "calls_set_aside",
        file=path.name,
        calls=[call.interaction_id for call in settled.calls],
        error=why,
    )


def _append(path: Path, data: bytes) -> None:
    folder = open_folder(path.parent)
    try:
        fd = open_regular(path, folder)
        try:
            size = os.fstat(fd).st_size
            try:
                written = 0
                while written < len(data):
                    written += os.write(fd, data[written:])
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)  # half of it would spoil what comes next
                raise
        finally:
            os.close(fd)
        os.fsync(folder)
    finally:
        os.close(folder)
