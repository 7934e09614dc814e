"""The programs of the agents: which version is tested, what installs it, where it stands."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from nestor.ports.sandbox import Mount

ABOUT = "nestor-agent.json"
"""Written last into the folder of an agent that was installed whole."""
_ENV = "/usr/bin/env"
_SHEBANG_BYTES = 256


class Npm(msgspec.Struct, frozen=True, kw_only=True):
    """A package of npm's registry. ``{cpu}``: as npm calls this machine's."""

    package: str
    program: str
    """The file to run, in ``node_modules``; one that ends in ``.js`` needs node."""
    sha512: Mapping[str, str]
    """Of the package, by npm's name of the processor ("": any), as npm writes it."""
    drop: Sequence[str] = ()
    """Folders that nothing here needs, below ``node_modules``."""


class Python(msgspec.Struct, frozen=True, kw_only=True):
    """A package of Python's index, in an environment of its own."""

    requirement: str
    module: str
    """Runs as ``python -m``."""
    newest: tuple[int, int]
    """Newest Python that it runs on; the oldest is Nestor's own."""


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's program."""

    name: str
    """The backend's."""
    title: str
    command: str
    """What it is called on PATH."""
    tested: str
    """Version that ``nestor agents install`` takes, and that the tests run; "": none."""
    source: Npm | Python | None
    """None: Nestor does not install it."""
    asks: str = "--version"
    """Argument at which it says its version and ends."""
    remedy: str = ""
    """How to install it, where Nestor does not."""

    @property
    def how_to_install(self) -> str:
        """Say how to install it."""
        return self.remedy or f"run: nestor agents install {self.name}"


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            name="aider",
            title="aider",
            command="aider",
            tested="0.86.2",
            source=Python(
                requirement="aider-chat==0.86.2", module="aider", newest=(3, 12)
            ),
        ),
        Program(
            name="claude",
            title="Claude Code",
            command="claude",
            tested="2.1.330",
            source=Npm(
                package="@anthropic-ai/claude-code-linux-{cpu}@2.1.330",
                program="@anthropic-ai/claude-code-linux-{cpu}/claude",
                sha512={
                    "x64": "9Gn+V7DtJ8M1nztP9CeDVl9g3RtrepI7rOFTyPRRnZe8D6zebIHKmC7OvBauucuAP0X0k85SDN/LPVZyjsGezQ==",
                    "arm64": "V4yanAY5EA5UpwwRPtjSfqDbNqAlUJeVn3NYZw2AgmRHjdpSsLtHAzbxRXfkAnbjwTXzE0uedjQxUY02ARPcsA==",
                },
            ),
        ),
        Program(
            name="codex",
            title="codex",
            command="codex",
            tested="0.169.0",
            source=Npm(
                package="@openai/codex@0.169.0-linux-{cpu}",
                program="@openai/codex/vendor/{machine}-unknown-linux-musl/bin/codex",
                sha512={
                    "x64": "o05NyAOCDygSPRo1yinzxvkRSdmsZyBD9E7mbpmjRanSfM8lypqWtQgEo4XfNkwhuCR2aFu8mlGOsQGFXVbVww==",
                    "arm64": "NZ/DaQUpcQmxmqee7Z9uC1rzw3GhSbooawcaTe1LN5Yk+WlinUKGdTXJgClRT/9ogQEEM9TWxYzvxPfj5G/xFg==",
                },
                drop=(
                    "@openai/codex/vendor/{machine}-unknown-linux-musl/codex-resources/voice",
                ),
            ),
        ),
        Program(
            name="continue",
            title="Continue",
            command="cn",
            tested="1.5.47",
            source=Npm(
                package="@continuedev/cli@1.5.47",
                program="@continuedev/cli/dist/cn.js",
                sha512={
                    "": "gtpewV3RoIOD9dyTtKIBi1SY0VOHRu3Ehe7C/mmnswm+j34MPyrcQhQaWj/m+jdfGO4fNIKdrgGIlLso1ULDFw=="
                },
                # It is bundled: what it names besides is never loaded.
                drop=(
                    "fdir",
                    "find-up",
                    "fzf",
                    "js-yaml",
                    "argparse",
                    "locate-path",
                    "p-limit",
                    "p-locate",
                    "unicorn-magic",
                    "yocto-queue",
                ),
            ),
        ),
        Program(
            name="goose",
            title="goose",
            command="goose",
            tested="",
            source=None,
            remedy="install goose as its project says, so that `goose` is on PATH",
        ),
        Program(
            name="mini",
            title="mini-swe-agent",
            command="mini",
            tested="2.4.6",
            source=Python(
                requirement="mini-swe-agent==2.4.6",
                module="minisweagent.run.mini",
                newest=(3, 13),
            ),
            asks="--help",
        ),
        Program(
            name="opencode",
            title="opencode",
            command="opencode",
            tested="1.18.33",
            source=Npm(
                package="opencode-linux-{cpu}@1.18.33",
                program="opencode-linux-{cpu}/bin/opencode",
                sha512={
                    "x64": "q/t/3p2CTxOT9y2kvjesb/LZab2+1eqlhhWA02Be6mjTtmYtNBcBsrI5yDo4Fw7ZSPBW2oyMIGMNRqiKQjiAWw=="
                },
            ),
        ),
    )
}
"""By the backend's name: the one table of versions."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A program that is there, and what of the host it needs to be seen inside."""

    argv: list[str]
    path: Path
    mounts: list[Mount]


