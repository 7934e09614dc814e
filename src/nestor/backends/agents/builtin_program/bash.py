"""Starting programs: to their end or a limit, and then nothing of them is left."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from .faults import ToolError
from .limits import OUTPUT_LIMIT
from .output import Ends

_LINGER_S = 1.0
_READ_BYTES = 64 * 1024


class Ran(NamedTuple):
    """``code`` None: killed at the time limit."""

    code: int | None
    output: str


def run_bash(command: str, timeout_s: float) -> str:
    """Run a command line in a shell; returns what to tell the model."""
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    ran = run_program([shell, "-c", command], timeout_s, OUTPUT_LIMIT)
    if ran.code is None:
        return f"killed after {timeout_s:.3g} s\n{ran.output}"
    return f"exit code: {ran.code}\n{ran.output}"


def run_program(argv: list[str], timeout_s: float, output_limit: int) -> Ran:
    """Run a program to its end or the limit, then kill all of its group.

    Raises ToolError when it cannot be started.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
    except (OSError, ValueError) as error:  # too long, a NUL, a lone surrogate
        raise ToolError("the command cannot be started as written") from error
    output = Ends(output_limit)
    try:
        in_time = _collect(process, output, timeout_s)
    finally:
        _kill_group(process)
    code = process.wait()
    return Ran(code if in_time else None, output.text())


def _collect(process: subprocess.Popen[bytes], output: Ends, timeout_s: float) -> bool:
    """Read until the command has ended; False when it did not in time.

    What it leaves in the background may hold the pipe open: it gets a moment, no more.
    """
    pipe = process.stdout
    if pipe is None:
        return True
    limit = time.monotonic() + timeout_s
    os.set_blocking(pipe.fileno(), False)
    with pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        ended_at = None
        while True:
            now = time.monotonic()
            if ended_at is None and process.poll() is not None:
                ended_at = now
            if ended_at is None and now > limit:
                return False
            if ended_at is not None and now > ended_at + _LINGER_S:
                return True
            if selector.select(0.05):
                data = pipe.read(_READ_BYTES)
                if data == b"":
                    return _wait(process, limit)
                output.add(data or b"")


def _wait(process: subprocess.Popen[bytes], limit: float) -> bool:
    """The output is closed; the command itself may still run."""
    try:
        process.wait(max(0.0, limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
