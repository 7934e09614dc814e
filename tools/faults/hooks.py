"""Faults in feedback, interactions and spend, and in the commands that show them."""

from tools.faults.fault import Fault

_HTTP = "tests/faces/test_interactions_http.py"
_FEEDBACK = "tests/faces/test_feedback_http.py"
_SPEND = "tests/faces/test_spend_http.py"
_STORE = "tests/contracts/test_interaction_store.py"
_CLI = "tests/faces/test_cli_spend.py"
_SERVICE = "coordinator/interactions.py"

FAULTS = (
    Fault(
        "feedback: any key judges any answer",
        ((_SERVICE, "not (of_all or key_id in owners)", "False"),),
        ("tests/faces/test_feedback_http.py", "-k", "its_own_answers_only"),
    ),
    Fault(
        "feedback: who says it is what the body says",
        (
            (
                _SERVICE,
                "            source=source,\n",
                "            source=label or source,\n",
            ),
        ),
        (_FEEDBACK, "-k", "under_the_key"),
    ),
    Fault(
        "feedback: a key has no name",
        (
            (
                "backends/sql/key_store.py",
                "            name=row.name,\n        )\n        # A",
                "        )\n        # A",
            ),
        ),
        (_FEEDBACK, "-k", "under_the_key"),
    ),
    Fault(
        "feedback: what nobody knows is judged",
        (
            (
                _SERVICE,
                "if not owners or not (of_all or key_id in owners):",
                "if False:",
            ),
        ),
        (_FEEDBACK, "-k", "nobody_knows_is_not_found"),
    ),
    Fault(
        "feedback: a call that has just ended is unknown",
        (
            (
                _SERVICE,
                "            await self._metering.fold_now()\n            call = await",
                "            call = await",
            ),
        ),
        (_FEEDBACK, "-k", "under_the_key"),
    ),
    Fault(
        "feedback: nothing may be said",
        (
            (
                _SERVICE,
                "if said.outcome is None and said.user_feedback is None:",
                "if False:",
            ),
        ),
        (_FEEDBACK, "-k", "names_the_field"),
    ),
    Fault(
        "feedback: any word is a label",
        ((_SERVICE, "if not text.isprintable():", "if False:"),),
        (_FEEDBACK, _HTTP, "-k", "names_the_field or is_named"),
    ),
    Fault(
        "feedback: the first word of a key counts",
        (
            (
                "model/interaction.py",
                "        newest.pop(row.key_id, None)\n        newest[row.key_id] = row",
                "        newest.setdefault(row.key_id, row)",
            ),
        ),
        (_STORE, "-k", "newest_counts"),
    ),
    Fault(
        "feedback: the clock says what came last",
        (
            (
                "backends/sql/interaction_store.py",
                "feedback_table.c.seq",
                "feedback_table.c.at",
            ),
        ),
        (_STORE, "-k", "read_in_order"),
    ),
    Fault(
        "feedback: a task's key reports its own success",
        (
            (
                "web/auth.py",
                'if principal.task_id is not None and not self._is_for_tasks(scope["path"]):',
                "if False:",
            ),
            (
                "web/auth.py",
                "if ADMIN in wanted or not template.startswith(TASK_KEY_PREFIX):",
                "if ADMIN in wanted:",
            ),
        ),
        (_FEEDBACK, "-k", "report_its_own_success"),
    ),
    Fault(
        "feedback: its event is not committed with it",
        (
            (
                "backends/sql/interaction_store.py",
                "            await queue(self._database, connection, telemetry)\n\n    async def said",
                "\n    async def said",
            ),
        ),
        (_STORE, "-k", "committed_with_its_row"),
    ),
    Fault(
        "feedback: its event has another id each time",
        (
            (
                _SERVICE,
                "event_id=derived_id(event_type, row_id)",
                "event_id=new_id()",
            ),
        ),
        (_FEEDBACK, "-k", "reach_telemetry_once"),
    ),
    Fault(
        "feedback: a call does not say why it went there",
        (("coordinator/metering.py", '"reason": call.route_reason', '"reason": ""'),),
        (_FEEDBACK, "-k", "every_call"),
    ),
    Fault(
        "feedback: a call that failed takes none",
        (
            (
                "backends/sql/call_ledger.py",
                "for call in reversed(settled.calls)}",
                "for call in reversed(settled.calls) if call.ok}",
            ),
        ),
        (_FEEDBACK, "-k", "failed_is_an_interaction"),
    ),
    Fault(
        "feedback: what was said dies with the process",
        (
            (
                "backends/sql/interaction_store.py",
                """        async with self._database.write() as connection:
            await connection.execute(
                feedback_table""",
                """        async with self._database.read() as connection:
            await connection.execute(
                feedback_table""",
            ),
        ),
        (_FEEDBACK, "-k", "after_a_restart"),
    ),
    Fault(
        "interactions: a repeat is told again",
        (("backends/sql/interaction_store.py", "if new is not None:", "if True:"),),
        (_STORE, "-k", "repeat"),
    ),
    Fault(
        "interactions: a routed query is forgotten",
        (
            (
                "coordinator/service.py",
                "late = await self.interactions.routed(request, result, key_id=caller.key_id)",
                "late = None",
            ),
        ),
        (_HTTP, "-k", "under_its_calls_id"),
    ),
    Fault(
        "interactions: prompts are kept all the same",
        ((_SERVICE, "if text is None or not self._keep_prompts:", "if text is None:"),),
        (_HTTP, "-k", "prompts_are_not_kept"),
    ),
    Fault(
        "interactions: secrets are kept",
        ((_SERVICE, "raw = redact(text).encode()", "raw = text.encode()"),),
        (_HTTP, "-k", "secrets"),
    ),
    Fault(
        "interactions: cut before it is redacted",
        (
            (
                _SERVICE,
                "    raw = redact(text).encode()\n    if len(raw) <= MAX_TEXT_BYTES:",
                (
                    "    raw = text.encode()\n"
                    "    raw = redact(raw[:MAX_TEXT_BYTES].decode()).encode() + raw[MAX_TEXT_BYTES:]\n"
                    "    if len(raw) <= MAX_TEXT_BYTES:"
                ),
            ),
        ),
        (_HTTP, "-k", "secrets"),
    ),
    Fault(
        "interactions: texts without end",
        ((_SERVICE, "if len(raw) <= MAX_TEXT_BYTES:", "if True:"),),
        (_HTTP, "-k", "secrets"),
    ),
    Fault(
        "interactions: a label keeps a secret",
        (
            (
                _SERVICE,
                "return None if text is None else redact(_printable(field, text))",
                "return None if text is None else _printable(field, text)",
            ),
        ),
        (_HTTP, "-k", "secrets"),
    ),
    Fault(
        "interactions: an id of context keeps a secret",
        (
            (
                _SERVICE,
                'redact(_printable(f"context_ids.{n}", one))',
                '_printable(f"context_ids.{n}", one)',
            ),
        ),
        (_HTTP, "-k", "secrets"),
    ),
    Fault(
        "interactions: an answer waits for a locked database",
        ((_SERVICE, "asyncio.timeout(self._patience_s)", "asyncio.timeout(None)"),),
        (_HTTP, "-k", "locked"),
    ),
    Fault(
        "interactions: no answer where it cannot be kept",
        (
            (
                _SERVICE,
                "        except Unavailable as error:\n            return f",
                "        except KeyError as error:\n            return f",
            ),
        ),
        (_HTTP, "-k", "cannot_be_kept"),
    ),
    Fault(
        "interactions: who calls models reads others' words",
        (
            (
                "web/interactions.py",
                '@get("/interactions/{interaction_id:str}", opt={"scope": "read"})',
                '@get("/interactions/{interaction_id:str}", opt={"scope": ("read", "model", "submit")})',
            ),
        ),
        (_FEEDBACK, "-k", "without_the_scope"),
    ),
    Fault(
        "interactions: anybody acts in a task's name",
        (("web/interactions.py", "    charge_to(data.task_id, request.user)\n", ""),),
        (_HTTP, "-k", "in_a_tasks_name"),
    ),
    Fault(
        "augment: a document ends its block",
        (("coordinator/prompt.py", "{_inert(item.text)}", "{item.text}"),),
        (_HTTP, "-k", "as_data"),
    ),
    Fault(
        "spend: what is unknown is 0",
        (("web/interactions.py", "None if unknown else ", ""),),
        (_SPEND, "-k", "unknown_is_said"),
    ),
    Fault(
        "spend: the total is of what is shown",
        (
            (
                "web/interactions.py",
                '"total": await _total(parts, first)',
                '"total": _added_up(rows[:limit])',
            ),
        ),
        (_SPEND, "-k", "unknown_is_said"),
    ),
    Fault(
        "spend: the stats take tasks for keys",
        (("web/interactions.py", "parts, SpendBy.KEY)", "parts, SpendBy.TASK)"),),
        (_SPEND, "-k", "unknown_is_said"),
    ),
    Fault(
        "spend: small amounts have an exponent",
        (("web/interactions.py", 'f"{cost:f}"', "str(cost)"),),
        (_SPEND, "-k", "exponent"),
    ),
    Fault(
        "spend: calls that have just ended are left out",
        (
            (
                "web/interactions.py",
                "    await parts.coordinator.metering.fold_now()\n",
                "",
            ),
        ),
        (_SPEND, "-k", "unknown_is_said"),
    ),
    Fault(
        "spend: the command shows 0 for what is unknown",
        (
            (
                "cli/spend.py",
                'return usd(row["cost_usd"])',
                'return usd(row["cost_usd"] or 0)',
            ),
        ),
        (_CLI, "-k", "never_0"),
    ),
    Fault(
        "spend: the command leaves out calls of unknown price",
        (("cli/spend.py", "is None or not unknown:", "is None or True:"),),
        (_CLI, "-k", "never_0"),
    ),
    Fault(
        "ask: an answer is shown when it is whole",
        (
            (
                "cli/ask.py",
                "for text in _texts(chunks):",
                "for text in list(_texts(chunks)):",
            ),
        ),
        (_CLI, "-k", "as_it_comes"),
    ),
    Fault(
        "ask: half an answer is one",
        (
            (
                "cli/client.py",
                '        raise Unavailable("the answer broke off before its end")\n',
                "",
            ),
        ),
        (_CLI, "-k", "breaks_off"),
    ),
    Fault(
        "ask: words of a model act on the terminal",
        (
            (
                "cli/render.py",
                "print(inert(text, multiline=True), end",
                "print(text, end",
            ),
        ),
        (_CLI, "-k", "b5"),
    ),
)
