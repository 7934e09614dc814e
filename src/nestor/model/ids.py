"""Identifiers: UUIDv7 for what happens, uuid5 for what may happen again, W3C trace ids."""

import os
import random
import re
import time
import uuid

_NAMESPACE = uuid.UUID("6f0b7a52-3a4e-5c1d-9d55-6e6573746f72")
_noise = random.Random()  # noqa: S311 - no secret is made of it
"""Seeded by the system. Ids must differ, not be secret, and a call for each would cost more
than the rest of a short request."""
os.register_at_fork(after_in_child=_noise.seed)
TASK_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562): sorts by the millisecond it was made in."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | _noise.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def derived_id(*parts: object) -> str:
    """Return the uuid5 of ``parts``: the same parts give the same id, always."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(str(part) for part in parts)))


def new_trace_id() -> str:
    """Return 32 lower-case hex digits, never all zero (W3C Trace Context)."""
    return f"{_noise.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """Return 16 lower-case hex digits, never all zero (W3C Trace Context)."""
    return f"{_noise.getrandbits(64) or 1:016x}"
