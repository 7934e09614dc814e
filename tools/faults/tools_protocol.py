"""Faults in the tools that ``/mcp`` serves."""

from tools.faults.fault import Fault

_MCP = "tests/faces/test_mcp.py"

FAULTS = (
    Fault(
        "mcp: anybody may come in",
        (
            (
                "web/coordinator.py",
                'mcp.handler("coordinator", scope="model")',
                'mcp.handler("coordinator", scope=None)',
            ),
        ),
        (_MCP, "-k", "stays_out"),
    ),
    Fault(
        "mcp: a page sends what it may send unasked",
        (("web/mcp.py", "        _refuse_other_types(scope)\n", ""),),
        (_MCP, "-k", "other_origin"),
    ),
    Fault(
        "mcp: of two values under one name the last counts",
        (("web/mcp.py", "        errors.decode(body, JsonRpc)\n", ""),),
        (_MCP, "-k", "no_request"),
    ),
    Fault(
        "mcp: a start pays for the SDK",
        (
            (
                "web/mcp.py",
                "import importlib\n",
                "import importlib\nimport mcp.server\n",
            ),
        ),
        (_MCP, "-k", "does_not_pay"),
    ),
    Fault(
        "mcp: the model goes on for a client that left",
        (("web/mcp.py", "        leave_with_the_client(scope)\n", ""),),
        (_MCP, "-k", "stops_waiting"),
    ),
    Fault(
        "mcp: a notification is answered",
        (
            (
                "web/mcp.py",
                "    id: NotRequired[str | int]",
                "    id: str | int",
            ),
        ),
        (_MCP, "-k", "notification"),
    ),
    Fault(
        "mcp: a stop cuts off what was asked before it",
        (
            (
                "web/serve.py",
                "timeout_graceful_shutdown=drain_s",
                "timeout_graceful_shutdown=0",
            ),
        ),
        (_MCP, "-k", "before_a_stop"),
    ),
    Fault(
        "mcp: an error names no field",
        (
            (
                "web/mcp_tools.py",
                "        raise errors.explain_validation(str(error)) from None",
                "        raise",
            ),
        ),
        (_MCP, "-k", "names_the_field"),
    ),
    Fault(
        "mcp: a bug is told",
        (("web/mcp_tools.py", "text=told.detail", "text=str(error)"),),
        (_MCP, "-k", "not_told"),
    ),
    Fault(
        "mcp: anybody acts in a task's name",
        (
            (
                "web/mcp_coordinator.py",
                '    charge_to(given.task_id, scope["user"])\n',
                "",
            ),
        ),
        (_MCP, "-k", "only_the_admin"),
    ),
    Fault(
        "mcp: anybody writes into a task's history",
        (("web/mcp_coordinator.py", "    charge_to(given.task_id, user)\n", ""),),
        (_MCP, "-k", "only_the_admin"),
    ),
    Fault(
        "mcp: without the SDK it breaks",
        (("web/mcp.py", "except ImportError as error:", "except KeyError as error:"),),
        (_MCP, "-k", "what_to_install"),
    ),
)
