"""Agents that do the work of an iteration."""
