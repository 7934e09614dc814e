"""Where a model server's name leads: checked at each look-up, and pinned to the internet.

A name that an attacker can point elsewhere (DNS rebinding) would lead the provider's key
and every prompt into this machine or its networks. The addresses returned here are those
that are connected to: nobody looks them up a second time.
"""

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from nestor.backends.model_http.connections import KeptConnections
from nestor.model.network import fault_of, is_public


class AddressRefused(OSError):  # noqa: N818 - names say what happened
    """A name led where no configured model can be. Its text says where and why."""

    def __init__(self, message: str) -> None:
        # ``OSError`` keeps a text for people in ``strerror``, which drivers read.
        super().__init__(None, message)


class PinningResolver(AbstractResolver):
    """Looks names up with ``beneath`` and drops the addresses that must not be called.

    Link-local, metadata, unspecified and multicast addresses are dropped always. A name
    with one public address is a name of the internet until the process ends: private ones
    beside it are dropped too, as whoever answers for the name may have added them. They
    are fine for a name that has led to nothing else.
    """

    def __init__(self, beneath: AbstractResolver | None = None) -> None:
        """``beneath``: the system's resolver when not given; it is closed with this one."""
        self._beneath = beneath or aiohttp.ThreadedResolver()
        self._public: set[str] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses to connect to. Raises ``OSError``, ``AddressRefused``."""
        name = host.lower().removesuffix(".")
        found = await self._beneath.resolve(host, port, family)
        faults = {one["host"]: fault_of(one["host"]) for one in found}
        usable = [one for one in found if faults[one["host"]] is None]
        if found and not usable:
            address, fault = next(iter(faults.items()))
            raise AddressRefused(f"{name} leads to {address}, which {fault}")
        public = [one for one in usable if is_public(one["host"])]
        if public:
            self._public.add(name)
            return public
        if usable and name in self._public:
            raise AddressRefused(
                f"{name} led to the internet before and leads to"
                f" {usable[0]['host']} now, a private address: refused, as somebody"
                " may have changed its DNS; restart if it was you"
            )
        return usable

    async def close(self) -> None:
        """Close the resolver beneath."""
        await self._beneath.close()


def model_session(resolver: AbstractResolver | None = None) -> aiohttp.ClientSession:
    """Make the session of all model clients; call it in a running loop, and close it.

    No cookies, no proxy of the environment (it would see prompts, and keys of plain HTTP),
    no redirects by itself, and names resolved by ``resolver`` (``PinningResolver``).
    Connections are kept between calls as ``KeptConnections`` says.
    """
    return aiohttp.ClientSession(
        connector=KeptConnections(resolver=resolver or PinningResolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
