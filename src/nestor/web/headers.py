"""Headers that every reply carries."""

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Added where the application set none of the same name."""
SECURITY_NAMES = frozenset(name for name, _ in SECURITY_HEADERS)
SECURITY_BLOCK = b"".join(n + b": " + v + b"\r\n" for n, v in SECURITY_HEADERS)
"""All of them, as they stand on the wire."""
