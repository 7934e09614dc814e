"""Questions from inside a sandbox, to a person: read, bounded and handed on."""

from collections.abc import Awaitable, Callable

import msgspec

from nestor.model.task import ApprovalKind
from nestor.ports.sandbox import Answer, Ask

ASK_PATH = "/nestor/ask"
MOST = 100
"""Questions of one run."""
_KINDS = frozenset(ApprovalKind) - {ApprovalKind.START}


class Questions:
    """One at a time; an answer may take as long as a person takes."""

    most_bytes = 16 * 1024

    def __init__(self, ask: Callable[[Ask], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._asked = 0
        self._waiting = False

    async def answer(  # noqa: PLR0911 - one reason a line
        self, body: bytes
    ) -> tuple[int, bytes | str]:
        """Return (200, the ``Answer`` as JSON), or a status and what is wrong.

        Cancelled with the connection of who asked.
        """
        if len(body) > self.most_bytes:
            return 413, f"a question may have {self.most_bytes} bytes"
        try:
            question = msgspec.json.decode(body, type=Ask)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return 400, f"not a question: {error}"
        if question.kind not in _KINDS:
            return 400, f"kind must be one of: {', '.join(sorted(_KINDS))}"
        if not question.subject.strip():
            return 400, "subject must say what is asked for"
        if self._waiting:
            return 429, "another question waits for its answer"
        if self._asked >= MOST:
            return 429, f"more than {MOST} questions in one run"
        self._asked += 1
        self._waiting = True
        try:
            return 200, msgspec.json.encode(await self._ask(question))
        finally:
            self._waiting = False
