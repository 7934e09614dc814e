"""So many a window, for each client. tests/contracts/test_rate_limiter.py."""

from typing import Protocol

from nestor.model.health import Dependency


class RateLimiter(Protocol):
    """A moving window: what was admitted counts until it is a window old."""

    async def admit(self, client: str) -> float | None:
        """Admit ``client`` once more: None. Else the seconds until it may come back.

        What is refused does not count. Never raises because of where counts are kept.
        """
        ...

    async def dependencies(self) -> list[Dependency]:
        """Look at where counts are kept; empty when that is this process."""
        ...

    async def close(self) -> None:
        """Close the connections to where counts are kept."""
        ...
