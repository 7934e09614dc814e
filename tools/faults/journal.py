"""The meter: the journal, folding it into SQL, what is added up, events, outages."""

from tools.faults.fault import Fault

JOURNAL = "backends/files/call_journal.py"
WRITER = "backends/files/journal_writer.py"
LEFT = "backends/files/abandoned_journal.py"
LEDGER = "backends/sql/call_ledger.py"
SPEND = "backends/sql/spend.py"
METER = "coordinator/metering.py"
J = "tests/contracts/test_call_journal.py"
L = "tests/contracts/test_call_ledger.py"
M = "tests/unit/test_metering.py"
MACHINE = "tests/unit/test_metering_machine.py"
KILL = "tests/system/test_meter_kill.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "journal: nobody holds the lock",
        ((WRITER, "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", ""),),
        (J, "-k", "living_process"),
    ),
    Fault(
        "journal: many take one",
        (
            (
                LEFT,
                "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                "        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
            ),
        ),
        (J, "-k", "many_takers"),
    ),
    Fault(
        "journal: open calls are forgotten by who takes over",
        ((LEFT, "[*ended, *self._open.values()]", "[*ended]"),),
        (J, "-k", "settled_and_unsettled"),
    ),
    Fault(
        "journal: a file is emptied although a call is open",
        (
            (
                WRITER,
                "if self._active.holds or len(self._segments) > 1 or self.doomed:",
                "if len(self._segments) > 1 or self.doomed:",
            ),
        ),
        (J, MACHINE, "-k", "settled_and_unsettled or any_order"),
    ),
    Fault(
        "journal: a segment goes too early",
        (
            (
                JOURNAL,
                "            if segment is not None:\n                segment.holds += 1\n            before =",
                "            before =",
            ),
            (
                JOURNAL,
                "for segment in (one.begun_in, one.ended_in):",
                "for segment in (one.ended_in,):",
            ),
            (JOURNAL, "                before.holds -= 1\n", "                pass\n"),
        ),
        (J, "-k", "does_not_grow"),
    ),
    Fault(
        "journal: a call begun again holds its first file for ever",
        ((JOURNAL, "                before.holds -= 1\n", "                pass\n"),),
        (J, "-k", "begun_again"),
    ),
    Fault(
        "journal: of a call begun again the first line counts",
        (
            (
                LEFT,
                "            self._open[call_id] = at\n",
                "            self._open.setdefault(call_id, at)\n",
            ),
        ),
        (J, "-k", "begun_again"),
    ),
    Fault(
        "journal: segments stay for ever",
        ((JOURNAL, "            self._file.drop_unneeded()\n", ""),),
        (J, "-k", "does_not_grow"),
    ),
    Fault(
        "journal: one file for ever",
        (
            (
                WRITER,
                "if self._active.size >= self._rotate_at and not self.buffer:",
                "if False:",
            ),
        ),
        (J, "-k", "does_not_grow"),
    ),
    Fault(
        "journal: what is folded is not noted",
        (
            (
                JOURNAL,
                "                self._append(lines.folded(settled.position))\n",
                "                pass\n",
            ),
        ),
        (J, "-k", "found_again"),
    ),
    Fault(
        "journal: a taker's place is the dead process's own",
        ((LEFT, "TAKEN: Final = 1 << 62", "TAKEN: Final = 0"),),
        (M, "-k", "dead_process_left"),
    ),
    Fault(
        "journal: a torn line stops the reading",
        (
            (
                LEFT,
                "if whole and end > start:",
                "if not whole:\n                    raise OSError(0, 'torn') from None\n                if whole and end > start:",
            ),
        ),
        (J, "-k", "torn"),
    ),
    Fault(
        "journal: bad lines are not kept",
        ((LEFT, "if path in self._bad:", "if False:"),),
        (J, "-k", "bad_lines"),
    ),
    Fault(
        "journal: fields are read by their order alone",
        (
            (
                LEFT,
                "                    fields = lines.fields_of(line)\n",
                "                    pass\n",
            ),
        ),
        (J, "-k", "other_fields"),
    ),
    Fault(
        "journal: links are followed",
        (
            (
                "backends/files/append_file.py",
                "os.O_CREAT | os.O_NOFOLLOW",
                "os.O_CREAT",
            ),
        ),
        (J, "-k", "plain_files"),
    ),
    Fault(
        "journal: what a full disk did not take is gone",
        ((WRITER, "            self._keep(data[written:])\n", ""),),
        (J, "-k", "full_disk"),
    ),
    Fault(
        "journal: a full disk raises into the call",
        (
            (
                WRITER,
                "                written = os.write(segment.fd, data)\n            except OSError as error:\n                self._failed(error)\n",
                "                written = os.write(segment.fd, data)\n            except OSError:\n                raise\n",
            ),
            (
                WRITER,
                "if written < len(data):\n            # The rest",
                "if False:\n            # The rest",
            ),
        ),
        (J, "-k", "full_disk"),
    ),
    Fault(
        "journal: the buffer has no bound",
        (
            (
                WRITER,
                "full = self._buffered_bytes + len(data) > self._buffer_bytes",
                "full = False",
            ),
        ),
        (J, "-k", "full_disk"),
    ),
    Fault(
        "journal: the disk is not tried again",
        (
            (
                JOURNAL,
                "                self._dirty = False\n                self._file.flush()\n",
                "                self._dirty = False\n",
            ),
        ),
        (J, "-k", "full_disk"),
    ),
    Fault(
        "journal: memory has no bound",
        ((JOURNAL, "None if many and on_disk else call,", "call,"),),
        (J, "-k", "memory_keeps"),
    ),
    Fault(
        "journal: nothing is synced",
        ((JOURNAL, "            self._file.sync(unsynced)\n", ""),),
        (J, "-k", "synced"),
    ),
    Fault(
        "journal: a forked child keeps the lock and writes",
        (
            (
                "backends/files/call_journal.py",
                "os.register_at_fork(after_in_child=_after_fork_in_child)",
                "",
            ),
        ),
        (J, "-k", "fork"),
    ),
    Fault(
        "fold: rows outside of the transaction",
        (
            (
                LEDGER,
                "            return await self._fold(connection, settled)\n",
                "            if not await self._advance(connection, settled):\n                return 0\n        async with self._database.write() as connection:\n            further = settled.position + 1\n            settled = msgspec.structs.replace(settled, position=further)\n            return await self._fold(connection, settled)\n",
            ),
        ),
        (L, "-k", "all_or_nothing"),
    ),
    Fault(
        "fold: sums in a transaction of their own",
        (
            (
                LEDGER,
                "        await add_spend(self._database, connection, new)\n",
                "        self._new = new\n",
            ),
            (
                LEDGER,
                "            return await self._fold(connection, settled)\n",
                "            count = await self._fold(connection, settled)\n        async with self._database.write() as connection:\n            await add_spend(self._database, connection, self._new)\n        return count\n",
            ),
        ),
        (L, "-k", "all_or_nothing"),
    ),
    Fault(
        "fold: an older place is folded",
        (
            (
                LEDGER,
                "                where=journal.c.position < settled.position,\n",
                "",
            ),
        ),
        (L, "-k", "repeated_or_older"),
    ),
    Fault(
        "fold: what was there costs again",
        (
            (
                LEDGER,
                "new = [calls[interaction_id] for interaction_id in found.scalars()]",
                "new = list(calls.values())",
            ),
        ),
        (L, "-k", "rest_alone or kept_once"),
    ),
    Fault(
        "fold: a dead process's leases stay",
        ((LEDGER, "            await forget_holder(connection, journal_id)\n", ""),),
        (L, "-k", "charges_move"),
    ),
    Fault(
        "fold: nobody is charged",
        (
            (
                LEDGER,
                "charges=[one for call in new for one in call.charges]",
                "charges=[]",
            ),
        ),
        (L, "-k", "charges_move"),
    ),
    Fault(
        "spend: unknown tokens are zero",
        (
            (
                SPEND,
                "dict.fromkeys((*COUNTS, COST), 0) | dict.fromkeys(TOKENS)",
                "dict.fromkeys((*COUNTS, COST, *TOKENS), 0)",
            ),
        ),
        (L, "-k", "over_what_is_known"),
    ),
    Fault(
        "spend: an unknown cost is zero",
        ((SPEND, '        row["unpriced"] += 1\n', "        pass\n"),),
        (L, "-k", "unknown_cost"),
    ),
    Fault(
        "spend: a day is the caller's",
        ((SPEND, "time_text(call.at)[:10],", "call.at.isoformat()[:10],"),),
        (L, "-k", "midnight"),
    ),
    Fault(
        "spend: what was there before is not added up",
        (
            (
                "backends/sql/migrations/0003_metering.py",
                "    _add_up_what_is_there()\n\n\n",
                "\n\n",
            ),
        ),
        (L, "-k", "before_the_sums"),
    ),
    Fault(
        "meter: the place is let go before the rows are there",
        (
            (
                METER,
                "            new = await folding.fold(settled)\n            if self._stopped:\n                return\n",
                "            self._journal.folded(settled)\n            new = await folding.fold(settled)\n            if self._stopped:\n                return\n",
            ),
        ),
        (M, "-k", "without_a_database"),
    ),
    Fault(
        "meter: events before the commit",
        (
            (
                METER,
                "            new = await folding.fold(settled)\n            if self._stopped:\n                return\n",
                "            self._learning.append([self._event(call) for call in settled.calls])\n            new = await folding.fold(settled)\n            if self._stopped:\n                return\n",
            ),
        ),
        (M, "-k", "between_commit_and_event"),
    ),
    Fault(
        "meter: the log is not asked what it has",
        ((METER, "if new < len(events):", "if False:"),),
        (M, "-k", "between_commit_and_event"),
    ),
    Fault(
        "meter: what was committed is taken as told",
        (
            (
                METER,
                "seen = await asyncio.to_thread(self._learning.seen, ids)",
                "seen = ids",
            ),
        ),
        (M, "-k", "between_commit_and_event"),
    ),
    Fault(
        "meter: a taker asks the log about everything",
        ((METER, "if not was_told(settled, before):", "if True:"),),
        (M, "-k", "between_batches"),
    ),
    Fault(
        "meter: nobody takes over at the start",
        (
            (
                METER,
                "self._left += await asyncio.to_thread(self._journal.abandoned)",
                "pass",
            ),
        ),
        (M, "-k", "dead_process_left"),
    ),
    Fault(
        "meter: nobody takes over while it runs",
        (
            (
                METER,
                "return self._looked_at is None or self._timer() - self._looked_at >= _LOOK_S",
                "return self._looked_at is None",
            ),
        ),
        (M, "-k", "one_that_dies"),
    ),
    Fault(
        "meter: one outage and it folds no more",
        (
            (
                METER,
                "                backoff_s = self._failed(str(error), backoff_s)\n",
                "                backoff_s = self._failed(str(error), backoff_s)\n                return\n",
            ),
        ),
        (M, "-k", "without_a_database"),
    ),
    Fault(
        "meter: an outage looks well",
        (
            (
                METER,
                "degraded = self._error is not None or late_s > LATE_S or lines > 0",
                "degraded = False",
            ),
        ),
        (M, "-k", "without_a_database"),
    ),
    Fault(
        "meter: who reads it does not wait",
        (
            (
                METER,
                "        await self._fold(look=self._looked_at is None)\n",
                "        self._wake.set()\n",
            ),
        ),
        (M, "-k", "reads_the_meter"),
    ),
    Fault(
        "meter: who leaves stops the fold",
        ((METER, "        await asyncio.shield(task)\n", "        await task\n"),),
        (M, "-k", "stops_waiting"),
    ),
    Fault(
        "meter: the end waits as long as the database",
        (
            (
                METER,
                "async with asyncio.timeout(_STOP_S):",
                "async with asyncio.timeout(None):",
            ),
        ),
        (M, "-k", "bounds_the_end"),
    ),
    Fault(
        "meter: one unreadable journal keeps all calls out",
        ((METER, "                failed = error\n", "                raise\n"),),
        (M, "-k", "unreadable"),
    ),
    Fault(
        "meter: any count is believed",
        (
            (
                METER,
                "if (usage := believable(call.usage)) is not call.usage:",
                "if (usage := call.usage) is not call.usage:",
            ),
        ),
        (M, "-k", "no_model_has"),
    ),
    Fault(
        "meter: cached tokens are priced twice",
        (("coordinator/pricing.py", "plain = max(0, plain - read - written)", "pass"),),
        (M, "-k", "what_a_call_costs"),
    ),
    Fault(
        "meter: cached tokens are free without a price",
        (
            (
                "coordinator/pricing.py",
                "deployment.price_input if own is None else own",
                "Decimal(0) if own is None else own",
            ),
        ),
        (M, "-k", "what_a_call_costs"),
    ),
    Fault(
        "meter: an answer from the cache counts as a call of the model",
        (("coordinator/call_metrics.py", "if call.cached:", "if False:"),),
        (M, "-k", "prometheus"),
    ),
    Fault(
        "meter: the end of a call is not in the kernel's hands at once",
        (
            (
                METER,
                "        self._journal.end(call)\n        self._metrics.ended(call)\n",
                "        asyncio.get_running_loop().call_later(0.1, self._journal.end, call)\n        self._metrics.ended(call)\n",
            ),
        ),
        (KILL,),
    ),
)
