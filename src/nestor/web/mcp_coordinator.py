"""The Coordinator's tools. Imported by ``web.mcp`` where first used."""

from typing import Any

from nestor.model.access import SERVICE, Principal
from nestor.model.interaction import (
    Augmented,
    AugmentRequest,
    Feedback,
    NewFeedback,
    NewInteraction,
    Tracked,
)
from nestor.model.routing import RouteRequest, RouteResult
from nestor.web.auth import charge_to
from nestor.web.coordinator import route_view
from nestor.web.edge import Scope
from nestor.web.gateway import caller_of
from nestor.web.mcp_tools import Tool, Tools


async def _route(coordinator: Any, scope: Scope, given: RouteRequest) -> Any:
    charge_to(given.task_id, scope["user"])
    return route_view(await coordinator.route(given, caller=caller_of(scope)))


async def _augment(coordinator: Any, scope: Scope, given: AugmentRequest) -> Any:
    user: Principal = scope["user"]
    return await coordinator.interactions.augment(given, key_id=user.key_id)


async def _track(coordinator: Any, scope: Scope, given: NewInteraction) -> Any:
    user: Principal = scope["user"]
    charge_to(given.task_id, user)
    return await coordinator.interactions.track(given, key_id=user.key_id)


async def _update(coordinator: Any, scope: Scope, given: NewFeedback) -> Any:
    user: Principal = scope["user"]
    return await coordinator.interactions.feedback(
        given, key_id=user.key_id, source=user.name, of_all=user.may(SERVICE)
    )


_TOOLS = (
    Tool(
        "route_query",
        "Answer a query by the local or remote model that should, with context from the"
        " knowledge base. Says which model answered, why, and what it cost.",
        RouteRequest,
        RouteResult,
        _route,
        asks_models=True,
    ),
    Tool(
        "augment_query",
        "Return a query with what the knowledge base knows about it, as a prompt for a"
        " model of your own. Asks no model.",
        AugmentRequest,
        Augmented,
        _augment,
    ),
    Tool(
        "track_interaction",
        "Keep a question and an answer that was given elsewhere. Returns the"
        " interaction_id that update_outcome takes.",
        NewInteraction,
        Tracked,
        _track,
    ),
    Tool(
        "update_outcome",
        "Say how an answer turned out: outcome (success, partial, failure), user_feedback"
        " (-1 to 1), or both. Do not call it when you do not know.",
        NewFeedback,
        Feedback,
        _update,
    ),
)


def tools(nestor: Any) -> Tools:
    """Make the application that serves them."""
    return Tools("coordinator", nestor.coordinator, _TOOLS)
