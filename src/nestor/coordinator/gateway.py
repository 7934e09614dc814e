"""The gateway: a request in any dialect, put to the deployment that should answer it.

Where the server speaks the caller's dialect its bytes are passed on as they came; else
they are translated by way of chat completions. Every request is admitted by the caller's
limits, every call metered, whatever becomes of it.
"""

import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from nestor.coordinator.answer_cache import AnswerCaching, cache_key
from nestor.coordinator.answer_size import answers_of, limit_of
from nestor.coordinator.asking import Embed, Say, Stream
from nestor.coordinator.budgets import estimate
from nestor.coordinator.dialects.anthropic import Anthropic
from nestor.coordinator.dialects.face import Face
from nestor.coordinator.dialects.openai import OpenAI, check_embeddings
from nestor.coordinator.dialects.responses import Responses
from nestor.coordinator.dispatch import (
    Answered,
    CallContext,
    Dispatcher,
    Question,
    utc_now,
)
from nestor.coordinator.failures import unreadable
from nestor.coordinator.limits import NOBODY, Caller, Limits, used_tokens
from nestor.coordinator.metering import Metering
from nestor.coordinator.reply_headers import (
    Headers,
    headers_of_cached,
    reply_headers,
)
from nestor.coordinator.selection import Selection
from nestor.coordinator.streaming import Again, Streamed, events_again
from nestor.coordinator.upstream import Upstream
from nestor.errors import UpstreamError
from nestor.model.ids import new_id
from nestor.model.routing import (
    CacheScope,
    Decision,
    Dialect,
    Kind,
    Mode,
    ModelCall,
)
from nestor.model.task import Usage
from nestor.telemetry.trace import current_trace_id

T = TypeVar("T")
FACES: dict[Dialect, Face] = {
    face.dialect: face for face in (OpenAI(), Anthropic(), Responses())
}


class _Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that its caller's limits let through."""

    caller: Caller
    decision: Decision
    order: Sequence[Upstream]
    context: CallContext
    tokens: int
    """That it may take, as counted for the caller's ``tpm``."""
    began: float


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer in the caller's dialect."""

    body: bytes
    headers: Headers


