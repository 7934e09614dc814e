"""Installs the programs of agents with the machine's own npm, and uv or pip.

Their settings (mirror, proxy, certificates) count: no address of a registry is known here.
A program is put together beside its place, started once, and only then moved there.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from nestor.backends.agents.program_agent import ask_version
from nestor.backends.agents.programs import (
    ABOUT,
    PROGRAMS,
    Npm,
    Program,
    Python,
    cpu,
    find,
    for_this_machine,
    pythons,
)
from nestor.errors import InvalidInput, Misconfigured, Unavailable
from nestor.telemetry.redact import redact

_LIMIT_S = 1800.0
_SAID_CHARACTERS = 600
_LOCKS = Path(__file__).with_name("locks")
"""Every package of an environment with its hash: ``tools/lock_agents.py`` writes them."""
RECIPE = 1
"""Grows when the same table would make another folder than before."""
Say = Callable[[str], None]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a folder: equal to what would be installed, or it is made anew."""

    name: str
    version: str
    recipe: str
    """Digest of what it is made from."""


def install(name: str, folder: Path, *, say: Say) -> bool:
    """Put an agent's program below ``folder``, unless it is there; return whether it was put.

    A second process waits for the first. What was there stays until the new one has said
    its version. Raises ``InvalidInput`` for a name that cannot be installed,
    ``Misconfigured`` for what is missing on this machine, ``Unavailable`` when it cannot
    be fetched or does not run.
    """
    program = PROGRAMS.get(name)
    if program is None or program.source is None:
        known = ", ".join(p.name for p in PROGRAMS.values() if p.source)
        why = program.remedy if program else f"{name!r} is not known"
        raise InvalidInput.at("NAME", f"{why}; can be installed: {known}")
    about = About(name=name, version=program.tested, recipe=_recipe(program))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(folder, name, say):
            if _is(about, folder / name):
                return False
            _remove_left_behind(folder, name)
            with tempfile.TemporaryDirectory(
                dir=folder, prefix=f".{name}-", ignore_cleanup_errors=True
            ) as scratch:
                made = Path(scratch) / name
                made.mkdir(mode=0o755)
                _make(program, made, say)
                (made / ABOUT).write_bytes(msgspec.json.encode(about))
                _check(program, Path(scratch), say)
                _move(made, folder / name, Path(scratch) / "old")
    except OSError as error:
        message = f"{error.filename or folder}: {error.strerror or error}"
        raise Misconfigured(f"{message}; make room, or make it writable") from error
    return True


def installed_version(name: str, folder: Path) -> str | None:
    """Return which version ``install`` put there; None: none, or not whole."""
    try:
        return msgspec.json.decode(
            (folder / name / ABOUT).read_bytes(), type=About
        ).version
    except (OSError, msgspec.DecodeError):
        return None


def _recipe(program: Program) -> str:
    told = repr((RECIPE, program.source, cpu())).encode()
    lock = _LOCKS / f"{program.name}.txt"
    return sha256(told + (lock.read_bytes() if lock.is_file() else b"")).hexdigest()


def _is(about: About, place: Path) -> bool:
    try:
        return msgspec.json.decode((place / ABOUT).read_bytes(), type=About) == about
    except (OSError, msgspec.DecodeError):
        return False


def _make(program: Program, made: Path, say: Say) -> None:
    match program.source:
        case Npm() as source:
            _npm(program, source, made, say)
        case Python() as source:
            _python(program, source, made, say)


def _npm(program: Program, source: Npm, made: Path, say: Say) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Misconfigured(
            f"{program.title} comes from npm, which is not here: install Node.js 20 or newer with npm"
        )
    package = for_this_machine(source.package)
    say(f"fetching {package}")
    # No scripts of packages are run: the programs need none.
    _run(
        [
            npm,
            "install",
            "--prefix",
            str(made),
            "--ignore-scripts",
            "--omit=dev",
            "--omit=optional",
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
            "--no-update-notifier",
            "--loglevel=error",
            package,
        ],
        package,
    )
    modules = made / "node_modules"
    _refuse_other(source, package, modules)
    for part in source.drop:
        shutil.rmtree(modules / for_this_machine(part), ignore_errors=True)
    target = modules / for_this_machine(source.program)
    _link(target, made / "bin" / program.command)


def _refuse_other(source: Npm, package: str, modules: Path) -> None:
    """Compare hashes: npm held what it got to the one that the registry named."""
    wanted = source.sha512.get("") or source.sha512.get(cpu())
    if wanted is None:
        raise Unavailable(f"{package}: no hash is known for this processor")
    name = for_this_machine(source.program)
    lock = json.loads((modules / ".package-lock.json").read_text())
    got = {
        about.get("integrity")
        for place, about in lock["packages"].items()
        if f"node_modules/{name}".startswith(f"{place}/")
    }
    if got != {f"sha512-{wanted}"}:
        raise Unavailable(f"{package}: the registry has another one than was tested")


def _link(target: Path, link: Path) -> None:
    if not target.is_file():
        raise Unavailable(f"the package holds no {target.name} for this machine")
    target.chmod(target.stat().st_mode | 0o555)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))


def _python(program: Program, source: Python, made: Path, say: Say) -> None:
    lock = _LOCKS / f"{program.name}.txt"
    found = pythons(source.newest)
    if not found:
        newest = ".".join(map(str, source.newest))
        raise Misconfigured(
            f"{program.title} needs Python 3.11 to {newest}, and none is on PATH"
        )
    say(f"fetching {source.requirement}")
    python = str(made / "bin" / "python")
    held = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
    if uv := _uv():
        _run([uv, "venv", "--quiet", "--python", found[0], str(made)], "a Python")
        command = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python,
                   *held]  # fmt: skip
    else:
        _run([found[0], "-m", "venv", "--symlinks", str(made)], "a Python")
        command = [python, "-m", "pip", "install", "--quiet", "--no-input", *held]
    _run(command, source.requirement)
    script = made / "bin" / program.command
    script.unlink(missing_ok=True)
    # Its folder is moved: no path in it may be absolute.
    script.write_text(
        '#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/python" '
        f'-m {source.module} "$@"\n'
    )
    script.chmod(0o755)


def _uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else shutil.which("uv")


def _check(program: Program, scratch: Path, say: Say) -> None:
    say("asking its version")
    found = find(program, scratch)
    version, fault = (
        ask_version(program, found) if found else (None, "it holds no program")
    )
    if version != program.tested:
        why = fault or f"it says {version} instead of {program.tested}"
        raise Unavailable(f"{program.title} was fetched, and does not run here: {why}")


def _move(made: Path, place: Path, aside: Path) -> None:
    """Two renames: in between there is none, which is told as not installed."""
    if place.exists():
        place.rename(aside)
    made.rename(place)


@contextlib.contextmanager
def _alone(folder: Path, name: str, say: Say) -> Iterator[None]:
    with (folder / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that installs it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_left_behind(folder: Path, name: str) -> None:
    for old in folder.glob(f".{name}-*"):
        shutil.rmtree(old, ignore_errors=True)


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        name = Path(command[0]).name
        raise Unavailable(f"{name} took longer than {_LIMIT_S:g} s") from error
    if done.returncode:
        said = " ".join(redact(done.stderr or done.stdout).split())[:_SAID_CHARACTERS]
        raise Unavailable(f"{what} could not be fetched: {said}")
