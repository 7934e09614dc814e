"""OpenAI's Responses, as callers speak them (``POST /v1/responses``); codex does.

Nothing is stored: a request carries its whole conversation, and what refers to anything
stored (``previous_response_id``, ``conversation``, ``prompt``, ids of files and items) is
refused, as are tools that run at OpenAI. What only hints is left out and named:
``reasoning`` (servers refuse an effort that their model does not know), ``text.verbosity``,
``store``, cache keys, ``truncation``, thoughts in the history, a custom tool's grammar
(the model is told it), and every top-level field that is not known here.
"""

import time
import uuid
from collections.abc import Callable
from typing import Any

from nestor.coordinator.dialects.face import Translated
from nestor.coordinator.dialects.openai import check_kinds
from nestor.coordinator.dialects.pointers import refuse_pointers
from nestor.coordinator.dialects.responses_events import ResponsesEvents
from nestor.coordinator.dialects.responses_reply import finish, frame, output_of
from nestor.coordinator.dialects.responses_request import to_chat
from nestor.model.routing import Dialect


class Responses:
    """The Responses dialect: a ``Face``.

    ``clock`` (seconds since 1970) and ``new_id`` are for answers that say neither when
    they were made nor which they are.
    """

    dialect = Dialect.RESPONSES

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._clock = clock
        self._new_id = new_id

    def check(self, request: dict[str, Any]) -> None:
        """Refuse what no server should see. Raises ``InvalidInput`` that names the field."""
        refuse_pointers(request)
        check_kinds(
            request,
            (
                ("model", str, "must be a text"),
                ("stream", bool, "must be true or false"),
                ("parallel_tool_calls", bool, "must be true or false"),
                ("tools", list, "must be a list"),
                ("instructions", str, "must be a text"),
                ("text", dict, "must be an object"),
                ("include", list, "must be a list"),
            ),
        )

    def to_chat(self, request: dict[str, Any]) -> Translated:
        """Say a request that passed ``check`` in chat completions.

        Raises ``InvalidInput`` for what cannot be said.
        """
        return to_chat(request)

    def reply(self, chat: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        """Say a ``chat.completion`` as a response.

        Raises ``UpstreamError`` for an answer without words here.
        """
        response = frame(chat, request, now=self._clock(), new_id=self._new_id)
        output, reason = output_of(chat, request, response)
        return finish(response, output, reason, chat.get("usage"))

    def events(self, request: dict[str, Any]) -> ResponsesEvents:
        """Begin the events of one streamed answer."""
        return ResponsesEvents(request, clock=self._clock, new_id=self._new_id)
