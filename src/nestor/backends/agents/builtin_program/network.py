"""What a command would reach: programs that talk to others, and the hosts they are given."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .steps import Step

FETCHERS = {
    *(
        "curl",
        "wget",
        "aria2c",
        "http",
        "https",
        "httpie",
        "xh",
        "lynx",
        "w3m",
        "links",
    ),
    *("ftp", "sftp", "scp", "ssh", "telnet", "nc", "ncat", "netcat", "socat", "rsync"),
    *("axel", "gsutil", "fetch"),
}
_BARE = {"curl", "wget", "aria2c", "http", "https", "xh", "lynx", "w3m"}
_SHELL_LIKE = {"ssh", "scp", "sftp", "rsync", "telnet", "nc", "ncat", "netcat", "ftp"}
_INSTALLERS = {
    *("pip", "pip3", "uv", "uvx", "npm", "npx", "pnpm", "yarn", "bun", "cargo", "gem"),
    *("go", "docker", "podman", "svn", "hg"),
}
_GIT_REMOTE = {"clone", "fetch", "pull", "push", "ls-remote", "submodule", "archive"}
_URL = re.compile(
    r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,20})://(?:[^@/\s'\"]{0,200}@)?"
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[^/\s:'\"?#\\$]*)(?::(?P<port>\d+))?"
)
_NAME = re.compile(
    r"(?P<host>[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)(?::(?P<port>\d+))?(?:/|$)"
)
_SCP = re.compile(r"(?:[\w.-]+@)?(?P<host>[A-Za-z0-9.-]+):(?!//)\S*")
_LOCAL = re.compile(
    r"(?i)localhost|.*\.localhost|127(?:\.\d+){0,3}|\[::1\]|0\.0\.0\.0|nestor|"
)
_METADATA = re.compile(
    r"(?i)169\.254\.\d+\.\d+|metadata\.google\.internal|\[fd00:ec2::254\]"
)
_PORTS = {"https": 443, "http": 80, "ftp": 21, "ssh": 22, "git": 9418}
_VALUED = re.compile(r"-(?:[oOHdTFXAbceKmuUxEwrtYyCDPz]|-[a-z-]+)$")
_UPLOADS = re.compile(
    r"-(?:d|T|F|-data(?:-\w+)?|-form(?:-string)?|-upload-file|-post-(?:data|file)"
    r"|-body-(?:data|file))(?:=.*)?$|-[dTF]\S+"
)


@dataclass(frozen=True)
class Target:
    """One host. ``scheme`` "": it is not known."""

    scheme: str
    host: str
    port: int | None

    @property
    def local(self) -> bool:
        """Tell whether it is this sandbox itself."""
        return _LOCAL.fullmatch(self.host) is not None

    @property
    def metadata(self) -> bool:
        """Tell whether it is where clouds keep credentials."""
        return _METADATA.fullmatch(self.host) is not None

    @property
    def address(self) -> str:
        """``name:port`` as it is granted."""
        port = self.port or _PORTS.get(self.scheme, 443)
        return f"{self.host.lower().strip('[]')}:{port}"


def targets(step: Step) -> list[Target]:
    """Return the hosts that a step names and would talk to."""
    if step.code:
        return _urls(step.code)
    if step.name in FETCHERS:
        return _of_fetcher(step)
    if step.name in _INSTALLERS:
        return _urls(" ".join(step.args))
    if step.name == "git" and _GIT_REMOTE & set(step.args):
        return _urls(" ".join(step.args)) or _scp_like(step.args)
    return []


def uploads(step: Step) -> bool:
    """Tell whether a step sends something out, beyond asking for it."""
    if step.name in _SHELL_LIKE:
        return True
    methods = {"POST", "PUT", "PATCH", "DELETE"}
    return step.name in FETCHERS and any(
        _UPLOADS.fullmatch(arg) or arg.upper().removeprefix("-X") in methods
        for arg in step.args
    )


def _urls(text: str) -> list[Target]:
    return [
        Target(
            found["scheme"].lower().rpartition("+")[2],
            found["host"],
            int(found["port"]) if found["port"] else None,
        )
        for found in _URL.finditer(text)
        if found["scheme"].lower() != "file"
    ]


def _of_fetcher(step: Step) -> list[Target]:
    found = _urls(" ".join(step.args))
    if found:
        return found
    if step.name in _BARE:
        return _bare(step.args)
    if step.name in _SHELL_LIKE:
        return (
            _scp_like(step.args)
            or [
                Target("tcp", arg.rpartition("@")[2], None)
                for arg in step.args
                if not arg.startswith("-") and not arg.startswith((".", "/"))
            ][:1]
        )
    return []


def _bare(args: list[str]) -> list[Target]:
    """Take ``example.com/x`` for an address where no scheme is given."""
    found = []
    for at, arg in enumerate(args):
        if at and _VALUED.match(args[at - 1]):
            continue
        if (name := _NAME.match(arg)) is not None:
            port = int(name["port"]) if name["port"] else None
            found.append(Target("http", name["host"], port))
    return found


def _scp_like(args: list[str]) -> list[Target]:
    found = [_SCP.fullmatch(a) for a in args if not a.startswith(("-", "/", "."))]
    return [Target("ssh", one["host"], 22) for one in found if one is not None]
