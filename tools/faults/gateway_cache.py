"""Faults of the answer cache, as a caller of the gateway would meet them."""

from tools.faults.fault import Fault

_TEST = "tests/unit/test_gateway_cache.py"
FAULTS = (
    Fault(
        "gateway cache: a fallback's answer is kept as the first one's",
        (
            (
                "coordinator/gateway.py",
                "asked_first = answered.upstream is admitted.order[0]",
                "asked_first = True",
            ),
        ),
        (_TEST, "-k", "fallback"),
    ),
    Fault(
        "gateway cache: everybody gets everybody's answers",
        (
            (
                "coordinator/gateway.py",
                "owner = None if deployment.cache is CacheScope.SHARED else caller.owner",
                "owner = None",
            ),
        ),
        (_TEST, "-k", "own_key_only"),
    ),
    Fault(
        "gateway cache: one dialect's answer is given in another",
        (
            (
                "coordinator/answer_cache.py",
                "[dialect, owner, group, asked]",
                "[owner, group, asked]",
            ),
            (
                "coordinator/gateway.py",
                "return cache_key(dialect, owner, deployment.model, asked)",
                'asked.pop("max_tokens", 0)\n    asked["model"] = Mode.AUTO\n    return cache_key(dialect, owner, deployment.model, asked)',
            ),
        ),
        (_TEST, "-k", "dialects"),
    ),
)
