"""Isolation of commands, each under a guardian."""
