"""Faults in what is believed of costs, what is done with calls SQL refuses, and limits."""

from tools.faults.fault import Fault

SUMS = "tests/contracts/test_sum_bounds.py"
ASIDE = "tests/unit/test_metering_aside.py"
ENDS = "tests/contracts/test_journal_ends.py"
SIZE = "tests/unit/test_answer_size.py"
LIMITS = "tests/faces/test_size_limits.py"
REDIS = "tests/contracts/test_redis_connection.py"
ROWS = "backends/sql/rows.py"
SPEND = "backends/sql/spend.py"
STORE = "backends/sql/budget_store.py"
METER = "coordinator/metering.py"
FOLDING = "coordinator/folding.py"
LEFT = "backends/files/abandoned_journal.py"
JOURNAL = "backends/files/call_journal.py"
SIZES = "coordinator/answer_size.py"
CONNECTION = "backends/redis/connection.py"
FAULTS: tuple[Fault, ...] = (
    Fault(
        "money: any cost is believed",
        (
            (
                "coordinator/pricing.py",
                "return total if total <= MAX_COST_USD else None",
                "return total",
            ),
        ),
        (SIZE, "-k", "no_call_can_cost"),
    ),
    Fault(
        "money: a billion tokens are believed",
        (("coordinator/pricing.py", "MAX_TOKENS = 10**8", "MAX_TOKENS = 10**18"),),
        (LIMITS, "-k", "no_model_has"),
    ),
    Fault(
        "money: a batch adds up beyond the column",
        (
            (
                SPEND,
                "bounded(row[COST] + pico(call.cost_usd))",
                "row[COST] + pico(call.cost_usd)",
            ),
        ),
        (SUMS, "-k", "no_further"),
    ),
    Fault(
        "money: a batch's charges add up beyond the column",
        (
            (
                STORE,
                "(bounded(usd + pico(one.usd)), bounded(",
                "((usd + pico(one.usd)), (",
            ),
        ),
        (SUMS, "-k", "no_further"),
    ),
    Fault(
        "money: rows add up beyond the column",
        (
            (
                ROWS,
                "    return within(within(column) + more)",
                "    return column + more",
            ),
        ),
        (SUMS, "-k", "no_further"),
    ),
    Fault(
        "money: two of the largest do not fit",
        (("model/money.py", "MAX_PICO_USD = 2**62 - 1", "MAX_PICO_USD = 2**63 - 1"),),
        (SUMS, "-k", "no_amount"),
    ),
    Fault(
        "money: views add up what no column holds",
        (
            (
                SPEND,
                "    return func.sum(spend.c[COST] // _PART) + low // _PART, low % _PART",
                "    return func.sum(spend.c[COST]) // _PART, low % _PART",
            ),
        ),
        (SUMS, "-k", "no_further"),
    ),
    Fault(
        "money: the dearest is the dearest by whole dollars",
        (
            (
                SPEND,
                "[part.desc() for part in _cost()]",
                "[part.desc() for part in _cost()][:1]",
            ),
        ),
        (SUMS, "-k", "last_pico"),
    ),
    Fault(
        "aside: one call holds up its batch",
        (
            (
                FOLDING,
                "                self._limit = len(settled.calls) // 2\n",
                "                raise\n",
            ),
        ),
        (ASIDE, "-k", "holds_nobody_up"),
    ),
    Fault(
        "aside: one call holds up all after it",
        (
            (
                FOLDING,
                "                await self._set_aside(settled, error)\n",
                "                raise\n",
            ),
        ),
        (ASIDE, "-k", "holds_nobody_up"),
    ),
    Fault(
        "aside: a database that takes nothing empties the journal",
        (
            (
                FOLDING,
                "            await self._ledger.rehearse()\n",
                "            pass\n",
            ),
        ),
        (ASIDE, "-k", "takes_nothing"),
    ),
    Fault(
        "aside: a rehearsal is kept",
        (
            (
                "backends/sql/call_ledger.py",
                "                raise _RolledBackError  # noqa: TRY301",
                "                return  # noqa: TRY301",
            ),
        ),
        (SUMS, "-k", "rehearsal"),
    ),
    Fault(
        "aside: what is set aside is dropped",
        (
            (
                JOURNAL,
                "        keep_aside(self._path, settled, why)\n",
                "",
            ),
        ),
        (ENDS, "-k", "its_place_let_go"),
    ),
    Fault(
        "aside: what a taker sets aside is dropped",
        ((LEFT, "        keep_aside(self._path, settled, why)\n", ""),),
        (ENDS, "-k", "its_place_let_go"),
    ),
    Fault(
        "aside: what cannot be kept is let go",
        (
            (
                "backends/files/journal_aside.py",
                "        raise Unavailable(message) from error\n",
                "        return\n",
            ),
        ),
        (ASIDE, "-k", "cannot_be_kept"),
    ),
    Fault(
        "aside: nobody is told",
        ((METER, "lines > 0 or aside > 0", "lines > 0"),),
        (ASIDE, "-k", "holds_nobody_up"),
    ),
    Fault(
        "aside: what a dead process left is not counted",
        (
            (
                METER,
                "                self._calls_aside += folding.aside - aside\n                if self._stopped:",
                "                if self._stopped:",
            ),
        ),
        (ASIDE, "-k", "dead_process_left"),
    ),
    Fault(
        "aside: its event is told all the same",
        (
            (
                METER,
                '                and await self._ledger.has(event.data["interaction_id"])\n',
                "",
            ),
        ),
        (ASIDE, "-k", "between_halves"),
    ),
    Fault(
        "aside: halves of a batch are taken as told",
        (
            (
                FOLDING,
                "settled.position <= folded_to - BATCH",
                "settled.position < folded_to",
            ),
        ),
        (ASIDE, "-k", "between_halves"),
    ),
    Fault(
        "aside: a journal that breaks its taker stops all",
        (
            (
                METER,
                "                self._left.remove(journal)\n                self._aside.append(journal)\n",
                "                raise\n",
            ),
        ),
        (ASIDE, "-k", "breaks_its_taker"),
    ),
    Fault(
        "aside: a journal that broke its taker is gone",
        (
            (
                METER,
                "                    journal.close(keep=True)\n",
                "                    journal.folded(journal.settled(limit=9)) if journal in self._aside else None\n                    journal.close()\n",
            ),
        ),
        (ASIDE, "-k", "next_start"),
    ),
    Fault(
        "aside: a journal that breaks its reader stops all",
        (
            (
                LEFT,
                '            metrics.JOURNAL_ERRORS.labels("unreadable").inc()\n',
                "            raise\n",
            ),
        ),
        (ASIDE, "-k", "breaks_its_reader"),
    ),
    Fault(
        "leases: a journal goes before SQL forgets it",
        (
            (
                METER,
                "self._journal.close(keep=not forgotten)",
                "self._journal.close()",
            ),
        ),
        (ASIDE, "-k", "without_a_database"),
    ),
    Fault(
        "leases: a taker that cannot tell SQL removes the journal",
        (
            (
                METER,
                "                    journal.close(keep=True)\n",
                "                    journal.close()\n",
            ),
        ),
        (ASIDE, "-k", "without_a_database"),
    ),
    Fault(
        "leases: who keeps a journal keeps it from nobody",
        (
            (
                JOURNAL,
                "if self._open or self._ended or keep:",
                "if self._open or self._ended:",
            ),
        ),
        (ENDS, "-k", "is_kept"),
    ),
    Fault(
        "leases: a lock alone is no journal",
        (
            (
                LEFT,
                "            if held is not None:\n",
                "            if held is not None and _segments(folder, path.stem):\n",
            ),
        ),
        (ASIDE, "-k", "without_a_file"),
    ),
    Fault(
        "leases: an end that breaks stops all that ends",
        (
            (
                METER,
                '            _log.exception("calls_wait", calls=self._waiting())\n',
                "            raise\n",
            ),
        ),
        (ASIDE, "-k", "nobody_knows"),
    ),
    Fault(
        "journal: a lock has its name before it is locked",
        (
            (
                "backends/files/journal_writer.py",
                "    fd = open_regular(unnamed, folder)\n",
                "    fd = open_regular(unnamed, folder)\n    os.link(unnamed, path)\n",
            ),
        ),
        (ENDS, "-k", "only_once_it_is_locked"),
    ),
    Fault(
        "size: the first limit counts",
        (
            (
                SIZES,
                "    return max((limit for limit in found if limit is not None), default=None)",
                "    return next((limit for limit in found if limit is not None), None)",
            ),
        ),
        (LIMITS, "-k", "under_any_name"),
    ),
    Fault(
        "size: limits of other dialects count",
        (
            (
                SIZES,
                "    names = _LIMITS[dialect]\n",
                "    names = [one for each in _LIMITS.values() for one in each]\n",
            ),
        ),
        (SIZE, "-k", "words_of_the_dialect"),
    ),
    Fault(
        "size: many answers cost what one does",
        (("coordinator/budgets.py", "max_tokens * answers", "max_tokens"),),
        (LIMITS, "-k", "under_any_name or all_that_were"),
    ),
    Fault(
        "size: what is tried takes the answers of one",
        (
            (
                "coordinator/gateway.py",
                "            answers=answers,\n",
                "",
            ),
        ),
        (LIMITS, "-k", "under_any_name or all_that_were"),
    ),
    Fault(
        "size: any number of answers will do",
        ((SIZES, "MAX_ANSWERS = 128", "MAX_ANSWERS = 10**31"),),
        (LIMITS, "-k", "no_number_of_answers"),
    ),
    Fault(
        "size: a limit of 0 is refused",
        ((SIZES, "0 if dialect is Dialect.ANTHROPIC else 1", "1"),),
        (LIMITS, "-k", "limit_of_0"),
    ),
    Fault(
        "size: a limit of 0 is none",
        (
            (
                "coordinator/budgets.py",
                "if max_tokens is None:  # 0 is a limit",
                "if not max_tokens:",
            ),
        ),
        (LIMITS, "-k", "limit_of_0"),
    ),
    Fault(
        "size: route takes any limit",
        (
            (
                "coordinator/service.py",
                "if request.max_tokens is not None and request.max_tokens > MAX_TOKENS:",
                "if False:",
            ),
        ),
        (LIMITS, "-k", "no_model_has"),
    ),
    Fault(
        "tpm: route keeps its estimate",
        (
            (
                "coordinator/service.py",
                "        used = used_tokens(call.usage)\n",
                "        used = None\n",
            ),
        ),
        (LIMITS, "-k", "that_were_used"),
    ),
    Fault(
        "tpm: what route nobody answered keeps its estimate",
        (
            (
                "coordinator/service.py",
                "            if not context.may_be_billed:\n",
                "            if False:\n",
            ),
        ),
        (LIMITS, "-k", "nobody_answered"),
    ),
    Fault(
        "tpm: what nobody answered keeps its estimate",
        (
            (
                "coordinator/gateway.py",
                "            if not admitted.context.may_be_billed:\n",
                "            if False:\n",
            ),
        ),
        (LIMITS, "-k", "nobody_answered"),
    ),
    Fault(
        "tpm: what may be billed is given back",
        (
            (
                "coordinator/dispatch.py",
                "            run.context.may_be_billed = True\n",
                "",
            ),
        ),
        (LIMITS, "-k", "may_be_billed"),
    ),
    Fault(
        "redis: what it refuses opens the breaker",
        ((CONNECTION, "                permit.succeed()\n", ""),),
        (REDIS, "-k", "opens_no_breaker"),
    ),
    Fault(
        "redis: a cost without end breaks its count",
        (
            (
                "backends/redis/quota.py",
                "        cost = min(cost, MAX_COST)\n",
                "",
            ),
        ),
        (REDIS, "-k", "without_end"),
    ),
    Fault(
        "redis: a correction without end breaks its count",
        (
            (
                "backends/redis/quota.py",
                "args=[max(-MAX_COST, min(by, MAX_COST))]",
                "args=[by]",
            ),
        ),
        (REDIS, "-k", "without_end"),
    ),
    Fault(
        "redis: its users hide each other",
        ((CONNECTION, 'f"redis {user}", failures', '"redis", failures'),),
        (REDIS, "-k", "seen_by_itself"),
    ),
)
