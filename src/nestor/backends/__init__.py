"""Implementations of ``nestor.ports``, one folder per technology."""
