"""Git as a program: which environment it gets, how long it may take, how it fails.

Nothing of the machine's or the user's configuration is read, no hook, filter, monitor
or transport of a repository is ever started, and arguments are lists.
"""

import asyncio
import os
import resource
import shutil
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from nestor.backends import child_process
from nestor.backends.child_process import ChildProcess
from nestor.errors import WorkspaceError

TIMEOUT_S = 300.0
_GRACE_S = 2.0
IDENTITY = ("Nestor", "nestor@localhost")
MEMORY_LIMIT_BYTES = 4 * 1024**3
"""Of address space, for one git: who fills a working tree decides what git must hold."""
_CHUNK = 256 * 1024

CONFIG: Mapping[str, str] = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    # Written by whoever owns the objects, and believed without a check otherwise.
    "core.commitGraph": "false",
    "core.attributesFile": "/dev/null",
    # Above it a file is no text: to compare one takes 40 times its size.
    "core.bigFileThreshold": "8m",
    "core.packedGitWindowSize": "64m",
    "core.packedGitLimit": "1g",
    "core.excludesFile": "/dev/null",
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.symlinks": "true",
    "core.fileMode": "true",
    "core.ignoreCase": "false",
    "core.quotePath": "false",
    "fetch.unpackLimit": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "pack.threads": "4",
    "pack.windowMemory": "256m",
    "protocol.ext.allow": "never",
    "safe.directory": "*",
    "submodule.recurse": "false",
}


def environment(*, allow_protocol: str = "none") -> dict[str, str]:
    """Return the whole environment of a git process: nothing is inherited."""
    name, email = IDENTITY
    return {
        "PATH": os.defpath,
        "HOME": "/nonexistent",
        "XDG_CONFIG_HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_ALLOW_PROTOCOL": allow_protocol,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_AUTHOR_EMAIL": email,
        "GIT_AUTHOR_NAME": name,
        "GIT_COMMITTER_EMAIL": email,
        "GIT_COMMITTER_NAME": name,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
        # Each would reserve 64 MiB of the address space for every thread.
        "MALLOC_ARENA_MAX": "2",
    }


class GitMissing(WorkspaceError):  # noqa: N818 - names say what happened
    """There is no git in PATH."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Where git works. Paths are always told, so that git looks for nothing itself."""

    git_dir: Path | None = None
    work_tree: Path | None = None
    index: Path | None = None
    objects: Path | None = None
    """Another object store than the repository's own."""
    cwd: Path | None = None
    config: Mapping[str, str] = field(default_factory=dict)

    async def run(
        self,
        *args: str,
        stdin: bytes | Path = b"",
        stdout: Path | None = None,
        ok: tuple[int, ...] = (0,),
        limit: int | None = None,
        allow_protocol: str = "none",
        env: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> bytes:
        """Run one git command and return what it printed (``b""`` with ``stdout``).

        ``limit``: stop git after that many bytes and return exactly these.
        Raises WorkspaceError with git's last error when the exit code is not in ``ok``.
        """
        program = shutil.which("git")
        if program is None:
            raise GitMissing("git is not installed: install it and try again")
        options = [
            part
            for key, value in {**CONFIG, **self.config}.items()
            for part in ("-c", f"{key}={value}")
        ]
        run = _Run(
            argv=[program, *options, *args],
            env={
                **environment(allow_protocol=allow_protocol),
                **self._places(),
                **(env or {}),
            },
            cwd=self.cwd or self.work_tree or self.git_dir or Path("/"),
        )
        code, out, error = await run.to_end(
            stdin=stdin, stdout=stdout, limit=limit, timeout_s=timeout_s
        )
        if code not in ok:
            raise WorkspaceError(f"git {args[0]}: {_last_line(error, code)}")
        return out

    async def line(self, *args: str, stdin: bytes | Path = b"") -> str:
        """Run a command that prints one line of text."""
        return (await self.run(*args, stdin=stdin)).decode(errors="replace").strip()

    def _places(self) -> dict[str, str]:
        named = {
            "GIT_DIR": self.git_dir,
            "GIT_WORK_TREE": self.work_tree,
            "GIT_INDEX_FILE": self.index,
            "GIT_OBJECT_DIRECTORY": self.objects,
        }
        return {name: str(path) for name, path in named.items() if path is not None}


@dataclass(frozen=True, slots=True)
class _Run:
    argv: list[str]
    env: dict[str, str]
    cwd: Path

    async def to_end(
        self,
        *,
        stdin: bytes | Path,
        stdout: Path | None,
        limit: int | None,
        timeout_s: float,
    ) -> tuple[int, bytes, bytes]:
        with ExitStack() as files:
            source: int | IO[bytes] = child_process.PIPE
            target: int | IO[bytes] = child_process.PIPE
            if isinstance(stdin, Path):
                source = files.enter_context(stdin.open("rb"))
            if stdout is not None:
                target = files.enter_context(stdout.open("wb"))
            try:
                # In a session of its own, so that its own children end with it.
                process = await child_process.start(
                    *self.argv,
                    env=self.env,
                    cwd=self.cwd,
                    stdin=source,
                    stdout=target,
                )
            except OSError as failure:  # the folder is gone, or no process can be made
                message = f"git cannot be started in {self.cwd}: {failure.strerror}"
                raise WorkspaceError(message) from failure
        _limit_memory(process.pid)
        try:
            async with asyncio.timeout(timeout_s):
                _, (out, cut), (error, _), code = await asyncio.gather(
                    _feed(process.stdin, stdin),
                    _read(process, process.stdout, limit),
                    _read(process, process.stderr, None),
                    process.wait(),
                )
        except TimeoutError as late:
            message = f"git took longer than {timeout_s:g} s"
            raise WorkspaceError(message) from late
        finally:
            if process.returncode is None:
                await _end(process)
            process.close()
        return (0 if cut else code), out, error


def _limit_memory(pid: int) -> None:
    # From here and not before it starts: code between fork and exec is not safe here.
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES,) * 2)


async def _feed(pipe: asyncio.StreamWriter | None, data: bytes | Path) -> None:
    if pipe is None or isinstance(data, Path):
        return
    with suppress(BrokenPipeError, ConnectionResetError):  # its exit code says why
        for start in range(0, len(data), _CHUNK):
            pipe.write(data[start : start + _CHUNK])
            await pipe.drain()
    pipe.close()


async def _read(
    process: ChildProcess,
    pipe: asyncio.StreamReader | None,
    limit: int | None,
) -> tuple[bytes, bool]:
    out = bytearray()
    while pipe is not None and (chunk := await pipe.read(_CHUNK)):
        out += chunk
        if limit is not None and len(out) > limit:
            _signal(process, signal.SIGKILL)
            return bytes(out[:limit]), True
    return bytes(out), False


async def _end(process: ChildProcess) -> None:
    """End a git that is not wanted any more; asked to, it takes its lock files with it."""
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: ChildProcess, which: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, which)


def _last_line(error: bytes, code: int) -> str:
    lines = [line for line in error.decode(errors="replace").splitlines() if line]
    if not lines:
        return f"exit code {code}"
    # What git advises below its error names no file.
    said = [line for line in lines if line.startswith(("fatal: ", "error: "))]
    return (said or lines)[-1].removeprefix("fatal: ").removeprefix("error: ")[:500]
