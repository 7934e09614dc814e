"""Where a path of a command line leads: told from its words and from what stands there."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SECRETS = re.compile(
    r"""(?x)
    (?:^|[^\w.])(?:~\w*|\$\{?HOME\}?|/root|/home/[^/\s]+)/\.
      (?:ssh|aws|azure|gnupg|kube|docker|netrc|git-credentials|pypirc|npmrc
        |cargo/credentials|config/(?:gcloud|gh|nestor)|local/share/(?:keyrings|nestor))\b
    | /etc/(?:g?shadow|sudoers|ssh/|security/)
    | /proc/[^/\s]+/(?:environ|mem|auxv)\b
    | \.ssh/id_\w+ | \bid_(?:rsa|dsa|ecdsa|ed25519)\b
    | /run/(?:secrets|nestor|user)\b | /var/run/(?:secrets|docker\.sock)\b
    | nestor/api-key\b
    """
)
_DEVICES = re.compile(
    r"/dev/(?:null|zero|full|stdin|stdout|stderr|tty|u?random|fd/\d+)"
)
_SCRATCH = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - the sandbox's own
_GIT_CODE = re.compile(r"(?:^|/)\.git/(?:hooks|config|info/attributes|modules)(?:/|$)")


def names_secret(text: str) -> bool:
    """Tell whether ``text`` names a place where credentials are kept."""
    return _SECRETS.search(text) is not None


class Places:
    """Paths as seen from the working folder. ``root``: the repository's own folder."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd.resolve()
        self.root = next(
            (p for p in (self.cwd, *self.cwd.parents) if (p / ".git").exists()),
            self.cwd,
        )

    def outside(self, path: str, cwd: str) -> bool:
        """Tell whether what is written there lies neither in the repository nor in scratch."""
        path = re.sub(r"^(?:\$\{?HOME\}?|~)(?=/|$)", "~", path)
        if path == "~":
            return True
        if path.startswith(("~/", "$")) or _DEVICES.fullmatch(path):
            return False  # the sandbox's own home; a variable is not known here
        full = self._full(path, cwd)
        if self._inside(full):
            # A link may lead out of what the words say.
            return self._leads_out(full)
        if path.startswith("/") or not self._inside(self._full(".", cwd)):
            return not self._scratch(full)
        return True

    def is_whole(self, path: str, cwd: str) -> bool:
        """Tell whether it is the repository as a whole, or a folder that it is in."""
        full = self._full(path.rstrip("*") or ".", cwd)
        return full == "/" or str(self.root).startswith(full.rstrip("/"))

    def in_git(self, path: str, cwd: str) -> bool:
        """Tell whether it lies in a ``.git`` folder, or is one."""
        return ".git" in self._full(path, cwd).split("/")

    def is_git_code(self, path: str, cwd: str) -> bool:
        """Tell whether git would run, or be led, by what stands there."""
        full = self._full(path, cwd)
        real = os.path.realpath(full)
        return bool(_GIT_CODE.search(full) or _GIT_CODE.search(real))

    def _full(self, path: str, cwd: str) -> str:
        return os.path.normpath(os.path.join(self.cwd, cwd, path))  # noqa: PTH118 - words

    def _inside(self, full: str) -> bool:
        root = str(self.root)
        return full == root or full.startswith(root.rstrip("/") + "/")

    def _leads_out(self, full: str) -> bool:
        real = os.path.realpath(full)
        return not (self._inside(real) or self._scratch(real))

    def _scratch(self, full: str) -> bool:
        # Without isolation the repository may lie there itself, beside others.
        beside = f"{self.root.parent}/"
        return any(full.startswith(f"{top}/") for top in _SCRATCH) and not (
            full.startswith(beside) and beside.strip("/")
        )
