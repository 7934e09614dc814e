"""What DBOS does by default to the process it runs in, and Nestor does not want."""

import logging
from typing import Any

from dbos import _serialization as dbos_serialization


def read_json_only() -> None:
    """Whatever a row says it holds: DBOS would unpickle it, which runs code."""

    def refuse(_text: str) -> Any:
        raise ValueError("a record of DBOS is not JSON")

    vars(dbos_serialization.DBOSDefaultSerializer)["deserialize"] = refuse


def quiet(level: int) -> None:
    """Let DBOS log through the process's own handlers, from ``level`` up."""
    logger = logging.getLogger("dbos")
    if not logger.handlers:  # else it would add one that writes to the console
        logger.addHandler(logging.NullHandler())
    logger.setLevel(level)