class Gateway:
    """Serves ``/v1``; knows nothing of HTTP but the names of reply headers."""

    def __init__(
        self,
        *,
        selection: Selection,
        dispatcher: Dispatcher,
        metering: Metering,
        limits: Limits,
        cache: AnswerCaching,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._selection = selection
        self._dispatcher = dispatcher
        self._metering = metering
        self._limits = limits
        self._cache = cache
        self._timer = timer

    async def ask(
        self,
        dialect: Dialect,
        request: dict[str, Any],
        *,
        caller: Caller = NOBODY,
        request_bytes: int,
    ) -> Whole | Streamed | Again:
        """Answer a request for text, streamed when it asks for a stream.

        ``request_bytes``: its size as it was sent, from which its tokens are guessed.
        Fallback to another deployment happens until the first token. Raises
        ``InvalidInput``, ``NotFound`` (unknown model), ``RateLimited``,
        ``BudgetExceeded`` (nobody was asked, nothing is billed), ``Unavailable``.
        """
        began = self._timer()
        face = FACES[dialect]
        face.check(request)
        decision, order = self._selection.choose(
            request.get("model") or Mode.AUTO,
            iteration=caller.iteration,
            tags=caller.tags,
        )
        admitted = await self._admit(
            dialect, request, caller, decision, order, request_bytes, began
        )
        key = _cache_key(dialect, request, order, caller)
        if key is not None:
            kept = await self._cache.lookup(key)
            again = None if kept is None else self._again(face, request, kept, admitted)
            if again is not None:
                await self._correct(admitted, 0)
                return again
        if request.get("stream"):
            return await self._stream(Stream(face, request), admitted)
        return await self._whole(Say(face, request), admitted, key)

    async def embed(
        self, request: dict[str, Any], *, caller: Caller = NOBODY, request_bytes: int
    ) -> Whole:
        """Answer with embeddings, in OpenAI's shape. Raises as ``ask``."""
        began = self._timer()
        check_embeddings(request)
        decision, order = self._selection.choose(
            request.get("model") or Mode.AUTO, kind=Kind.EMBEDDINGS, tags=caller.tags
        )
        admitted = await self._admit(
            Dialect.OPENAI, request, caller, decision, order, request_bytes, began
        )
        return await self._whole(Embed(request), admitted, None)

    async def _admit(
        self,
        dialect: Dialect,
        request: dict[str, Any],
        caller: Caller,
        decision: Decision,
        order: Sequence[Upstream],
        request_bytes: int,
        began: float,
    ) -> _Admitted:
        max_tokens, answers = limit_of(dialect, request), answers_of(dialect, request)
        tokens = 0
        if caller.limits is not None:
            _, tokens = estimate(
                order[0].deployment, request_bytes, max_tokens, answers
            )
            await self._limits.admit(caller, tokens)
        context = CallContext(
            purpose="gateway",
            reason=decision.reason,
            dialect=dialect,
            trace_id=current_trace_id(),
            task_id=caller.task_id,
            iteration=caller.iteration,
            key_id=caller.key_id,
            accounts=await self._limits.accounts(caller),
            request_bytes=request_bytes,
            max_tokens=max_tokens,
            answers=answers,
        )
        return _Admitted(
            caller=caller,
            decision=decision,
            order=order,
            context=context,
            tokens=tokens,
            began=began,
        )

    async def _stream(self, asked: Stream, admitted: _Admitted) -> Streamed:
        answered = await self._first(asked, admitted)
        return Streamed(
            answered,
            self._dispatcher,
            asked.face,
            asked.request,
            self._headers(answered, asked, admitted, replayed=answered.value.replayed),
            correct=lambda used: self._correct(admitted, used),
        )

    async def _first(self, asked: Question[T], admitted: _Admitted) -> Answered[T]:
        try:
            return await self._dispatcher.first(admitted.order, asked, admitted.context)
        except BaseException:
            if not admitted.context.may_be_billed:
                await self._correct(admitted, 0)
            raise

    async def _whole(
        self, asked: Say | Embed, admitted: _Admitted, key: str | None
    ) -> Whole:
        answered = await self._first(asked, admitted)
        reply = answered.value
        error: UpstreamError | None = None
        body = b""
        try:
            body = asked.said(reply, answered.upstream.deployment.dialect)
        except UpstreamError as cause:
            error = cause  # billed all the same
        except Exception:  # noqa: BLE001 - a call that was made is settled
            error = unreadable(answered.upstream.deployment)
        call = self._dispatcher.settle(
            answered,
            reply.usage,
            replayed=reply.replayed,
            error=None if error is None else str(error),
        )
        await self._correct(admitted, used_tokens(call.usage))
        if error is not None:
            raise error
        # Kept under the name of who was to answer: what a fallback said, or a record,
        # would be given again as that one's word.
        asked_first = answered.upstream is admitted.order[0]
        if key is not None and asked_first and not reply.replayed:
            ttl_s = answered.upstream.deployment.cache_ttl_s
            await self._cache.keep(key, asked.dialect, body, ttl_s=ttl_s)
        headers = self._headers(
            answered, asked, admitted, replayed=reply.replayed, call=call
        )
        return Whole(body=body, headers=headers)

    async def _correct(self, admitted: _Admitted, used: int | None) -> None:
        await self._limits.correct(
            admitted.caller,
            admitted=admitted.tokens,
            used=used,
            since=admitted.began,
        )

    def _headers(
        self,
        answered: Answered[Any],
        asked: Say | Stream | Embed,
        admitted: _Admitted,
        *,
        replayed: bool,
        call: ModelCall | None = None,
    ) -> Headers:
        return reply_headers(
            answered,
            admitted.decision,
            overhead_s=self._timer() - admitted.began - answered.waited_s,
            replayed=replayed,
            left_out=asked.left_out(answered.upstream.deployment.dialect),
            call=call,
        )

    def _again(
        self, face: Face, request: dict[str, Any], kept: bytes, admitted: _Admitted
    ) -> Whole | Again | None:
        """Give an answer again that was given before; None where it cannot be streamed."""
        events: list[bytes] | None = None
        if request.get("stream"):
            events = events_again(face, request, kept)
            if events is None:
                return None
        context, deployment = admitted.context, admitted.order[0].deployment
        call = ModelCall(
            interaction_id=new_id(),
            at=utc_now(),
            deployment=deployment.name,
            side=deployment.side,
            model=deployment.model,
            dialect=face.dialect,
            route_reason=f"{context.reason}; answered from the cache",
            ok=True,
            usage=Usage(),
            cost_usd=Decimal(0),
            latency_ms=round((self._timer() - admitted.began) * 1000, 3),
            task_id=context.task_id,
            iteration=context.iteration,
            trace_id=context.trace_id,
            cached=True,
            key_id=context.key_id,
        )
        self._metering.begin(call)
        self._metering.end(call)
        headers = headers_of_cached(deployment, call.interaction_id)
        if events is not None:
            return Again(events, headers)
        return Whole(body=kept, headers=headers)


def _cache_key(
    dialect: Dialect,
    request: dict[str, Any],
    order: Sequence[Upstream],
    caller: Caller,
) -> str | None:
    """Return what the answer is kept under; None where none is kept or given."""
    deployment = order[0].deployment
    if deployment.cache is CacheScope.OFF and not caller.cache:
        return None
    owner = None if deployment.cache is CacheScope.SHARED else caller.owner
    asked = {**request, "model": request.get("model") or Mode.AUTO}
    return cache_key(dialect, owner, deployment.model, asked)
