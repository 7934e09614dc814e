"""Processes that are measured: started, watched through /proc, ended."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return a process and all that come from it, children of any of its threads."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [
            one for child in children.read_text().split() for one in tree(int(child))
        ]
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds so far: all threads, children, and those that ended (steps of 10 ms)."""
    total = 0
    for one in tree(pid):
        # After the name, which may hold anything: state is field 3, utime is field 14.
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / _TICKS


def resident_mib(pid: int) -> float:
    """MiB of resident memory of a process and all that come from it."""
    pages = sum(
        int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in tree(pid)
    )
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


class Process:
    """A child in a group of its own, its output in a file."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        says_its_port: bool = False,
    ) -> None:
        self._log = log
        with log.open("ab") as output:
            self.child = subprocess.Popen(
                [str(part) for part in argv],
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if says_its_port else output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self.child.pid
        self.port = 0
        if says_its_port:
            assert self.child.stdout is not None
            line = self.child.stdout.readline()
            if not line:
                raise SystemExit(f"did not start:\n{self.said()}")
            self.port = int(line)

    def said(self) -> str:
        """Return the end of what it wrote."""
        return self._log.read_text(errors="replace")[-4000:]

    def until(self, ready: Callable[[], bool], *, within_s: float = 90.0) -> float:
        """Wait until it is ready; returns the seconds that took."""
        began = time.monotonic()
        while not ready():
            if self.child.poll() is not None or time.monotonic() - began > within_s:
                raise SystemExit(f"did not start:\n{self.said()}")
            time.sleep(0.02)
        return time.monotonic() - began

    def stop(self) -> None:
        """End it as an operator does; kill what is left after 15 s."""
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
                self.child.wait()
        if self.child.stdout is not None:
            self.child.stdout.close()
