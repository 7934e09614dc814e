"""Nestor: a self-hosted stack for running AI agents.

Importing this package opens no file and no socket, imports no driver, prints nothing.
"""

__version__ = "0.1.0"
