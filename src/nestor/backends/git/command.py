"""Git as a program: which environment it gets, how long it may take, how it fails.

Nothing of the machine's or the user's configuration is read, no hook, filter, monitor
or transport of a repository is ever started, and arguments are lists.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from nestor.errors import WorkspaceError

TIMEOUT_S = 300.0
IDENTITY = ("Nestor", "nestor@localhost")
_CHUNK = 256 * 1024

CONFIG: Mapping[str, str] = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    # Written by whoever owns the objects, and believed without a check otherwise.
    "core.commitGraph": "false",
    "core.attributesFile": "/dev/null",
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
        Raises WorkspaceError with git's last line when the exit code is not in ``ok``.
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
            source: int | IO[bytes] = asyncio.subprocess.PIPE
            target: int | IO[bytes] = asyncio.subprocess.PIPE
            if isinstance(stdin, Path):
                source = files.enter_context(stdin.open("rb"))
            if stdout is not None:
                target = files.enter_context(stdout.open("wb"))
            try:
                process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    env=self.env,
                    cwd=self.cwd,
                    stdin=source,
                    stdout=target,
                    stderr=asyncio.subprocess.PIPE,
                    start_new_session=True,  # so that its own children end with it
                )
            except OSError as failure:  # the folder is gone, or no process can be made
                message = f"git cannot be started in {self.cwd}: {failure.strerror}"
                raise WorkspaceError(message) from failure
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
                _kill(process)
                await process.wait()
        return (0 if cut else code), out, error


async def _feed(pipe: asyncio.StreamWriter | None, data: bytes | Path) -> None:
    if pipe is None or isinstance(data, Path):
        return
    with suppress(BrokenPipeError, ConnectionResetError):  # its exit code says why
        for start in range(0, len(data), _CHUNK):
            pipe.write(data[start : start + _CHUNK])
            await pipe.drain()
    pipe.close()


async def _read(
    process: asyncio.subprocess.Process,
    pipe: asyncio.StreamReader | None,
    limit: int | None,
) -> tuple[bytes, bool]:
    out = bytearray()
    while pipe is not None and (chunk := await pipe.read(_CHUNK)):
        out += chunk
        if limit is not None and len(out) > limit:
            _kill(process)
            return bytes(out[:limit]), True
    return bytes(out), False


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(error: bytes, code: int) -> str:
    lines = [line for line in error.decode(errors="replace").splitlines() if line]
    if not lines:
        return f"exit code {code}"
    return lines[-1].removeprefix("fatal: ").removeprefix("error: ")[:500]
