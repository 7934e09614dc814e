"""What one run may take. A brief may set any of these by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Durations in seconds, sizes in bytes."""

    turns: int = 30
    command_timeout_s: float = 120.0
    search_timeout_s: float = 10.0
    model_timeout_s: float = 300.0
    ask_timeout_s: float = 3900.0
    """Longer than a person is waited for by the harness, which is what decides."""
    backoff_s: float = 1.0
    window_tokens: int = 32_768
    """Of a model that does not tell."""


RETRIES = 3
OUTPUT_LIMIT = 8 * 1024
REPLY_LIMIT = 8 * 1024 * 1024
FILE_LIMIT = 1024 * 1024
