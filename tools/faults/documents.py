"""Faults in the OpenAPI documents, and in how JSON is read."""

from tools.faults.fault import Fault

ERRORS = "tests/faces/test_errors.py"
HOSTILE = "tests/system/test_hostile_json.py"
EXPLORED = "tests/system/test_schemathesis.py"

FAULTS = (
    Fault(
        "l6: integers of any length",
        (("web/errors.py", ", parse_int=_integer)", ")"),),
        (HOSTILE, "-k", "numbers"),
    ),
    Fault(
        "l6: the last of repeated names counts",
        (("web/errors.py", "object_pairs_hook=_once_each, ", ""),),
        (ERRORS, "-k", "body_is_400"),
    ),
    Fault(
        "401 is not documented",
        (("web/openapi.py", "KEYED_CALL = (401,)", "KEYED_CALL = ()"),),
        (ERRORS, "-k", "lists_every_route"),
    ),
    Fault(
        "404 is not documented",
        (("web/openapi.py", "PATH_CALL = (404,)", "PATH_CALL = ()"),),
        (ERRORS, "-k", "lists_every_route"),
    ),
    Fault(
        "endless digits in a header",
        (("web/gateway.py", " and len(given) <= _MAX_DIGITS", ""),),
        (HOSTILE, "-k", "headers"),
    ),
    Fault(
        "what a handler raises is not documented",
        (
            (
                "web/coordinator.py",
                '"raises": (NotFound, TooLarge, *_OF_MODELS),',
                '"raises": _OF_MODELS,',
            ),
        ),
        ("tests/faces/test_coordinator_http.py", "-k", "documented_404"),
    ),
    Fault(
        "null is not documented",
        (
            (
                "web/views.py",
                "    ended_at: datetime | None\n    iteration: int",
                "    ended_at: datetime\n    iteration: int",
            ),
        ),
        (EXPLORED, "-k", "every_call"),
    ),
)
