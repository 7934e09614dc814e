"""API keys: stored hashed, shown once. tests/contracts/test_key_store.py."""

from collections.abc import Sequence
from typing import Protocol

from nestor.model.access import ApiKey, KeyLimits, Principal


class KeyStore(Protocol):
    """Makes keys and tells whose a key is."""

    async def create(
        self, name: str, scopes: Sequence[str], limits: KeyLimits | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key; the secret is returned here and never again.

        Raises ``InvalidInput`` that names ``name``, the scope by its place (``scopes.1``),
        or the limit (``limits.usd``).
        """
        ...

    async def check(self, secret: str) -> Principal | None:
        """Tell whose key this is; None when nobody's, or revoked.

        Costs no look-up when it cannot be a key; the use of one is noted, and shown by
        ``all`` within a minute. While the keys cannot be read, one that was good within
        the last 10 minutes is good; of any other it raises ``Unavailable``.
        """
        ...

    async def all(self) -> list[ApiKey]:
        """All keys, newest first, without secrets."""
        ...

    async def revoke(self, key_id: str) -> None:
        """A revoked key is refused from now on. Raises ``NotFound``.

        Another process that cannot read the keys refuses it once it can, or after 10
        minutes. Where it raises ``Unavailable``, the key is not revoked, but this process
        no longer believes it unread.
        """
        ...

    async def revoke_scope(self, scope: str) -> None:
        """Revoke every key that has this scope (the keys of a task that ended)."""
        ...
