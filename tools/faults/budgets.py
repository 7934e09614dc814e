"""Faults in budgets, quotas and the limits of keys."""

from tools.faults.fault import Fault

BS = "tests/contracts/test_budget_store.py"
UB = "tests/unit/test_budgets.py"
TB = "tests/system/test_two_budgets.py"
Q = "tests/contracts/test_quota.py"
K = "tests/contracts/test_key_store.py"
KH = "tests/faces/test_keys_http.py"
CK = "tests/faces/test_cli_keys.py"
STORE = "backends/sql/budget_store.py"
B = "coordinator/budgets.py"
S = "coordinator/budget_slice.py"
MQ = "resilience/quota.py"
RQ = "backends/redis/quota.py"
KS = "backends/sql/key_store.py"
KL = "backends/sql/key_limits.py"
FAULTS = (
    Fault(
        "budget store: what others hold is given twice",
        ((STORE, "spent[0] + others[0], own[0]", "spent[0], own[0]"),),
        (BS, "-k", "until_the_limit or any_order"),
    ),
    Fault(
        "budget store: what is held already is given twice",
        ((STORE, "limit - gone - own))", "limit - gone))"),),
        (BS, "-k", "until_the_limit"),
    ),
    Fault(
        "budget store: what one owes makes others' part larger",
        ((STORE, "func.sum(case((column > 0, column), else_=0))", "func.sum(column)"),),
        (BS, "-k", "pays_first or any_order"),
    ),
    Fault(
        "budget store: a charge leaves the lease as it was",
        (
            (
                STORE,
                "[(account, -usd, -tokens) for",
                "[(account, 0, 0) for",
            ),
        ),
        (BS, "-k", "stays_spent"),
    ),
    Fault(
        "budget store: what costs less than a pico is free",
        (("model/money.py", "ROUND_CEILING))", "ROUND_FLOOR))"),),
        (BS, "-k", "costs_less"),
    ),
    Fault(
        "budget store: what is given is decided before the lock",
        (
            (
                STORE,
                "self._database.write() as connection:\n            spent = await",
                "self._database.read() as connection:\n            spent = await",
            ),
            (
                STORE,
                "            if usd or tokens:\n",
                "        async with self._database.write() as connection:\n            if usd or tokens:\n",
            ),
        ),
        (BS, "-k", "two_processes"),
    ),
    Fault(
        "budgets: a call is charged what it reserved",
        ((B, "usd=reserved.usd if usd is None else usd,", "usd=reserved.usd,"),),
        (UB, "-k", "came_to"),
    ),
    Fault(
        "budgets: what is unknown is free",
        ((B, "pico_usd if usd is None else usd", "0 if usd is None else usd"),),
        (UB, "-k", "unknown_is_gone"),
    ),
    Fault(
        "budgets: a reservation ends twice",
        (
            (
                B,
                "        if self._final is None:\n            self._final = ()",
                "        if True:\n            self._final = ()",
            ),
        ),
        (UB, "-k", "ends_once or spent_again"),
    ),
    Fault(
        "budgets: a negative usage fills the budget",
        ((B, "if tokens is not None and not 0 <= tokens", "if tokens and not tokens"),),
        (UB, "-k", "no_call_can_cost"),
    ),
    Fault(
        "budgets: the first account pays for the refusal of the second",
        ((B, "            Reservation(parts).release()\n", ""),),
        (UB, "-k", "takes_nothing_of_the_other"),
    ),
    Fault(
        "budgets: a key is lent what is not left",
        ((S, 'return account_id.startswith("key:")', "return False"),),
        (UB, "-k", "not_left or whole_budget or unknown_price"),
    ),
    Fault(
        "budgets: a task is refused before its budget is spent",
        ((S, 'return account_id.startswith("key:")', "return True"),),
        (UB, "-k", "last_call"),
    ),
    Fault(
        "budgets: an unknown price is no reason",
        (
            (
                B,
                "                    _refuse_unpriced(account, model)",
                "                    pass",
            ),
        ),
        (UB, "-k", "unknown_price"),
    ),
    Fault(
        "budgets: a spent account may make free calls",
        ((S, "(self.free >= need and self.free > 0)", "self.free >= need"),),
        (UB, "-k", "not_left or unknown_price"),
    ),
    Fault(
        "budgets: every call asks the database",
        ((S, "max(1, limit // SLICES)", "1"),),
        (UB, "-k", "ask_no_database"),
    ),
    Fault(
        "budgets: a slice is leased when it is needed",
        ((B, "held.is_low(now):", "False:"),),
        (UB, "-k", "never_waits"),
    ),
    Fault(
        "budgets: each that waits leases for itself",
        (
            (
                B,
                "task = held.lease or self._start_lease(held)",
                "task = self._start_lease(held)",
            ),
        ),
        (UB, "-k", "few_leases"),
    ),
    Fault(
        "budgets: who leaves takes the lease along",
        (
            (
                B,
                "await asyncio.wait({task}, timeout=WAIT_S)",
                "await asyncio.wait_for(task, WAIT_S)",
            ),
        ),
        (UB, "-k", "loses_no_lease"),
    ),
    Fault(
        "budgets: a refused call asks the database each time",
        (
            (
                B,
                "                        raise BudgetExceeded(held.refusal(side, need))",
                "                        side.empty_until = 0.0\n                        raise BudgetExceeded(held.refusal(side, need))",
            ),
        ),
        (UB, "-k", "once_a_second"),
    ),
    Fault(
        "budgets: what others give back is never found",
        (
            (
                S,
                "            self.empty_until = ask_again_at",
                "            self.empty_until = ask_again_at + 1e9",
            ),
        ),
        (UB, "-k", "another_process_gives"),
    ),
    Fault(
        "budgets: a new limit is not seen",
        ((B, "            held.set_account(account)", "            pass"),),
        (UB, "-k", "new_limit"),
    ),
    Fault(
        "budgets: idle slices are kept",
        ((B, "self._clock() - held.used_at >= self._idle_s", "False"),),
        (UB, "-k", "idle_slice_is_given"),
    ),
    Fault(
        "budgets: a stop keeps what is free",
        ((B, "        return self._closed or", "        return False or"),),
        (UB, "-k", "closing"),
    ),
    Fault(
        "budgets: what a crowd needed is kept",
        ((S, "return over if over > self.slice // 2 else 0", "return 0"),),
        (UB, "-k", "crowd or left_to_others"),
    ),
    Fault(
        "budgets: an idle slice is thrown at a database that is away",
        (
            (
                B,
                "            await self._store.spent(held.account.id)\n",
                "            pass\n",
            ),
        ),
        (UB, "-k", "idle_slice_is_kept"),
    ),
    Fault(
        "budgets: without the database nothing is spent",
        (
            (
                B,
                "            held.failed_until = self._clock() + ASK_AGAIN_S",
                "            held.failed_until = self._clock() + ASK_AGAIN_S\n            held.usd.free = held.tokens.free = 0",
            ),
        ),
        (UB, "-k", "without_the_database"),
    ),
    Fault(
        "budgets: without the database all is spent",
        (
            (
                B,
                "            held.failed_until = self._clock() + ASK_AGAIN_S",
                "            held.failed_until = self._clock() + ASK_AGAIN_S\n            held.usd.free = held.tokens.free = 10**18",
            ),
        ),
        (UB, "-k", "without_the_database"),
    ),
    Fault(
        "budgets: each call asks a database that is away",
        (
            (
                B,
                "        if self._clock() < held.failed_until:\n            raise _away(held)\n        held.usd.waiting",
                "        held.usd.waiting",
            ),
        ),
        (UB, "-k", "without_the_database"),
    ),
    Fault(
        "budgets: a database that hangs is waited for",
        (
            (
                B,
                "asyncio.wait({task}, timeout=WAIT_S)",
                "asyncio.wait({task}, timeout=30)",
            ),
        ),
        (UB, "-k", "hangs"),
    ),
    Fault(
        "budgets: what is leased is forgotten by the process",
        ((S, "        self.free += given\n", "        self.free += given * 2\n"),),
        (TB,),
    ),
    Fault(
        "budgets: the dead hold their part for ever",
        (
            (
                STORE,
                "await connection.execute(delete(lease).where(lease.c.holder == holder))",
                "pass",
            ),
        ),
        (TB,),
    ),
    Fault(
        "estimate: writing to the provider's cache costs nothing more",
        ((B, "max(price_in, deployment.price_cache_write or price_in)", "price_in"),),
        (UB, "-k", "estimate"),
    ),
    Fault(
        "quota: a second counts until its first call is a window old",
        (
            (
                MQ,
                "return float(second + 1 + WINDOW_S)",
                "return float(second + WINDOW_S)",
            ),
        ),
        (Q, "-k", "any_minute or windows_moves or waits_are_true"),
    ),
    Fault(
        "quota: the newest cost is corrected",
        (
            (
                MQ,
                "part = min(cost, self.seconds[0][1])\n            self.seconds[0][1] -= part",
                "part = min(cost, self.seconds[-1][1])\n            self.seconds[-1][1] -= part",
            ),
            (
                MQ,
                "if self.seconds[0][1] == 0:\n                self.seconds.popleft()",
                "if self.seconds[-1][1] == 0:\n                self.seconds.pop()",
            ),
        ),
        (Q, "-k", "any_minute"),
    ),
    Fault(
        "quota: what left the window is taken from others",
        (
            (
                MQ,
                "elif age_s < WINDOW_S and name in self._own:",
                "elif name in self._own:",
            ),
        ),
        (Q, "-k", "taken_from_other"),
    ),
    Fault(
        "quota: a cost over the limit is never admitted",
        (
            (
                MQ,
                "if self.used + cost <= limit or self.used == 0:",
                "if self.used + cost <= limit:",
            ),
        ),
        (Q, "-k", "over_the_limit"),
    ),
    Fault(
        "quota: any number of names has a window",
        (
            (
                MQ,
                "return self._others if full else self._others.copy()",
                "return self._others.copy()",
            ),
        ),
        (Q, "-k", "bounded"),
    ),
    Fault(
        "quota: each cost is kept by itself",
        ((MQ, "if not self.seconds or self.seconds[-1][0] != second:", "if True:"),),
        (Q, "-k", "bounded"),
    ),
    Fault(
        "quota: Redis is not asked",
        (
            (
                RQ,
                "said = await self._admit(keys=[KEY_PREFIX + name], args=[limit, cost])",
                "said = -1",
            ),
        ),
        (Q, "-k", "two_processes or another"),
    ),
    Fault(
        "quota: Redis keeps what is over",
        ((RQ, "if second + 1 + WINDOW <= now then", "if false then"),),
        (Q, "-k", "set_back"),
    ),
    Fault(
        "quota: a clock set back sends all away",
        ((RQ, "if second > this then", "if false then"),),
        (Q, "-k", "set_back"),
    ),
    Fault(
        "quota: keys in Redis stay",
        (
            (
                RQ,
                "  redis.call('EXPIRE', KEYS[1], WINDOW + 2)\n  return -1",
                "  return -1",
            ),
        ),
        (Q, "-k", "keys_in_redis"),
    ),
    Fault(
        "quota: what was admitted with Redis does not count without",
        (
            (
                RQ,
                "            return await self._local.admit(name, limit=limit, cost=cost)\n        return float(said)",
                "            return None\n        return float(said)",
            ),
        ),
        (Q, "-k", "goes_on_where_it_was"),
    ),
    Fault(
        "quota: a Redis that hangs is waited for by all",
        (
            (
                "backends/redis/connection.py",
                "with self._breaker.admit() as permit:",
                "if True:",
            ),
        ),
        (Q, "-k", "hangs"),
    ),
    Fault(
        "keys: limits are not stored",
        ((KS, "limits=limits_text(key.limits),", "limits=None,"),),
        (K, "-k", "listed_and_carried"),
    ),
    Fault(
        "keys: limits are not carried",
        (
            (
                KS,
                "            limits=limits_of(row.limits),\n            name",
                "            name",
            ),
        ),
        (K, "-k", "listed_and_carried"),
    ),
    Fault(
        "keys: a limit may be no number",
        ((KL, "if not usd.is_finite() or not 0 < usd <= MAX_USD:", "if usd == 0:"),),
        (K, "-k", "by_its_name"),
    ),
    Fault(
        "keys: a task's key may have limits",
        ((KL, "    if of_a_task:", "    if False:"),),
        (K, "-k", "of_its_own"),
    ),
    Fault(
        "keys: no key works without the database",
        (
            (
                KS,
                "        if principal is None and self._believed(digest):",
                "        if False:",
            ),
        ),
        (K, "-k", "good_for_a_while"),
    ),
    Fault(
        "keys: a key is believed for ever",
        ((KS, "known.seen_at + BELIEVED_S:", "known.seen_at + 1e9:"),),
        (K, "-k", "good_for_a_while"),
    ),
    Fault(
        "keys: one revocation makes all keys unknown",
        (
            (
                KS,
                "            if is_meant(known.principal):\n",
                "            if True:\n",
            ),
        ),
        (K, "-k", "good_for_a_while or not_believed"),
    ),
    Fault(
        "keys: a key that could not be revoked is believed",
        (
            (
                KS,
                "        finally:\n            # Also when that failed: who revokes a key does not want it believed.\n            self._forget(lambda known: known.key_id == key_id)",
                "        except NotFound:\n            raise\n        else:\n            self._forget(lambda known: known.key_id == key_id)",
            ),
        ),
        (K, "-k", "not_believed"),
    ),
    Fault(
        "keys: each check asks a database that is away",
        ((KS, "if asked is None and now >= self._ask_again_at:", "if asked is None:"),),
        (K, "-k", "one_look_a_second"),
    ),
    Fault(
        "keys: a hung database holds every request up",
        ((KS, "(wait_s := asked[1] - now) > 0", "(wait_s := ANSWER_S)"),),
        (K, "-k", "hangs"),
    ),
    Fault(
        "keys: what is known grows",
        (
            (
                KS,
                "            if len(known) >= _CACHE_ENTRIES:",
                "            if False:",
            ),
        ),
        (K, "-k", "bounded"),
    ),
    Fault(
        "keys: what a key has spent is not told",
        (("web/coordinator.py", '"spent": seen}', '"spent": None}'),),
        (KH, "-k", "has_spent"),
    ),
    Fault(
        "keys: the limits in a body are dropped",
        (
            (
                "web/coordinator.py",
                "data.name, data.scopes, data.limits",
                "data.name, data.scopes",
            ),
        ),
        (KH, "-k", "has_spent"),
    ),
    Fault(
        "keys: the list does not show limits",
        (("cli/keys.py", "                _spent(row),\n", "                None,\n"),),
        (CK, "-k", "beside"),
    ),
    Fault(
        "keys: limits are not sent",
        (("cli/keys.py", '        body["limits"] = limits', "        pass"),),
        (CK, "-k", "as_they_are_given"),
    ),
)
