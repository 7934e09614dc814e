"""Faults in the builtin agent, in what people are asked, and in what an agent is told."""

from tools.faults.fault import Fault

_P = "backends/agents/builtin_program"
_AGENT = "tests/unit/test_builtin_agent.py"
_FILES = "tests/unit/test_builtin_files.py"
_WINDOW = "tests/unit/test_builtin_window.py"
_POLICY = "tests/unit/test_builtin_policy.py"
_ASKING = "tests/unit/test_builtin_asking.py"
_BRIEF = "tests/unit/test_brief.py"
_PEOPLE = "tests/system/test_asking.py"
_ATTACKS = "tests/system/attacks/test_agents.py"
_MODEL_WINDOW = "tests/system/test_model_window.py::"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph builtin: the Coordinator does not say how much a model takes",
        (
            (
                "web/models.py",
                'shown["context_window"] = window',
                "pass",
            ),
        ),
        (f"{_MODEL_WINDOW}test_a_long_first_message_is_shortened_to_what_the_model_is_told_to_take",),
    ),
    Fault(
        "ralph builtin: of several models the first one's window is told",
        (
            (
                "coordinator/selection.py",
                "return min((tokens for tokens in known if tokens), default=None)",
                "return known[0] if known else None",
            ),
        ),
        (f"{_MODEL_WINDOW}test_models_tells_the_least_window_of_those_that_may_be_asked",),
    ),
    Fault(
        "ralph builtin: llama.cpp's window is not known",
        (
            (
                "wiring/models.py",
                "CONTEXT_TOKENS if settings.starts_llama_cpp else None",
                "None",
            ),
        ),
        (f"{_MODEL_WINDOW}test_a_model_that_nestor_runs_itself_has_the_window_that_it_is_loaded_with",),
    ),
    Fault(
        "ralph builtin: a first message that is too long is sent all the same",
        (
            (
                "backends/agents/builtin_program/window.py",
                "if self._tokens() > most:",
                "if False:",
            ),
        ),
        ("tests/unit/test_builtin_window.py", "-k", "task_without_parts or by_its_rank"),
    ),
    Fault(
        "ralph builtin: the goal is shortened like anything else",
        (
            (
                "backends/agents/builtin_program/window.py",
                "0 if reference else 2 if n == 0 else 1",
                "0 if reference else 1",
            ),
        ),
        (f"{_MODEL_WINDOW}test_a_long_first_message_is_shortened_to_what_the_model_is_told_to_take",),
    ),
    Fault(
        "ralph builtin: context is worth as much as what failed",
        (
            (
                "backends/agents/builtin_program/window.py",
                "0 if reference else 2 if n == 0 else 1",
                "2 if n == 0 else 1",
            ),
        ),
        ("tests/unit/test_builtin_window.py", "-k", "by_its_rank"),
    ),
    Fault(
        "ralph builtin: an edit takes the first of several places",
        ((f"{_P}/files.py", "    if found != 1:\n", "    if not found:\n"),),
        (_FILES, "-k", "does_not_fit"),
    ),
    Fault(
        "ralph builtin: a syntax error after an edit is nobody's business",
        ((f"{_P}/files.py", "{line}{_fault(place, changed)}", "{line}"),),
        (_FILES, "-k", "cannot_be_parsed"),
    ),
    Fault(
        "ralph builtin: links may lead out",
        ((f"{_P}/files.py", "if place == root or root not in place.parents:", "if place == root:"),),
        (_FILES, "-k", "leads_out"),
    ),
    Fault(
        "ralph builtin: git's own files are files",
        ((f"{_P}/files.py", 'if ".git" in place', 'if ".gut" in place'),),
        (_FILES, "-k", "gits_own"),
    ),
    Fault(
        "ralph builtin: a search without an end of its options",
        ((f"{_P}/search.py", '"-e", pattern, "--", *files]', "pattern, *files]"),),
        (_FILES, "-k", "search"),
    ),
    Fault(
        "ralph builtin: the conversation only grows",
        ((f"{_P}/window.py", "if self._tokens() > room:", "if self._tokens() > room * 1000:"),),
        (_WINDOW, "-k", "oldest"),
    ),
    Fault(
        "ralph builtin: the server's count is not believed",
        ((f"{_P}/window.py", "if prompt_tokens is not None and sent_bytes:", "if prompt_tokens is None and sent_bytes < 0:"),),
        (_WINDOW, "-k", "corrects"),
    ),
    Fault(
        "ralph builtin: what is too long is asked again as it is",
        ((f"{_P}/work.py", "self._talk.too_long(first.limit)", "first.limit = None"),),
        (_WINDOW, "-k", "once_more"),
    ),
    Fault(
        "ralph builtin: round in circles to the last turn",
        ((f"{_P}/work.py", "if seen > TOLD_AT and said is None:", "if seen > 99 and said is None:"),),
        (_AGENT, "-k", "same_again"),
    ),
    Fault(
        "ralph builtin: text alone ends it at once",
        ((f"{_P}/work.py", "if content and nudged:", "if content:"),),
        (_AGENT, "-k", "nudged"),
    ),
    Fault(
        "ralph builtin: no clock of its own",
        ((f"{_P}/timing.py", "if self._limit_s is None:", "if self._limit_s is None or most_s >= 0:"),),
        (_AGENT, "-k", "wall_clock"),
    ),
    Fault(
        "ralph builtin: the wait for a person is the agent's time",
        ((f"{_P}/model.py", "self._clock.waited_s += time.monotonic() - begun", "self._clock.waited_s += 0 * begun"),),
        (_ASKING, "-k", "time_that"),
    ),
    Fault(
        "ralph builtin: nobody is asked",
        ((f"{_P}/acting.py", "for question in decision.questions:", "for question in decision.questions[:0]:"),),
        (_ASKING, "-k", "clear_yes"),
    ),
    Fault(
        "ralph builtin: anything but a no is a yes",
        ((f"{_P}/acting.py", "if approved is not True:", "if approved is False:"),),
        (_ASKING, "-k", "clear_yes"),
    ),
    Fault(
        "ralph builtin: silence is a no, and it goes on",
        ((f"{_P}/acting.py", "if approved is None:", "if approved is ...:"),),
        (_ASKING, "-k", "nobody_answers"),
    ),
    Fault(
        "ralph builtin: t1 a download may be run",
        ((f"{_P}/policy.py", "if why := _download_is_run(found):", "if (why := _download_is_run(found)) and not found:"),),
        (_POLICY, "-k", "only_harm"),
    ),
    Fault(
        "ralph builtin: t1 credentials may be read",
        ((f"{_P}/policy.py", "    if _reads_secrets(step):", "    if not step and _reads_secrets(step):"),),
        (_ATTACKS, "-k", "t1"),
    ),
    Fault(
        "ralph builtin: t2 options that run programs",
        ((f"{_P}/policy.py", "if any(_RUNS_OTHERS.fullmatch(word) for word in args)", "if any(_RUNS_OTHERS.fullmatch(word) for word in args[:0])"),),
        (_POLICY, "-k", "only_harm"),
    ),
    Fault(
        "ralph builtin: what is too deep to be read is let through",
        ((f"{_P}/policy.py", 'return Decision("it is too long, or too deep, to be looked through")', "return Decision()"),),
        (_POLICY, "-k", "looked_through"),
    ),
    Fault(
        "ralph builtin: a refusal leaves no record",
        (("backends/agents/builtin.py", "if line.startswith(REFUSED) and len(found) < _MAX_REFUSED:", "if line.startswith(REFUSED * 2) and len(found) < _MAX_REFUSED:"),),
        (_ATTACKS, "-k", "t1"),
    ),
    Fault(
        "ralph builtin: t4 an approved command runs as often as it likes",
        (("ralph/asking.py", "if found.kind is ApprovalKind.COMMAND and not await self._use_up(found):", "if found.kind is ApprovalKind.START:"),),
        (_ATTACKS, "-k", "t4_an_approval"),
    ),
    Fault(
        "ralph builtin: t4 an approval holds for what looks like it",
        (("ralph/asking.py", "            question.digest == digest\n            and question.kind == ask.kind\n            and question.subject == ask.subject\n", "            question.subject.split()[:2] == ask.subject.split()[:2]\n"),),
        (_ATTACKS, "-k", "t4_an_approval"),
    ),
    Fault(
        "ralph builtin: t4 a digest is decoration",
        (("ralph/asking.py", "return [a for a in task.grants if holds(task.task_id, a)]", "return task.grants"),),
        (_ATTACKS, "-k", "tampered"),
    ),
    Fault(
        "ralph builtin: a granted path is not shown",
        (("ralph/acting.py", "            *granted.mounts,\n", ""),),
        (_PEOPLE, "-k", "grant"),
    ),
    Fault(
        "ralph builtin: a refused host is forgotten",
        (("ralph/acting.py", "await put(p, task.task_id, n, _questions(result))", "await put(p, task.task_id, n, [])"),),
        (_PEOPLE, "-k", "grant"),
    ),
    Fault(
        "ralph builtin: a limit that was hit is not named",
        (("ralph/acting.py", "    if over:\n", "    if over and not result.limit:\n"),),
        (_PEOPLE, "-k", "limit"),
    ),
    Fault(
        "ralph builtin: a person's time is the task's",
        (("ralph/acting.py", "(asking.waited_s if asking else 0.0)", "0.0"),),
        (_PEOPLE, "-k", "not_counted"),
    ),
    Fault(
        "ralph builtin: an agent that nobody answered is as good as done",
        (("ralph/asking.py", "self.unanswered = answer.approved is None", "self.unanswered = False"),),
        (_PEOPLE, "-k", "parks"),
    ),
    Fault(
        "ralph builtin: the brief does not tell what was decided",
        (("ralph/acting.py", "        decided=decided(task),\n", ""),),
        (_PEOPLE, "-k", "refusal_is_told"),
    ),
    Fault(
        "ralph builtin: a brief of any size",
        (("ralph/brief.py", "for text in kept if text) <= TOTAL_CHARS:", "for text in kept if text) >= 0:"),),
        (_BRIEF, "-k", "bound"),
    ),
    Fault(
        "ralph builtin: a marker within a marker ends the block",
        (("ralph/brief.py", 'while re.search("</?context>", text):', 'if re.search("</?context>", text):'),),
        (_BRIEF, "-k", "block"),
    ),
    Fault(
        "ralph builtin: half of a character in a command ends the agent",
        ((f"{_P}/acting.py", "return len(command.encode()) < _LINE_BYTES",
          'return len(command.encode("utf-8", "replace")) < _LINE_BYTES'),),
        (_AGENT, "-k", "wrong_calls"),
    ),
)  # fmt: skip
