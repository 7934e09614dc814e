"""Faults in the queue: dependencies, limits, memory, draining."""

from tools.faults.fault import Fault

_STORE = "tests/contracts/test_task_queue.py"
_GATE = "tests/unit/test_gate.py"
_MEMORY = "tests/unit/test_memory.py"
_ENGINE = "tests/contracts/test_task_engine_gate.py"
_STACK = "tests/system/test_queue.py"

FAULTS = (
    Fault(
        "ralph queue: what a task needs is not waited for",
        (
            (
                "backends/sql/task_queue.py",
                "    if not one.spec.dependencies:\n        return one\n",
                "    if one.spec.dependencies or True:\n        return one\n",
            ),
        ),
        (_STORE, "-k", "diamond or nobody_has"),
    ),
    Fault(
        "ralph queue: a cycle by forward references is let in",
        (
            (
                "backends/sql/task_queue.py",
                "    if circle := await _circle(connection, task.task_id):\n",
                "    if circle := []:\n",
            ),
        ),
        (_STORE, "-k", "cycle_of_three"),
    ),
    Fault(
        "ralph queue: two submits at once look before either is written",
        (
            (
                "backends/sql/task_queue.py",
                "    await database.serialise(connection, _GRAPH_LOCK)\n",
                "",
            ),
        ),
        (_STORE, "-k", "two_submits"),
    ),
    Fault(
        "ralph queue: a dependency that ended is waited for without end",
        (
            (
                "backends/sql/task_queue.py",
                "            broken = [one for one in unmet if one.ended]\n",
                "            broken = []\n",
            ),
        ),
        (_STORE, "-k", "ends_all_that"),
    ),
    Fault(
        "ralph queue: whoever is second hands over again",
        (
            (
                "backends/sql/task_queue.py",
                "if before.status is not TaskStatus.QUEUED or not before.waits_for:",
                "if before.status is not TaskStatus.QUEUED:",
            ),
            (
                "backends/sql/task_queue.py",
                "            if after == before:\n                return None\n",
                "",
            ),
        ),
        (_STORE, "-k", "several_processes"),
    ),
    Fault(
        "ralph queue: a cancelled task is started by its dependency",
        (
            (
                "backends/sql/task_queue.py",
                "if before.status is not TaskStatus.QUEUED or not before.waits_for:",
                "if not before.waits_for:",
            ),
            (
                "backends/sql/task_queue.py",
                "schema.task.c.status == TaskStatus.QUEUED.value, mine.c.waits == 1",
                "mine.c.waits == 1",
            ),
        ),
        (_STORE, "-k", "cancelled_one"),
    ),
    Fault(
        "ralph queue: the hand-over is not in the commit that says so",
        (
            (
                "backends/sql/task_queue.py",
                (
                    "            if not unmet:\n"
                    "                priority = PRIORITIES.index(after.priority)\n"
                    "                await connection.run_sync(\n"
                    "                    self._enqueue, task_id, priority, after.attempt\n"
                    "                )\n"
                ),
                (
                    "        if not unmet:\n"
                    "            priority = PRIORITIES.index(after.priority)\n"
                    "            async with self._database.write() as connection:\n"
                    "                await connection.run_sync(\n"
                    "                    self._enqueue, task_id, priority, after.attempt\n"
                    "                )\n"
                ),
            ),
        ),
        (
            "tests/system/test_loop_kill.py",
            "-k",
            "who_needs_it and before and enqueue",
        ),
    ),
    Fault(
        "ralph queue: nobody looks unless nudged",
        (
            (
                "ralph/queue.py",
                "async with asyncio.timeout(max(self._every_s, took_s * _REST)):",
                "async with asyncio.timeout(None):",
            ),
        ),
        (_STORE, "-k", "goes_on_by_itself"),
    ),
    Fault(
        "ralph queue: a retried task starts without what it needs",
        (
            (
                "backends/sql/task_store.py",
                "        after = await task_queue.ready(connection, one)\n",
                "        after = one\n",
            ),
        ),
        (_STORE, "-k", "retried or approved"),
    ),
    Fault(
        "ralph queue: a backend has no limit",
        (
            (
                "ralph/gate.py",
                "now >= table.concurrency:",
                "now > table.concurrency:",
            ),
        ),
        (_GATE, "-k", "holds_nobody_else_back"),
    ),
    Fault(
        "ralph queue: one that is held back stops the line",
        (
            (
                "ralph/gate.py",
                "                    waits[need.task_id] = why\n",
                "                    waits[need.task_id] = why\n                    break\n",
            ),
        ),
        (_GATE, "-k", "holds_nobody_else_back"),
    ),
    Fault(
        "ralph queue: only the first page of the line is seen",
        (
            (
                "backends/dbos/claims.py",
                "            if len(page) < _PAGE:\n",
                "            if page:\n",
            ),
        ),
        (_ENGINE, "-k", "long_line"),
    ),
    Fault(
        "ralph queue: starts are not counted by the minute",
        (
            (
                "ralph/gate.py",
                "            if len(starts) >= table.starts_per_minute:\n",
                "            if len(starts) > 1000:\n",
            ),
        ),
        (_GATE, "-k", "minute"),
    ),
    Fault(
        "ralph queue: memory that is promised is given twice",
        (
            (
                "ralph/gate.py",
                "        unused = max(reserved - (used or 0), 0)\n",
                "        unused = 0\n",
            ),
            (
                "ralph/gate.py",
                "            look.free -= wanted\n",
                "            pass\n",
            ),
        ),
        (_GATE, "-k", "given_twice"),
    ),
    Fault(
        "ralph queue: smaller tasks pass a larger one for ever",
        (
            (
                "ralph/gate.py",
                "            look.closed = self._has_waited_enough(need.task_id)\n",
                "",
            ),
        ),
        (_GATE, "-k", "bounded_time"),
    ),
    Fault(
        "ralph queue: what never fits is let in",
        (
            (
                "ralph/sealing.py",
                "            bool(never := rules.never_fits(",
                "            not bool(never := rules.never_fits(",
            ),
        ),
        (_STACK, "-k", "never_has"),
    ),
    Fault(
        "ralph queue: the limit of a group above is not seen",
        (
            (
                "resilience/memory.py",
                "    for length in range(len(parts), -1, -1):\n",
                "    for length in (len(parts),):\n",
            ),
        ),
        (_MEMORY, "-k", "tightest"),
    ),
    Fault(
        "ralph queue: memory that cannot be read is none",
        (
            (
                "resilience/memory.py",
                "default=None)",
                "default=0)",
            ),
        ),
        (_MEMORY, "-k", "unknown"),
    ),
    Fault(
        "ralph queue: DBOS takes whom the gate did not choose",
        (
            (
                "backends/dbos/claims.py",
                "        return [row.workflow_uuid.in_(self._chosen)]\n",
                "        return []\n",
            ),
        ),
        (_ENGINE, "-k", "only_who"),
    ),
    Fault(
        "ralph queue: draining begins the next step",
        (
            (
                "backends/dbos/engine.py",
                "        if self._draining:\n            raise asyncio.CancelledError\n",
                "",
            ),
        ),
        (_ENGINE, "-k", "begins_no_other"),
    ),
    Fault(
        "ralph queue: draining cuts the step off",
        (
            (
                "web/stack.py",
                "nestor.ralph.drain(nestor.settings.drain_s)",
                "nestor.ralph.drain(0.1)",
            ),
        ),
        (_STACK, "-k", "sigterm"),
    ),
    Fault(
        "ralph queue: a drained task has been recovered once more",
        (
            (
                "backends/dbos/engine.py",
                "            self._abandoned.add(name)\n",
                "",
            ),
        ),
        (_ENGINE, "-k", "draining"),
    ),
    Fault(
        "ralph queue: a second signal waits like the first",
        (
            (
                "web/stack.py",
                "        (hurry if stop.is_set() else stop).set()\n",
                "        stop.set()\n",
            ),
        ),
        (_STACK, "-k", "600"),
    ),
    Fault(
        "ralph queue: a stack that drains says that it is ready",
        (
            (
                "web/stack.py",
                "            app.unready()\n",
                "            pass\n",
            ),
        ),
        (_STACK, "-k", "sigterm"),
    ),
    Fault(
        "ralph queue: a limit for an agent that nobody has",
        (
            (
                "model/backend_table.py",
                "        if table.name not in known:\n",
                "        if not known:\n",
            ),
        ),
        ("tests/unit/test_settings_backends.py", "-k", "wrong"),
    ),
)
