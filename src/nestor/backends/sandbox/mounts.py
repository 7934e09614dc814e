"""Which host paths may be seen inside, and where."""

import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from nestor.errors import SandboxError
from nestor.ports.sandbox import Mount, SandboxRun

_NEVER_BELOW = ("/proc", "/sys", "/dev", "/run", "/boot", "/etc/ssh")
"""Neither these nor anything in them."""
_NEVER_WHOLE = ("/", "/etc", "/var", "/var/lib")
"""Not as a whole; a folder in them may be meant."""
_SECRET = (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".netrc", ".password-store",
           ".git-credentials", ".config/git/credentials", ".config/gh", ".config/glab-cli", ".config/hub",
           ".config/gcloud", ".config/containers", ".config/op", ".config/rclone", ".config/pypoetry/auth.toml",
           ".config/google-chrome", ".config/chromium", ".mozilla", ".local/share/keyrings", ".local/share/uv/credentials",
           ".npmrc", ".yarnrc.yml", ".pypirc", ".cargo/credentials", ".cargo/credentials.toml", ".gem/credentials",
           ".m2/settings.xml", ".m2/settings-security.xml", ".gradle/gradle.properties", ".terraform.d/credentials.tfrc.json",
           ".pgpass", ".my.cnf", ".vault-token", ".cache/huggingface/token", ".huggingface",
           ".claude.json", ".claude/.credentials.json", ".claude/projects", ".codex", ".gemini",
           ".config/goose", ".local/share/goose/sessions", ".local/share/opencode/auth.json",
           ".bash_history", ".zsh_history", ".python_history", ".psql_history")  # fmt: skip
"""Below the user's home: where programs keep keys, and what people have typed."""
_TAKEN_BELOW = ("/proc", "/sys", "/dev", "/run", "/etc", "/usr", "/bin", "/sbin",
                "/lib", "/lib64", "/lib32")  # fmt: skip
_TAKEN_WHOLE = ("/", "/tmp", "/home", "/home/agent", "/var")  # noqa: S108


def checked(run: SandboxRun, *, home: Path) -> list[Mount]:
    """Return the mounts of ``run`` with their host paths resolved, in its order.

    Raises ``SandboxError`` that names the path for one that does not exist, that would
    show the data folder, a user's home, keys, sockets, the system's own state or the
    run folder, or that would hide a part of the sandbox. Of the data folder only what
    lies below ``agents/`` may be seen and, at another path than its own, what lies below
    ``tasks/ID/`` and ``setup/``: a path that somebody asked for is shown where it lies.
    """
    return [_checked(mount, home=home.resolve(), run_dir=run.run_dir.resolve()) for mount in run.mounts]  # fmt: skip


def refuses(host: Path, *, home: Path) -> str | None:
    """Say why a task may not have ``host`` mounted at its own path; None: it may."""
    mount = Mount(host=host, inside=str(host))
    try:
        _checked(mount, home=home.resolve(), run_dir=None)
    except SandboxError as error:
        return str(error)
    return None


def _checked(mount: Mount, *, home: Path, run_dir: Path | None) -> Mount:
    inside = PurePosixPath(mount.inside)
    if not inside.is_absolute() or ".." in inside.parts or "\0" in mount.inside:
        raise SandboxError(f"mount {mount.inside}: not an absolute path")
    if _is_or_below(inside, _TAKEN_BELOW) or str(inside) in _TAKEN_WHOLE:
        raise SandboxError(f"mount {mount.inside}: that path is the sandbox's own")
    try:
        # Resolved once, here: a symbolic link is judged by where it leads.
        host = mount.host.resolve(strict=True)
        kind = host.stat().st_mode
    except OSError as error:
        raise SandboxError(f"mount {mount.host}: {error.strerror}") from error
    except RuntimeError as error:  # links in a circle
        raise SandboxError(f"mount {mount.host}: {error}") from error
    if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
        raise SandboxError(f"mount {mount.host}: neither a folder nor a file")
    asked_for = mount.host == Path(mount.inside)
    if why := _refused(host, home=home, run_dir=run_dir, asked_for=asked_for):
        raise SandboxError(f"mount {mount.host}: {why}; it cannot be shown inside")
    return Mount(host=host, inside=str(inside), writable=mount.writable)


def _refused(  # noqa: PLR0911 - one reason a line
    host: Path, *, home: Path, run_dir: Path | None, asked_for: bool
) -> str | None:
    if run_dir and (run_dir.is_relative_to(host) or host.is_relative_to(run_dir)):
        return "it shows the run folder"
    if home.is_relative_to(host):
        return "it shows the data folder"
    own = host.relative_to(home).parts if host.is_relative_to(home) else None
    if own is not None and not _may_show(own, asked_for=asked_for):
        return "it lies in the data folder"
    homes = user_homes()
    if any(person.is_relative_to(host) for person in homes):
        return "it shows the user's home"
    secret = [person / name for person in homes for name in _SECRET]
    if _is_or_below(host, [str(place) for place in secret]):
        return "keys are kept there"
    for place in secret:
        if place.is_relative_to(host):  # also where there is none yet
            return f"it shows {place}, where keys are kept"
    if _is_or_below(host, _NEVER_BELOW) or str(host) in _NEVER_WHOLE:
        return "it is a part of the system"
    return None


def _may_show(parts: Sequence[str], *, asked_for: bool) -> bool:
    """Tell whether a part of the data folder is meant to be seen inside."""
    match parts:
        case ("agents", _, *_):  # agents' programs, the same for all tasks
            return True
        case ("tasks", _, _, *_) | ("setup", _, *_):
            return not asked_for
        case _:
            return False


def user_homes() -> list[Path]:
    """The home of who runs this, by the environment and by the user database."""
    found = [Path.home().resolve()]
    try:
        found.append(Path(pwd.getpwuid(os.getuid()).pw_dir).resolve())
    except KeyError:
        return found
    return [person for person in found if person != Path("/")]


def _is_or_below(path: PurePath, roots: Sequence[str]) -> bool:
    return any(path.is_relative_to(root) for root in roots)
