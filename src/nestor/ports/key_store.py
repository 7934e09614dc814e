"""API keys: stored hashed, shown once. tests/contracts/test_key_store.py."""

from collections.abc import Sequence
from typing import Protocol

from nestor.model.access import ApiKey, Principal


class KeyStore(Protocol):
    """Makes keys and tells whose a key is."""

    async def create(self, name: str, scopes: Sequence[str]) -> tuple[ApiKey, str]:
        """Make a key; the secret is returned here and never again.

        Raises ``InvalidInput`` that names ``name``, or the scope by its place (``scopes.1``).
        """
        ...

    async def check(self, secret: str) -> Principal | None:
        """Tell whose key this is; None when nobody's, or revoked.

        Costs no look-up when it cannot be a key; the use of one is noted, and shown by
        ``all`` within a minute. Raises ``Unavailable`` when the keys cannot be read.
        """
        ...

    async def all(self) -> list[ApiKey]:
        """All keys, newest first, without secrets."""
        ...

    async def revoke(self, key_id: str) -> None:
        """A revoked key is refused from now on. Raises ``NotFound``."""
        ...

    async def revoke_scope(self, scope: str) -> None:
        """Revoke every key that has this scope (the keys of a task that ended)."""
        ...
