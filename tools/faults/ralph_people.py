"""Faults in what people hold in their hands: the hook, merges, live output, task files."""

from tools.faults.fault import Fault

HOOK = "tests/system/test_stop_hook.py::"
MERGE = "tests/faces/test_cli_merge.py::"
STEER = "tests/faces/test_steering.py::"
WATCH = "tests/faces/test_cli_watch.py::"
TAIL = "tests/unit/test_tailing.py::"
LIVE = "tests/system/test_live_stream.py::"
WATCH = "tests/faces/test_cli_watch.py::"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph people: the hook judges tests as the agent left them",
        (
            (
                "wiring/holding.py",
                "commit=judged.commit,",
                "commit=tree.base,",
            ),
        ),
        (f"{HOOK}test_a_session_is_held_until_the_checks_pass_on_what_it_left",),
    ),
    Fault(
        "ralph people: the hook holds without end",
        (
            (
                "cli/hook.py",
                "if session.blocks >= max_blocks:",
                "if session.blocks > 10**6:",
            ),
        ),
        (f"{HOOK}test_a_session_is_held_so_often_and_no_more",),
    ),
    Fault(
        "ralph people: the hook holds for the same failure again and again",
        (("cli/hook_sessions.py", "self.same += 1", "self.same = 1"),),
        (f"{HOOK}test_a_session_is_held_until_the_checks_pass_on_what_it_left",),
    ),
    Fault(
        "ralph people: the hook believes a task file that is not committed",
        (
            (
                "cli/hook.py",
                "value = _decoded(raw, path)",
                "value = read_task_file(path)",
            ),
        ),
        (f"{HOOK}test_what_is_committed_says_what_is_checked",),
    ),
    Fault(
        "ralph people: a wrong option of the hook holds the session",
        (("cli/hook.py", "error.exit_code = 1", "error.exit_code = 2"),),
        (f"{HOOK}test_a_mistake_is_never_exit_2_which_would_hold_the_session",),
    ),
    Fault(
        "ralph people: the hook has no time limit",
        (
            (
                "cli/hook.py",
                "async with asyncio.timeout(limit_s):",
                "async with asyncio.timeout(None):",
            ),
        ),
        (f"{HOOK}test_whatever_goes_wrong_lets_the_session_go",),
    ),
    Fault(
        "ralph people: holds that cannot be counted go on",
        (("cli/hook.py", "if going_on is not False:", "if going_on is None:"),),
        (f"{HOOK}test_holds_that_cannot_be_counted_are_once_a_turn",),
    ),
    Fault(
        "ralph people: what is not verified is merged",
        (
            (
                "cli/merge.py",
                'if not task.get("success") and not unverified:',
                'if task.get("success") is None and not unverified:',
            ),
        ),
        (f"{MERGE}test_what_is_not_verified_dirty_or_moved_is_refused",),
    ),
    Fault(
        "ralph people: a branch that was moved is merged",
        (
            (
                "cli/merge.py",
                "if left is not None and tip != left:",
                "if left is None and tip != left:",
            ),
        ),
        (f"{MERGE}test_what_is_not_verified_dirty_or_moved_is_refused",),
    ),
    Fault(
        "ralph people: a merge that never began is to be undone",
        (("cli/merge.py", "    if not left:\n", "    if left is None:\n"),),
        (
            f"{MERGE}test_a_merge_that_git_refuses_before_it_begins_leaves_nothing_to_mend",
        ),
    ),
    Fault(
        "ralph people: a hook that checks nothing is installed",
        (
            (
                "cli/hook.py",
                "    if check and task is None:\n",
                "    if task is None:\n",
            ),
        ),
        (f"{HOOK}test_a_hook_that_would_check_nothing_is_not_installed",),
    ),
    Fault(
        "ralph people: a hook without checks is silent",
        (
            (
                "cli/hook.py",
                'return Answer(message=f"nestor: not checked: {_NO_CHECKS}")',
                "return Answer()",
            ),
        ),
        (f"{HOOK}test_what_is_committed_says_what_is_checked",),
    ),
    Fault(
        "ralph people: the hook answers before a tool is used",
        (
            (
                "cli/hook.py",
                '"Stop")) not in _STOPS:',
                '"Stop")) not in {name}:',
            ),
        ),
        (f"{HOOK}test_another_hook_than_stop_is_answered_with_nothing",),
    ),
    Fault(
        "ralph people: a silent wait hides that a person is asked",
        (
            (
                "cli/watch.py",
                'elif event.kind == "approval" and',
                'elif event.kind == "" and',
            ),
        ),
        (f"{WATCH}test_a_silent_wait_says_that_a_person_is_waited_for",),
    ),
    Fault(
        "ralph people: a silent wait asks for what was answered",
        (
            (
                "cli/watch.py",
                'if name not in [one.get("id") for one in task.get("questions") or []]:',
                "if name is None:",
            ),
        ),
        (f"{WATCH}test_a_silent_wait_says_that_a_person_is_waited_for",),
    ),
    Fault(
        "ralph people: a submit that begins nothing looks like one that does",
        (
            (
                "cli/tasks.py",
                "    if ended(reply):\n        if",
                "    if False:\n        if",
            ),
        ),
        (f"{STEER}test_a_submit_that_meets_an_ended_task_begins_nothing_and_says_so",),
    ),
    Fault(
        "ralph people: a grant to an ended task reads like a refusal",
        (
            (
                "cli/steering.py",
                "    if done and ended(reply):",
                "    if not done and ended(reply):",
            ),
        ),
        (f"{STEER}test_who_grants_or_answers_is_told_what_was_done_and_what_is_next",),
    ),
    Fault(
        "ralph people: which of several questions is not shown",
        (("cli/steering.py", "    if len(asked) > 1:", "    if len(asked) > 9:"),),
        (f"{STEER}test_who_grants_or_answers_is_told_what_was_done_and_what_is_next",),
    ),
    Fault(
        "ralph people: the same error twice is not named",
        (
            (
                "ralph/recording.py",
                "next(filter(_TELLING.search, lines), lines[-1])",
                "lines[0]",
            ),
        ),
        (
            "tests/system/test_verified_or_not.py::test_an_agent_that_fails_alike_twice_is_stopped",
        ),
    ),
    Fault(
        "ralph people: a patch leaves binary files out silently",
        (
            (
                "cli/merge.py",
                "if _CUT in text[-100:] or binary:",
                "if _CUT in text[-100:]:",
            ),
        ),
        (f"{MERGE}test_a_diff_of_one_iteration_its_size_and_as_a_patch",),
    ),
    Fault(
        "ralph people: live output is not redacted",
        (
            (
                "ralph/tailing.py",
                'return _KEY_BODY.sub(REDACTED, redact("\\n".join(lines)))',
                'return _KEY_BODY.sub(REDACTED, "\\n".join(lines))',
            ),
        ),
        (f"{TAIL}test_no_secret_is_told_whole_or_in_parts",),
    ),
    Fault(
        "ralph people: live output has no end",
        (
            (
                "ralph/tailing.py",
                "room = min(EVENT_BYTES, ITERATION_BYTES - self._told)",
                "room = EVENT_BYTES",
            ),
        ),
        (f"{TAIL}test_an_iteration_tells_so_much_and_no_more",),
    ),
    Fault(
        "ralph people: half of a skipped line is told",
        (("ralph/tailing.py", "new = new[:end]", "end = len(new)"),),
        (f"{TAIL}test_half_of_a_line_that_was_skipped_is_not_told",),
    ),
    Fault(
        "ralph people: what an agent prints is told at its end only",
        (("ralph/tailing.py", "EVERY_S = 0.5", "EVERY_S = 3600"),),
        (f"{LIVE}test_output_is_told_while_the_agent_runs_and_the_stream_resumes",),
    ),
    Fault(
        "ralph people: a client stops at the end of the first attempt",
        (
            (
                "cli/client.py",
                "ended = event.kind == until\n                    yield event",
                "yield event\n                    if event.kind == until: return",
            ),
        ),
        (
            f"{WATCH}test_watch_tells_judgements_apart_from_verdicts_and_names_what_is_asked",
        ),
    ),
)
