"""Which client a request counts for: the socket's address, or what a known proxy says.

``X-Forwarded-For`` is believed only when it comes from an address in
``NESTOR_TRUSTED_PROXIES``, and then only the right-most hop that is not itself one of
those: everything to the left was written by that hop. ``X-Real-IP`` and ``Forwarded``
are never read: a second header that says the same can say something else.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

IPv6_PREFIX = 64
"""One customer has at least this much; single IPv6 addresses cost nothing."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ClientAddresses:
    """Tells clients apart."""

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        """``trusted_proxies``: addresses and networks, as ``Settings`` checked them."""
        self._trusted = [ipaddress.ip_network(text) for text in trusted_proxies]

    def client_of(self, scope: Any) -> str:
        """Return the name under which the sender of a request is counted."""
        peer = _parse(((scope.get("client") or ("",))[0]).partition("%")[0])
        if peer is None:
            return "unknown"
        if not self._trusts(peer):
            return _name(peer)
        said = [v for n, v in scope["headers"] if n == b"x-forwarded-for"]
        return _name(self._forwarded(said) or peer)

    def _forwarded(self, values: Sequence[bytes]) -> _Address | None:
        """Return the right-most hop that is not a known proxy; None when not to be had.

        When all hops are known proxies none of them is the client: whoever sits in a
        trusted network could otherwise name himself differently each time.
        """
        for entry in reversed(b",".join(values).split(b",")):
            hop = _parse(entry.decode("latin-1").strip(" \t"))
            if hop is None:
                return None
            if not self._trusts(hop):
                return hop
        return None

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> _Address | None:
    """Return a plain address: no port, no zone, no name. IPv4 in IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.scope_id is not None:
        return None
    return address.ipv4_mapped or address


def _name(address: _Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address), IPv6_PREFIX), strict=False))
