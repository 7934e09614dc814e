"""Which sandbox runs commands here."""

import os
from collections.abc import Sequence
from pathlib import Path

from nestor.backends.sandbox.bubblewrap import BubblewrapSandbox
from nestor.backends.sandbox.landlock import LandlockSandbox
from nestor.backends.sandbox.unisolated import NoSandbox
from nestor.ports.sandbox import Sandbox

AUTO = "auto"


def sandbox_of(
    kind: str, *, coordinator_url: str, home: Path, private_hosts: Sequence[str] = ()
) -> Sandbox:
    """Return the sandbox of a kind; ``auto``: bubblewrap, else Landlock, but not as root.

    Landlock does not hold back ``chmod``, times and attributes of files that the user
    owns, and root owns the system: whoever wants it there says so by name. Where neither
    works ``auto`` is bubblewrap, whose ``probe`` says why nothing runs. For ``auto`` this
    may start processes and take a second: not for the event loop.
    """
    if kind == "none":
        return NoSandbox(coordinator_url=coordinator_url, home=home)
    bubblewrap = BubblewrapSandbox(
        coordinator_url=coordinator_url, home=home, private_hosts=private_hosts
    )
    landlock = LandlockSandbox(
        coordinator_url=coordinator_url, home=home, private_hosts=private_hosts
    )
    if kind == LandlockSandbox.name:
        return landlock
    may_fall_back = kind == AUTO and os.geteuid() != 0
    if may_fall_back and bubblewrap.probe() and landlock.probe() is None:
        return landlock
    return bubblewrap
