"""Which addresses a command with a network may reach: those of the internet."""

import ipaddress
from collections.abc import Sequence

from nestor.backends.sandbox.machine import own_addresses
from nestor.model.network import embedded, fault_of

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

SLIRP = "10.0.2.0/24"
"""slirp4netns's own network inside, which leads nowhere but through it."""
BARRED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
    "168.63.129.16/32", "::/127", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48",
    "2002::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
)  # fmt: skip
"""This machine's and its neighbours' networks, credentials of clouds, and spellings of IPv4."""


class Reach:
    """The internet, and what an administrator named of the private networks."""

    def __init__(self, private_hosts: Sequence[str] = ()) -> None:
        """``private_hosts``: addresses or networks that may be reached besides."""
        self._allowed = [ipaddress.ip_network(one) for one in private_hosts]
        own = (f"{one}/{128 if ':' in one else 32}" for one in own_addresses())
        self._barred = [ipaddress.ip_network(one) for one in (*BARRED, *own)]

    def refuses(self, address: str) -> str | None:
        """Say why nothing may be connected to an IP address; None: it may."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if embedded(found) != found:
            return "hides an IPv4 address"
        if fault := fault_of(address):
            return fault
        if any(found in network for network in self._allowed):
            return None
        if any(found in network for network in self._barred):
            return "belongs to this machine or to a private network"
        return None

    @property
    def unreachable(self) -> list[str]:
        """Networks that no route may lead to, but as ``reachable`` says."""
        return [
            str(barred)
            for barred in self._barred
            if not any(_within(barred, one) for one in self._allowed)
        ]

    @property
    def reachable(self) -> list[str]:
        """The named networks that lie in those."""
        return [str(one) for one in self._allowed if one.version == 4]  # noqa: PLR2004 - slirp4netns has no other here


def _within(one: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and one.subnet_of(other)
    return isinstance(other, ipaddress.IPv6Network) and one.subnet_of(other)