def find(program: Program, folder: Path | None) -> Found | None:
    """Look in ``folder`` (of agents), then on PATH; None: neither has it. Starts nothing."""
    if folder is not None:
        own = folder / program.name
        if (own / ABOUT).is_file() and _runs(path := own / "bin" / program.command):
            return _found(path, own)
    on_path = shutil.which(program.command)
    if on_path is None:
        return None
    path = Path(on_path).resolve()
    return _found(path, _installation(path))


def _found(path: Path, installation: Path) -> Found:
    """Show the program at its own path inside, with the interpreter that it names."""
    needed = [installation, *_base_python(installation)]
    argv = [str(path)]
    interpreter = _interpreter(path)
    if interpreter is not None and not _of_system(interpreter):
        argv = [str(interpreter), str(path)]
        needed.append(_prefix(interpreter))
    places = dict.fromkeys(part.resolve() for part in needed if not _of_system(part))
    mounts = [Mount(host=place, inside=str(place)) for place in places]
    own = installation.resolve()
    if own != installation:
        # Its own path must hold inside, too: a link above it does not exist there.
        argv = [part.replace(str(installation), str(own), 1) for part in argv]
    return Found(argv=argv, path=path, mounts=mounts)


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _of_system(path: Path) -> bool:
    """Tell what every sandbox shows anyway."""
    return path.resolve().is_relative_to("/usr")


def _installation(path: Path) -> Path:
    """Return the folder that holds all of a program: npm's, an environment; or the file."""
    for parent in path.parents:
        if (parent / "pyvenv.cfg").is_file():
            return parent
    outermost = [p for p in path.parents if p.name == "node_modules"]
    return outermost[-1] if outermost else path


def _base_python(installation: Path) -> list[Path]:
    """Return the Python that an environment was made of."""
    try:
        text = (installation / "pyvenv.cfg").read_text()
    except OSError:
        return []
    found = re.search(r"^home\s*=\s*(.+)$", text, re.MULTILINE)
    return [Path(found[1].strip()).parent] if found else []


def _interpreter(path: Path) -> Path | None:
    """Return what the first line names, found as a shell would; None: it needs none."""
    with path.open("rb") as file:
        first = file.read(_SHEBANG_BYTES).split(b"\n", 1)[0]
    words = first.removeprefix(b"#!").decode(errors="replace").split()
    if not first.startswith(b"#!") or not words:
        return None
    if words[0] != _ENV:
        return Path(words[0])
    named = [word for word in words[1:] if not word.startswith("-")]
    found = shutil.which(named[0]) if named else None
    return Path(found).resolve() if found else None


def _prefix(interpreter: Path) -> Path:
    """``…/bin/node`` needs no more than itself; Python needs its library."""
    real = interpreter.resolve()
    return real.parent.parent if real.name.startswith("python") else real


def cpu() -> str:
    """Return what npm calls this machine's processor."""
    return {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "x64")


def for_this_machine(text: str) -> str:
    """Fill in the processor."""
    return text.format(cpu=cpu(), machine=platform.machine())


def pythons(newest: tuple[int, int]) -> list[str]:
    """Return interpreters to try for an environment, this one's first."""
    mine = sys.version_info[:2]
    own = [sys.executable] if mine <= newest else []
    names = [f"python3.{minor}" for minor in range(newest[1], 10, -1)]
    return [*own, *(path for name in names if (path := shutil.which(name)))]
