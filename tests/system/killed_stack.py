"""``nestor up`` that is killed (SIGKILL, by itself) at a named point.

    python -m tests.system.killed_stack POINT

``POINT``: ``before:agent-1`` (the step begins), ``after:agent-1`` (it has done its work,
nothing is recorded), ``before:enqueue`` or ``after:enqueue`` (between a task's row and the
commit), each also with a task, as in ``before:enqueue@t2``, or ``never``. Everything but the moment of the kill is the product.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nestor.backends.dbos import engine as dbos_engine
from nestor.cli.main import main

T = TypeVar("T")
POINT = sys.argv.pop(1)


def here(point: str) -> None:
    if point == POINT:
        os.kill(os.getpid(), signal.SIGKILL)


run = dbos_engine._DbosSteps.run
enqueue_in = dbos_engine.DbosEngine.enqueue_in


async def killed_run(
    self: Any, name: str, kind: type[T], action: Callable[[], Awaitable[T]]
) -> T:
    async def killed() -> T:
        here(f"before:{name}")
        value = await action()
        here(f"after:{name}")
        return value

    return await run(self, name, kind, killed)


def killed_enqueue(self: Any, connection: Any, task_id: str, **named: Any) -> None:
    for point in ("before:enqueue", f"before:enqueue@{task_id}"):
        here(point)
    enqueue_in(self, connection, task_id, **named)
    for point in ("after:enqueue", f"after:enqueue@{task_id}"):
        here(point)


dbos_engine._DbosSteps.run = killed_run  # type: ignore[method-assign]
dbos_engine.DbosEngine.enqueue_in = killed_enqueue  # type: ignore[method-assign]
sys.argv[1:] = ["up"]
main()
