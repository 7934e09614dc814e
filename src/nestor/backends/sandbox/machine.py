"""What this machine has: memory, addresses of its own, certificates."""

import contextlib
from functools import cache
from pathlib import Path

from nestor.resilience import memory

_SHARE = 0.75
"""How much of the memory one command may use when nothing else is said."""
_UNKNOWN = 8 * 1024**3
_LOOPBACK_6 = "0000:0000:0000:0000:0000:0000:0000:0001"
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@cache
def usual_memory() -> int:
    """Three quarters of the memory that this process may use, in bytes."""
    return int((memory.look().total or _UNKNOWN) * _SHARE)


def own_addresses() -> list[str]:
    """Return the addresses of this machine, loopback left out."""
    found: dict[str, None] = {}
    last = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/fib_trie").read_text().splitlines():
            words = line.split()
            if words[0] == "|--":
                last = words[1]
            elif words[0] == "/32" and words[-1] == "LOCAL":
                found[last] = None
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits = line.split()[0]
            found[":".join(digits[i : i + 4] for i in range(0, 32, 4))] = None
    return [one for one in found if not one.startswith("127.") and one != _LOOPBACK_6]


def certificates() -> dict[str, str]:
    """Return variables by which programs that bring their own list trust what this machine trusts."""
    for bundle in _BUNDLES:
        if Path(bundle).is_file():
            names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
            return dict.fromkeys(names, bundle)
    return {}
