"""Sessions of the page: a link that works once, then a cookie. tests/contracts/test_session_store.py."""

from typing import Protocol

from nestor.model.access import PageLink, PageSession


class SessionStore(Protocol):
    """Makes links and sessions. Only hashes of their secrets are kept.

    What was made while there was another admin key is nobody's.
    """

    async def make_link(self) -> PageLink:
        """Make a link that signs one browser in, once, within ``expires_at``."""
        ...

    async def redeem(self, token: str) -> tuple[PageSession, str]:
        """Turn a link's token into a session and its secret, which is returned only here.

        Of several that redeem one token at the same time one succeeds. Raises
        ``Unauthorized`` when the token is unknown, used or too old.
        """
        ...

    async def check(self, secret: str) -> PageSession | None:
        """Tell whose session this is; None when nobody's, ended, or too old."""
        ...

    async def end(self, session_id: str) -> None:
        """The session is refused from now on; nothing happens when there is none."""
        ...

    async def end_all(self) -> None:
        """Every session, and every link that was not used, is refused from now on."""
        ...
