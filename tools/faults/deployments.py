"""Faults in deployments: their settings, order, breaker, retries, budgets, reload."""

from tools.faults.fault import Fault

B = "tests/unit/test_circuit_breaker.py"
D = "tests/unit/test_dispatch.py"
A = "tests/unit/test_dispatch_again.py"
H = "tests/unit/test_circuit_breaker_shares.py"
M = "tests/unit/test_dispatch_budgets.py"
P = "tests/unit/test_pool.py"
S = "tests/unit/test_settings_deployments.py"
U = "tests/system/test_reload.py"
DISPATCH, POOL = "coordinator/dispatch.py", "coordinator/pool.py"
TABLE, BREAKER = "model/deployment_table.py", "resilience/circuit_breaker.py"

FAULTS = (
    Fault(
        "deployments: keys may stand in the file",
        ((TABLE, "if name.lower() in _INLINE_KEYS:", "if False:"),),
        (S, "-k", "named_by_its_place"),
    ),
    Fault(
        "deployments: any address is taken",
        ((TABLE, "        network.base_url(table.base_url)\n", "        pass\n"),),
        (S, "-k", "held_to_what_can_be"),
    ),
    Fault(
        "deployments: prices of any fineness",
        ((TABLE, "if price != round(price, PRICE_PLACES):", "if False:"),),
        (S, "-k", "named_by_its_place"),
    ),
    Fault(
        "deployments: a price may be no number",
        (
            (
                TABLE,
                "if not price.is_finite() or not 0",
                "if price.is_finite() and not 0",
            ),
        ),
        (S, "-k", "named_by_its_place"),
    ),
    Fault(
        "deployments: a circle of fallbacks",
        ((TABLE, "    if name in path:\n", "    if False:\n"),),
        (S, "-k", "circle"),
    ),
    Fault(
        "deployments: one name for two",
        ((TABLE, "        if table.name in seen:\n", "        if False:\n"),),
        (S, "-k", "one_name_for_two"),
    ),
    Fault(
        "deployments: the name of a side",
        ((TABLE, "elif table.name in set(Mode):", "elif False:"),),
        (S, "-k", "names_that_mean_a_side"),
    ),
    Fault(
        "deployments: a fallback to nobody",
        (
            (
                TABLE,
                "    if name not in known:\n        return",
                "    if False:\n        return",
            ),
        ),
        (S, "-k", "named_by_its_place"),
    ),
    Fault(
        "deployments: a key file that all can read",
        (
            (
                "resilience/settings_file.py",
                "found = read_secret_file(path)",
                "found = path.read_text().strip()",
            ),
        ),
        (S, "-k", "may_hold_no_key"),
    ),
    Fault(
        "deployments: a placeholder is a key",
        (
            (
                "resilience/settings_file.py",
                "        secret.refuse_placeholder(found)\n",
                "",
            ),
        ),
        (S, "-k", "may_hold_no_key"),
    ),
    Fault(
        "deployments: the remote's dialect is not believed",
        (
            (
                "wiring/models.py",
                "                dialect=Dialect(settings.remote_dialect),\n",
                "",
            ),
        ),
        (S, "-k", "beside_the_files"),
    ),
    Fault(
        "deployments: doctor shows a key",
        (
            (
                "cli/doctor.py",
                '"has_key": one.api_key is not None',
                '"has_key": one.api_key',
            ),
        ),
        ("tests/faces/test_doctor_deployments.py",),
    ),
    Fault(
        "breaker: the share of failures is not looked at",
        (
            (
                BREAKER,
                "if self._error_ratio is not None and failures",
                "if False and failures",
            ),
        ),
        (H, "-k", "half_of_at_least_ten"),
    ),
    Fault(
        "breaker: two failures are a share",
        ((BREAKER, "if calls < self._min_calls:", "if calls < 2:"),),
        (H, "-k", "fewer_than_ten"),
    ),
    Fault(
        "breaker: the window has no end",
        (
            (
                "resilience/call_window.py",
                "self._parts[0][0] <= oldest",
                "self._parts[0][0] <= 0",
            ),
        ),
        (H, "-k", "older_than_the_window"),
    ),
    Fault(
        "breaker: slow calls are good calls",
        ((BREAKER, "self._weigh(now, slow=slow)", "self._weigh(now)"),),
        (H, "-k", "four_in_five"),
    ),
    Fault(
        "breaker: a slow probe closes it",
        (
            (
                BREAKER,
                "elif slow and self._slow_ratio is not None:",
                "elif False:",
            ),
        ),
        (H, "-k", "slow_probe"),
    ),
    Fault(
        "breaker: what it counted before is held against a new start",
        ((BREAKER, "            self._window.clear()\n", "            pass\n"),),
        (H, "-k", "begins_to_count_anew"),
    ),
    Fault(
        "breaker: a retired one goes on measuring",
        (
            (
                BREAKER,
                "        if self._shown:\n            metrics.BREAKER_STATE.labels",
                "        if True:\n            metrics.BREAKER_STATE.labels",
            ),
        ),
        (B, "-k", "retired"),
    ),
    Fault(
        "retry: waits without jitter",
        (
            (
                "resilience/retry.py",
                "jitter = self._draw() * bound",
                "jitter = bound",
            ),
        ),
        ("tests/unit/test_retry.py",),
    ),
    Fault(
        "retry: Retry-After is not kept",
        (("resilience/retry.py", "return retry_after_s + jitter", "return jitter"),),
        ("tests/unit/test_retry.py",),
    ),
    Fault(
        "retry: a wait of an hour is waited",
        (
            (
                "resilience/retry.py",
                "or retry_after_s > self._longest_wait_s",
                "or retry_after_s > 1e9",
            ),
        ),
        ("tests/unit/test_retry.py",),
    ),
    Fault(
        "retry: the caller's own errors are sent again",
        (
            (
                "resilience/retry.py",
                "return error.status in _WORTH_IT or error.status in _SERVER_ERRORS",
                "return True",
            ),
        ),
        (A, "-k", "will_not_pass"),
    ),
    Fault(
        "pool: weights count for nothing",
        (
            (
                POOL,
                "at -= chosen.deployment.weight",
                "at -= sum(one.deployment.weight for one in left) / len(left)",
            ),
        ),
        (P, "-k", "weight"),
    ),
    Fault(
        "pool: local falls back to the other side",
        (
            (
                POOL,
                "return self._in_order(asked, kind, tags, None if across else side)",
                "return self._in_order(asked, kind, tags, None)",
            ),
        ),
        (P, "-k", "gets_no_fallback_of_the_other"),
    ),
    Fault(
        "pool: fallbacks need no tags",
        (
            (
                POOL,
                "            if fits(upstream):\n",
                "            if True:\n",
            ),
        ),
        (P, "-k", "tags_and_kind"),
    ),
    Fault(
        "pool: who is held back comes first",
        (
            (
                POOL,
                "drawn = [*(one for one in drawn if one not in refused), *refused]",
                "pass",
            ),
        ),
        (P, "-k", "held_back"),
    ),
    Fault(
        "reload: breakers forget",
        (
            (
                POOL,
                "if held is not None and held.deployment == deployment:",
                "if False:",
            ),
        ),
        (P, "-k", "keeps_what_its_breaker"),
    ),
    Fault(
        "reload: a changed price is not seen",
        (
            (
                POOL,
                "if held is not None and held.deployment == deployment:",
                "if held is not None:",
            ),
        ),
        (P, "-k", "begins_anew"),
    ),
    Fault(
        "reload: a client is closed under its calls",
        (
            (
                "coordinator/upstream.py",
                "        self.breaker.retire()\n        if not self.in_flight:",
                "        self.breaker.retire()\n        if True:",
            ),
        ),
        (P, "-k", "last_call_has_ended"),
    ),
    Fault(
        "reload: a replaced client is never closed",
        (
            (
                "coordinator/upstream.py",
                "if self._retired and not self.in_flight:",
                "if False:",
            ),
        ),
        (P, "-k", "last_call_has_ended"),
    ),
    Fault(
        "dispatch: a call is written down after it is made",
        (
            (
                DISPATCH,
                "        self._begin(attempt, run)\n        try:",
                "        try:",
            ),
        ),
        (D, "-k", "before_it_is_made"),
    ),
    Fault(
        "dispatch: a failed attempt is forgotten",
        ((DISPATCH, "            self._metering.end(before)\n", "            pass\n"),),
        (D, "-k", "call_of_its_own"),
    ),
    Fault(
        "dispatch: each fallback stays in the journal for ever",
        (
            (
                "backends/files/call_journal.py",
                "                before.holds -= 1\n",
                "                pass\n",
            ),
        ),
        (D, "-k", "nothing_in_the_journal"),
    ),
    Fault(
        "dispatch: attempts do not say whose they are",
        (
            (
                DISPATCH,
                "interaction_id=new_id(), attempt_of=run.identity",
                "interaction_id=new_id()",
            ),
        ),
        (D, "-k", "call_of_its_own"),
    ),
    Fault(
        "dispatch: the last failure is forgotten",
        (
            (
                DISPATCH,
                "            if run.ended is not None:\n                self._metering.end(run.ended)\n",
                "            pass\n",
            ),
        ),
        (D, "-k", "nobody_answers_the_last or leaves"),
    ),
    Fault(
        "dispatch: an error status is billed",
        (
            (
                DISPATCH,
                "        return error.status is not None\n",
                "        return False\n",
            ),
        ),
        (D, "-k", "costs_nothing"),
    ),
    Fault(
        "dispatch: a cut answer is free",
        (
            (
                DISPATCH,
                "        return error.status is not None\n",
                "        return True\n",
            ),
        ),
        (D, "-k", "costs_nothing"),
    ),
    Fault(
        "dispatch: settled as often as asked",
        (
            (
                DISPATCH,
                "        if answered.call is not None:\n            return answered.call\n",
                "",
            ),
        ),
        (D, "-k", "settling_twice"),
    ),
    Fault(
        "dispatch: others wait while one is asked again",
        (
            (
                DISPATCH,
                "        if wait_s is None or wait_s > SHORT_WAIT_S:\n            return False\n",
                "",
            ),
        ),
        (A, "-k", "others_are_asked_before or long_wait"),
    ),
    Fault(
        "dispatch: who asks to come back soon is left",
        (
            (
                DISPATCH,
                "if answered is None and await self._comes_back_soon(upstream, run):",
                "if False:",
            ),
        ),
        (A, "-k", "come_back_soon or kept_connection"),
    ),
    Fault(
        "dispatch: pauses go beyond a deployment's time",
        (
            (
                DISPATCH,
                "if delay_s is None or delay_s >= run.left_s(upstream, began):",
                "if delay_s is None:",
            ),
        ),
        (A, "-k", "no_pause_goes_beyond"),
    ),
    Fault(
        "dispatch: each attempt has all of the time",
        (
            (
                DISPATCH,
                "async with asyncio.timeout(max(0.0, run.left_s(upstream, self._timer()))):",
                "async with asyncio.timeout(upstream.deployment.timeout_s):",
            ),
        ),
        (A, "-k", "what_the_first_left"),
    ),
    Fault(
        "dispatch: slow answers are not noticed",
        (
            (
                DISPATCH,
                "upstream.answered(attempt.permit, slow=answered.slow)",
                "upstream.answered(attempt.permit)",
            ),
        ),
        (A, "-k", "slow_answer"),
    ),
    Fault(
        "dispatch: a connection that ended counts against its server",
        (("coordinator/upstream.py", "if error.stale:", "if False:"),),
        (A, "-k", "kept_connection"),
    ),
    Fault(
        "dispatch: what cannot be said counts as a failure",
        (
            (
                DISPATCH,
                "            run.failures.cannot_say(upstream, body)\n",
                "            run.failures.refused(upstream, body)\n",
            ),
        ),
        (D, "-k", "cannot_express"),
    ),
    Fault(
        "budgets: a fallback is free",
        (
            (
                DISPATCH,
                "if context.accounts or deployment.rpm",
                "if (context.accounts and not run.asked_at) or deployment.rpm",
            ),
        ),
        (M, "-k", "dearer_fallback"),
    ),
    Fault(
        "budgets: the first failure is hidden",
        (
            (
                "coordinator/failures.py",
                "if all(isinstance(error, BudgetExceeded) for error in errors):",
                "if any(isinstance(error, BudgetExceeded) for error in errors):",
            ),
        ),
        (M, "-k", "dearer_fallback"),
    ),
    Fault(
        "budgets: a failed attempt keeps what it reserved",
        ((DISPATCH, "            reservation.release()\n", ""),),
        (M, "-k", "charged_nothing"),
    ),
    Fault(
        "budgets: who leaves pays nothing",
        (
            (
                DISPATCH,
                "            charges = reservation.settle(cost, None)\n",
                "            reservation.release()\n",
            ),
        ),
        (M, "-k", "leaves_is_charged"),
    ),
    Fault(
        "budgets: an answer is charged as it was reserved",
        (
            (
                DISPATCH,
                "charges=attempt.reservation.settle(cost, tokens)",
                "charges=attempt.reservation.settle(None, None)",
            ),
        ),
        (M, "-k", "what_it_cost"),
    ),
    Fault(
        "limits: requests a minute are not counted",
        (
            (
                "coordinator/admission.py",
                "if limit is None or self._quota is None:",
                "if True:",
            ),
        ),
        (M, "-k", "passed_over"),
    ),
    Fault(
        "limits: tokens are never corrected",
        (
            (
                "coordinator/admission.py",
                "        if self._quota is None or not by:",
                "        if True:",
            ),
        ),
        (M, "-k", "that_were_used"),
    ),
    Fault(
        "limits: what was refused was taken",
        (
            (
                "coordinator/admission.py",
                "                self.correct(name, -cost)\n",
                "                pass\n",
            ),
        ),
        (M, "-k", "takes_nothing_of_a_minute"),
    ),
    Fault(
        "reload: SIGHUP ends the stack",
        (
            (
                "web/stack.py",
                "    loop.add_signal_handler(signal.SIGHUP, hang_up)\n",
                "",
            ),
        ),
        (U, "-k", "stream_goes_on"),
    ),
    Fault(
        "reload: a bad file empties the pool",
        (
            (
                "wiring/stack.py",
                '            self.models.pool.refuse(str(error).removeprefix(f"{FILE}: "))\n',
                "            self.models.pool.load([])\n",
            ),
        ),
        (U, "-k", "bad_file"),
    ),
    Fault(
        "reload: health says nothing of a bad file",
        (
            (
                POOL,
                "refused = [self._refused] if self._refused else []",
                "refused: list[Dependency] = []",
            ),
        ),
        (U, "-k", "bad_file"),
    ),
    Fault(
        "reload: other changes are passed over in silence",
        (("wiring/stack.py", "        if changed:\n", "        if False:\n"),),
        (U, "-k", "needing_a_restart"),
    ),
    Fault(
        "reload: a new key is not known to redaction",
        (
            (
                "wiring/models.py",
                "        remember(*(one.api_key for one in wanted if one.api_key))\n",
                "",
            ),
        ),
        (U, "-k", "new_key"),
    ),
)
