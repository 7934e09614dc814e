"""Isolation of commands: bubblewrap, else Landlock, or none when that is asked for by name."""

from nestor.backends.sandbox.bubblewrap import BubblewrapSandbox
from nestor.backends.sandbox.landlock import LandlockSandbox
from nestor.backends.sandbox.unisolated import NoSandbox

__all__ = ["BubblewrapSandbox", "LandlockSandbox", "NoSandbox"]
