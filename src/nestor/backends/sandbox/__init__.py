"""Isolation of commands: bubblewrap, or none when that is asked for by name."""

from nestor.backends.sandbox.bubblewrap import BubblewrapSandbox
from nestor.backends.sandbox.unisolated import NoSandbox

__all__ = ["BubblewrapSandbox", "NoSandbox"]
