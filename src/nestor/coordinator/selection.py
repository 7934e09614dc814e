"""Which deployments a request is put to, in which order, and why."""

from collections.abc import Sequence

from nestor.coordinator.policy import decide
from nestor.coordinator.pool import Pool
from nestor.coordinator.upstream import Upstream
from nestor.errors import InvalidInput, NotFound, Unavailable
from nestor.model.routing import Decision, Kind, Mode, Side

_SHOWN = 100
_SET_A_MODEL = (
    "no model is configured: set NESTOR_LOCAL_MODEL or NESTOR_REMOTE_MODEL,"
    " or add a [[deployment]] to nestor.toml"
)
_SET_EMBEDDINGS = (
    "no embeddings are configured: set NESTOR_EMBEDDINGS_BASE_URL and"
    ' NESTOR_EMBEDDINGS_MODEL, or add a [[deployment]] with kind = "embeddings"'
)


class Selection:
    """Chooses for the gateway and for routed queries alike.

    Who asks for a side never gets the other: ``local`` may mean that the text must not
    leave the machine. Who asks for a deployment or a model gets that, or the fallbacks
    that the operator named for it.
    """

    def __init__(self, pool: Pool, default: Side) -> None:
        self._pool = pool
        self._default = default

    def choose(
        self,
        model: str,
        *,
        kind: Kind = Kind.CHAT,
        iteration: int | None = None,
        tags: Sequence[str] = (),
        field: str = "model",
    ) -> tuple[Decision, list[Upstream]]:
        """Return the decision, and the upstreams to ask one after the other.

        ``model``: auto, local, remote, the name of a deployment or of a model.
        ``field``: what an error names. Raises ``InvalidInput``, ``NotFound``,
        ``Unavailable`` (nothing is configured).
        """
        if kind is Kind.EMBEDDINGS:
            return self._embeddings(model, tags)
        if model not in set(Mode):
            return self._named(model, kind, tags, field)
        if not self._pool.sides:
            raise Unavailable(_SET_A_MODEL)
        decision = self._decide(Mode(model), iteration, field)
        either = model == Mode.AUTO
        order = self._pool.of_side(decision.side, kind=kind, tags=tags, across=either)
        if either and len(self._pool.sides) > 1:
            other = Side.REMOTE if decision.side is Side.LOCAL else Side.LOCAL
            rest = self._pool.of_side(other, kind=kind, tags=tags, across=True)
            order = list(dict.fromkeys([*order, *rest]))
        if not order:
            raise _untagged(tags)
        return decision, order

    def _decide(self, mode: Mode, iteration: int | None, field: str) -> Decision:
        try:
            return decide(
                mode=mode,
                configured=self._pool.sides,
                default=self._default,
                iteration=iteration,
            )
        except InvalidInput as error:
            raise InvalidInput.at(field, error.errors[0].message) from None

    def _named(
        self, model: str, kind: Kind, tags: Sequence[str], field: str
    ) -> tuple[Decision, list[Upstream]]:
        order = self._pool.named(model, kind=kind, tags=tags)
        if order:
            side = order[0].deployment.side
            reason = f"asked for {model}"
            return Decision(side=side, confidence=None, reason=reason), order
        if tags and self._pool.named(model, kind=kind, tags=()):
            raise _untagged(tags)
        known = ", ".join(self.names(kind)) or "none"
        message = f"{model[:_SHOWN]!r} is not configured; known: {known}"
        raise NotFound.at(field, message)

    def _embeddings(
        self, model: str, tags: Sequence[str]
    ) -> tuple[Decision, list[Upstream]]:
        kind = Kind.EMBEDDINGS
        if not self.names(kind):
            raise NotFound.at("model", _SET_EMBEDDINGS)
        if model != Mode.AUTO:
            return self._named(model, kind, tags, "model")
        order = [
            upstream
            for side in Side
            for upstream in self._pool.of_side(side, kind=kind, tags=tags)
        ]
        if not order:
            raise _untagged(tags)
        # Vectors of another model cannot be compared with those of the first.
        model_name = order[0].deployment.model
        same = [one for one in order if one.deployment.model == model_name]
        reason = "the configured embeddings"
        side = same[0].deployment.side
        return Decision(side=side, confidence=None, reason=reason), same

    def window(self, model: str) -> int | None:
        """Return how many tokens surely fit, whoever is asked for ``model``; None: unknown.

        The least of what is known of those that may be asked, fallbacks among them.
        """
        try:
            _, order = self.choose(model)
        except (InvalidInput, NotFound, Unavailable):
            return None
        known = [one.deployment.context_window for one in order]
        return min((tokens for tokens in known if tokens), default=None)

    def names(self, kind: Kind | None = None) -> list[str]:
        """What ``model`` may be."""
        names: list[str] = []
        if self._pool.sides and kind is not Kind.EMBEDDINGS:
            names = [Mode.AUTO.value]
            names += [side.value for side in Side if side in self._pool.sides]
        for upstream in self._pool.upstreams:
            deployment = upstream.deployment
            if kind in {None, deployment.kind}:
                names += [deployment.name, deployment.model]
        return list(dict.fromkeys(names))


def _untagged(tags: Sequence[str]) -> InvalidInput:
    wanted = ", ".join(tags)
    return InvalidInput.at(
        "x-nestor-tags", f"no such deployment has the tags: {wanted}"
    )
