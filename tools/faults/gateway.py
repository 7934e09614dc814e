"""Faults between the gateway and its upstreams, and of a database that is stopped."""

from tools.faults.fault import Fault

F = ("tests/system/test_gateway_faults.py",)
LOCKED = ("tests/system/test_database_stopped.py", "-k", "locked")
BROKEN = ("tests/system/test_database_stopped.py", "-k", "broken")
DISPATCH, STREAMING = "coordinator/dispatch.py", "coordinator/streaming.py"
METERING, KEYS = "coordinator/metering.py", "backends/sql/key_store.py"

FAULTS = (
    Fault(
        "gateway faults: a stream that broke just stops",
        ((STREAMING, "yield self._broken(error)", 'yield b""'),),
        F,
    ),
    Fault(
        "gateway faults: of a cut stream nothing was used",
        (
            (
                STREAMING,
                "            self._stream.usage(),\n",
                (
                    "            self._stream.usage()\n"
                    "            if error is None\n"
                    "            else Usage(input_tokens=0, output_tokens=0),\n"
                ),
            ),
        ),
        F,
    ),
    Fault(
        "gateway faults: what is not known costs nothing",
        (
            (
                DISPATCH,
                "charges = reservation.settle(cost, None)",
                "charges = reservation.settle(cost, 0)",
            ),
        ),
        F,
    ),
    Fault(
        "gateway faults: counts after the end are not told",
        ((STREAMING, "if self._chunks is None and not self._told", "if False"),),
        F,
    ),
    Fault(
        "gateway faults: what cannot be read is left out",
        ((STREAMING, "if is_unreadable(event):", "if False:"),),
        F,
    ),
    Fault(
        "gateway faults: a silent upstream is waited for",
        (
            (
                "backends/model_http/stream.py",
                "if now - since >= self._idle_s:",
                "if False:",
            ),
        ),
        F,
    ),
    Fault(
        "gateway faults: who is asked again counts twice",
        (
            (
                DISPATCH,
                "run.ended, interaction_id=new_id(), attempt_of=run.identity",
                "run.ended, interaction_id=new_id()",
            ),
        ),
        F,
    ),
    Fault(
        "gateway faults: what broke before a token is free",
        (
            (
                DISPATCH,
                "        return error.status is not None\n",
                "        return True\n",
            ),
        ),
        F,
    ),
    Fault(
        "gateway faults: a fallback answers unsaid",
        (
            (
                "coordinator/pool.py",
                "        return found\n\n    def _drawn",
                (
                    "        return sorted(found, key=lambda one: one.breaker.refuses)\n\n"
                    "    def _drawn"
                ),
            ),
        ),
        ("tests/unit/test_pool.py", "-k", "keeps_its_place"),
    ),
    Fault(
        "database stopped: a good key is not believed",
        (
            (
                KEYS,
                "if known is None or self._monotonic() >= known.seen_at + BELIEVED_S:",
                "if known is None or self._monotonic() >= known.seen_at + CACHE_S:",
            ),
        ),
        LOCKED,
    ),
    Fault(
        "database stopped: every call asks the database for its budget",
        (("coordinator/budget_slice.py", "SLICES = 50\n", "SLICES = 10**12\n"),),
        LOCKED,
    ),
    Fault(
        "database stopped: health does not know the meter",
        (
            (
                "coordinator/service.py",
                "            *self.metering.dependencies(),\n",
                "",
            ),
        ),
        BROKEN,
    ),
    Fault(
        "database stopped: health never forgets it",
        (
            (
                METERING,
                "                self._error = None\n                _log.info(",
                "                _log.info(",
            ),
        ),
        BROKEN,
    ),
    Fault(
        "database stopped: the journal lets go before the commit",
        (
            (
                METERING,
                "            began, aside = self._timer(), folding.aside\n",
                (
                    "            began, aside = self._timer(), folding.aside\n"
                    "            self._journal.folded(settled)\n"
                ),
            ),
            (
                METERING,
                (
                    "            self._journal.folded(settled)\n"
                    "            upto -= len(settled.calls)\n"
                ),
                "            upto -= len(settled.calls)\n",
            ),
        ),
        BROKEN,
    ),
    Fault(
        "database stopped: the meter tries once",
        (
            (
                METERING,
                "                backoff_s = self._failed(str(error), backoff_s)\n",
                (
                    "                self._failed(str(error), backoff_s)\n"
                    "                first.set()\n"
                    "                return\n"
                ),
            ),
        ),
        BROKEN,
    ),
)
