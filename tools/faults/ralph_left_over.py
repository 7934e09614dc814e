"""Faults in what attempts, restarts, versions and other owners leave in the queue."""

from tools.faults.fault import Fault

_LEFT = "tests/system/test_left_over.py"
_CANCEL = "tests/system/test_cancelling.py"
_STORE = "tests/contracts/test_task_queue.py"
_ENGINE = "tests/contracts/test_task_engine.py"
_GATE = "tests/contracts/test_task_engine_gate.py"
_ROWS = "backends/dbos/workflow_rows.py"

FAULTS = (
    Fault(
        "left over: what a dead process had begun counts as the next attempt",
        (
            (
                _ROWS,
                "        self._cancel(connection, row.workflow_uuid.in_(names[:-1]))\n",
                "        if self.enqueued(connection, names):\n            return False\n",
            ),
        ),
        (_LEFT, "-k", "answer_between or resume_between"),
    ),
    Fault(
        "left over: an earlier attempt stays in the queue",
        (
            (
                _ROWS,
                "        self._cancel(connection, row.workflow_uuid.in_(names[:-1]))\n",
                "",
            ),
        ),
        (_ENGINE, "-k", "those_of_before"),
    ),
    Fault(
        "left over: it does not look whose turn it is",
        (
            (
                "ralph/loop.py",
                "if task.attempt != steps.attempt or task.waits_for:",
                "if not task.attempt:",
            ),
        ),
        (_LEFT, "-k", "before_what_it_needs"),
    ),
    Fault(
        "left over: a change of another attempt is stored",
        (
            (
                "backends/sql/task_store.py",
                "if attempt is not None and before.attempt != attempt:",
                "if attempt is not None and not before.attempt:",
            ),
        ),
        ("tests/contracts/test_task_store.py", "-k", "another_attempt"),
    ),
    Fault(
        "left over: one attempt that is about to end stops the sweep",
        (
            (
                "ralph/queue.py",
                "        except Conflict:",
                "        except ZeroDivisionError:",
            ),
        ),
        (_STORE, "-k", "about_to_end"),
    ),
    Fault(
        "cancel: work begins before anybody looks",
        (("ralph/parts.py", "    if asked:\n", "    if not asked and asked:\n"),),
        ("tests/unit/test_cancellation.py", "-k", "already"),
    ),
    Fault(
        "cancel: advice is waited for to its end",
        (
            (
                "ralph/acting.py",
                "await until_cancelled(p, task, _guidance(p, task, n, context, turns))",
                "await _guidance(p, task, n, context, turns)",
            ),
        ),
        (_CANCEL, "-k", "guidance"),
    ),
    Fault(
        "cancel: the end is decided without looking",
        (
            (
                "ralph/recording.py",
                "    if stored.cancel_requested:",
                "    if not stored.attempt:",
            ),
        ),
        (_CANCEL, "-k", "decides_it and record"),
    ),
    Fault(
        "cancel: what a dead process left running is not ended",
        (
            (
                "ralph/recording.py",
                "        await _end_processes(p, task)\n",
                "        pass\n",
            ),
        ),
        (_CANCEL, "-k", "decides_it and record"),
    ),
    Fault(
        "left over: a cancel waits for a worker",
        (
            (
                "backends/dbos/claims.py",
                "chosen = self._ending() if most > 0 else []",
                "chosen = []",
            ),
        ),
        (_GATE, "-k", "only_ends"),
    ),
    Fault(
        "left over: a task that nobody holds says nothing",
        (
            (
                "ralph/waiting.py",
                "        if begun:\n",
                "        if begun and not begun:\n",
            ),
        ),
        (_LEFT, "-k", "says_so"),
    ),
    Fault(
        "left over: dependencies tell of other owners' tasks",
        (("ralph/service.py", 'any_owner=principal.may("read")', "any_owner=True"),),
        ("tests/faces/test_owners.py", "-k", "dependency"),
    ),
    Fault(
        "left over: a circle tells of other owners' tasks",
        (
            (
                "backends/sql/task_queue.py",
                "        .where(_counts(mine, theirs))\n",
                "",
            ),
        ),
        (_STORE, "-k", "others_tasks or own_circle"),
    ),
    Fault(
        "left over: each look reads whole tasks",
        (
            (
                "backends/sql/task_queue.py",
                "        *(row.task_id, row.status,",
                "        *(row.body, row.task_id, row.status,",
            ),
        ),
        (_STORE, "-k", "no_whole_task"),
    ),
    Fault(
        "left over: tasks of before have no place in the queue",
        (("backends/sql/migrations/0006_places.py", "    _fill(place)\n", ""),),
        ("tests/contracts/test_migrations.py", "-k", "place"),
    ),
    Fault(
        "left over: nobody looks for what another version left",
        (("backends/dbos/engine.py", "            await self._take_over()\n", ""),),
        (_ENGINE, "-k", "another_version"),
    ),
    Fault(
        "left over: records of another version are replayed",
        (
            (
                _ROWS,
                "            .where(theirs, fresh)\n",
                "            .where(theirs)\n",
            ),
        ),
        (_LEFT, "-k", "another_version"),
    ),
    Fault(
        "children: uvloop closes a pipe, and then closes it again",
        (
            (
                "backends/child_process.py",
                "    kind = _HandedOver if _is_uvloop(asyncio.get_running_loop()) else _End\n",
                "    kind = _End\n",
            ),
        ),
        ("tests/unit/test_child_process.py", "-k", "another_thread"),
    ),
)
