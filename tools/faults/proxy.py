"""Faults in the proxy and in the limiter."""

from tools.faults.fault import Fault

FAULTS = (
    Fault(
        "p1: dots are the router's business",
        (
            (
                "web/proxy.py",
                "if raw not in TARGETS and unquote_to_bytes(raw)",
                'if raw not in TARGETS and b".." not in raw and unquote_to_bytes(raw)',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "p1- or p5"),
    ),
    Fault(
        "p2-p6: what is escaped is another's business",
        (
            (
                "web/proxy.py",
                "if raw not in TARGETS and unquote_to_bytes(raw)",
                'if raw not in TARGETS and b"%" not in raw and unquote_to_bytes(raw)',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "p_everything"),
    ),
    Fault(
        "p7, p8: an address may go on",
        (
            (
                "web/proxy.py",
                "if raw not in TARGETS and unquote_to_bytes(raw)",
                "if not raw.startswith(tuple(TARGETS)) and unquote_to_bytes(raw)",
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "p7 or p8"),
    ),
    Fault(
        "p9: a shell's signs are let through",
        (
            (
                "web/proxy.py",
                "if raw not in TARGETS and unquote_to_bytes(raw)",
                'if raw not in TARGETS and not set(raw) & set(b";$`|&") and unquote_to_bytes(raw)',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "p9"),
    ),
    Fault(
        "p10: the prefix is replaced, not matched",
        (
            (
                "web/proxy.py",
                "if raw not in TARGETS and unquote_to_bytes(raw)",
                'if PREFIX.encode() + b"/" + raw.replace(b"/aidb/", b"") not in TARGETS and unquote_to_bytes(raw)',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "p10"),
    ),
    Fault(
        "another spelling of the prefix is routed",
        (("web/proxy.py", "unquote_to_bytes(raw).startswith", "raw.startswith"),),
        ("tests/faces/test_proxy.py", "-k", "spellings"),
    ),
    Fault(
        "the dashboard does not ask the proxy",
        (("web/app.py", "        refuse_target=refuse_target,\n", ""),),
        ("tests/faces/test_proxy.py", "-k", "p_everything"),
    ),
    Fault(
        "p11: absolute targets are served",
        (("web/target.py", 'if not raw.startswith(b"/"):', "if False:"),),
        ("tests/faces/test_proxy.py", "-k", "p11"),
    ),
    Fault(
        "p12: any length is read",
        (("web/target.py", "if len(raw) > MAX_TARGET_BYTES:", "if False:"),),
        ("tests/faces/test_proxy.py", "-k", "p12"),
    ),
    Fault(
        "a refusal starts a program",
        (
            (
                "web/proxy.py",
                "    if raw not in TARGETS and",
                '    __import__("subprocess").run(["true"], check=False)\n    if raw not in TARGETS and',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "p_everything"),
    ),
    Fault(
        "the proxy's keyed pages are open",
        (
            (
                "web/proxy.py",
                '        "/metrics",\n        "metrics",',
                '        "/metrics",\n        None,',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "want_a_key"),
    ),
    Fault(
        "m15: what a header says goes into the address",
        (
            (
                "web/proxy.py",
                "answer = await aidb.ask(page)",
                'answer = await aidb.ask(page._replace(path=page.path + request.headers.get("x-forwarded-for", "")))',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "m15"),
    ),
    Fault(
        "m16: the client library's own headers go on",
        (("web/proxy.py", "                skip_auto_headers=_SENT_BY_ITSELF,\n", ""),),
        ("tests/faces/test_proxy.py", "-k", "m16_nothing"),
    ),
    Fault(
        "m16: the service's key goes to open pages",
        (("web/proxy.py", "if page.scope is not None:", "if True:"),),
        ("tests/faces/test_proxy.py", "-k", "m16_nothing"),
    ),
    Fault(
        "m16: the caller's key goes on",
        (
            (
                "web/proxy.py",
                "answer = await aidb.ask(page)",
                'aidb._service_key = request.headers.get("authorization", "").removeprefix("Bearer ")\n        answer = await aidb.ask(page)',
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "m16_nothing"),
    ),
    Fault(
        "m16: all headers of the reply come back",
        (
            (
                "web/proxy.py",
                "return Answer(reply.status, kind, bytes(body))",
                "return Answer(reply.status, dict(reply.headers), bytes(body))",
            ),
            (
                "web/proxy.py",
                'headers={"content-type": answer.content_type},',
                "headers=answer.content_type,",
            ),
        ),
        ("tests/faces/test_proxy.py", "-k", "m16_only"),
    ),
    Fault(
        "m17: a body of any length is kept",
        (("web/proxy.py", "        if len(body) > max_bytes:", "        if False:"),),
        ("tests/faces/test_proxy_upstream.py", "-k", "502 and (endless or chunks)"),
    ),
    Fault(
        "m17: an announced length is not believed",
        (("web/proxy.py", "if (reply.content_length or 0) > max_bytes:", "if False:"),),
        ("tests/faces/test_proxy_upstream.py", "-k", "502 and huge"),
    ),
    Fault(
        "m17: any status is passed on",
        (("web/proxy.py", "if reply.status not in _PASSED_ON:", "if False:"),),
        ("tests/faces/test_proxy_upstream.py", "-k", "502 and (301 or 404)"),
    ),
    Fault(
        "m17: redirects are followed",
        (("web/proxy.py", "allow_redirects=False", "allow_redirects=True"),),
        ("tests/faces/test_proxy_upstream.py", "-k", "502 and 307"),
    ),
    Fault(
        "m17: any type is passed on",
        (
            (
                "web/proxy.py",
                'if not _KIND.fullmatch(kind) or kind.partition(";")[0] not in _KINDS:',
                "if False:",
            ),
        ),
        ("tests/faces/test_proxy_upstream.py", "-k", "502 and type"),
    ),
    Fault(
        "m17: a compressed reply is passed on",
        (
            (
                "web/proxy.py",
                'if reply.headers.get("Content-Encoding", "identity").lower() != "identity":',
                "if False:",
            ),
        ),
        ("tests/faces/test_proxy_upstream.py", "-k", "compressed"),
    ),
    Fault(
        "m17: no end to waiting",
        (
            (
                "web/proxy.py",
                "ClientTimeout(total=self._timeout_s)",
                "ClientTimeout(total=None)",
            ),
        ),
        ("tests/faces/test_proxy_upstream.py", "-k", "504 and silent"),
    ),
    Fault(
        "m17: too slow and broken are one",
        (("web/proxy.py", "raise UpstreamTimeout(\n", "raise UpstreamError(\n"),),
        ("tests/faces/test_proxy_upstream.py", "-k", "504 and silent"),
    ),
    Fault(
        "the proxy's pool has no bound",
        (("web/proxy.py", "limit=MAX_CONNECTIONS,", "limit=0,"),),
        ("tests/faces/test_proxy_upstream.py", "-k", "pool"),
    ),
    Fault(
        "the environment's proxy is asked",
        (("web/proxy.py", "trust_env=False", "trust_env=True"),),
        ("tests/faces/test_proxy_upstream.py", "-k", "pool"),
    ),
    Fault(
        "l1: one more than the limit",
        (
            (
                "resilience/rate_limit.py",
                "if len(times) < self._limit:",
                "if len(times) <= self._limit:",
            ),
        ),
        ("tests/faces/test_proxy_limits.py", "-k", "l1"),
    ),
    Fault(
        "l1: what is refused counts",
        (
            (
                "resilience/rate_limit.py",
                "        if wait_s is not None:\n            return wait_s\n        times.append(now)",
                "        times.append(now)\n        if wait_s is not None:\n            return wait_s",
            ),
        ),
        ("tests/unit/test_rate_limit.py", "-k", "naive"),
    ),
    Fault(
        "l2: anybody's X-Forwarded-For is believed",
        (("web/client_address.py", "if not self._trusts(peer):", "if False:"),),
        ("tests/faces/test_proxy_limits.py", "-k", "l2"),
    ),
    Fault(
        "l2: the left-most hop counts",
        (
            (
                "web/client_address.py",
                'reversed(b",".join(values).split(b","))',
                'b",".join(values).split(b",")',
            ),
        ),
        ("tests/faces/test_proxy_limits.py", "-k", "l2"),
    ),
    Fault(
        "l3: each IPv6 address is a client",
        (("web/client_address.py", "IPv6_PREFIX = 64", "IPv6_PREFIX = 128"),),
        ("tests/faces/test_proxy_limits.py", "-k", "which_client"),
    ),
    Fault(
        "IPv4 in IPv6 is another client",
        (
            (
                "web/client_address.py",
                "return address.ipv4_mapped or address",
                "return address",
            ),
        ),
        ("tests/faces/test_proxy_limits.py", "-k", "which_client"),
    ),
    Fault(
        "l3: windows without number",
        (
            (
                "resilience/rate_limit.py",
                "full = len(self._own) >= self._max_clients",
                "full = False",
            ),
        ),
        ("tests/unit/test_rate_limit.py", "-k", "l3"),
    ),
    Fault(
        "the order of windows is that of the first admission",
        (
            (
                "resilience/rate_limit.py",
                "            self._own.move_to_end(client)\n",
                "",
            ),
        ),
        ("tests/unit/test_rate_limit.py", "-k", "silent_for_a_window"),
    ),
    Fault(
        "who leaves the shared window begins anew",
        (("resilience/rate_limit.py", "else deque(self._others)", "else deque()"),),
        ("tests/unit/test_rate_limit.py", "-k", "naive"),
    ),
    Fault(
        "a window is a moment too long",
        (
            (
                "resilience/rate_limit.py",
                "return then + self._window_s <= now",
                "return then + self._window_s < now",
            ),
        ),
        ("tests/unit/test_rate_limit.py", "-k", "naive or comes_back"),
    ),
    Fault(
        "what Redis admitted is not counted here",
        (
            (
                "backends/redis/rate_limiter.py",
                "if await self._shared.hit(self._item, client):\n            return await self._local.admit(client)",
                "if await self._shared.hit(self._item, client):\n            return None",
            ),
        ),
        ("tests/contracts/test_rate_limiter.py", "-k", "goes_on_where"),
    ),
    Fault(
        "each request waits for a Redis that hangs",
        (
            (
                "backends/redis/connection.py",
                'f"redis {user}", failures=FAILURES,',
                'f"redis {user}", failures=10**6,',
            ),
        ),
        ("tests/contracts/test_rate_limiter.py", "-k", "hangs"),
    ),
    Fault(
        "an outage of Redis is the client's error",
        (
            (
                "backends/redis/connection.py",
                "except (RedisError, OSError, EOFError, ValueError) as error:",
                "except EOFError as error:",
            ),
        ),
        ("tests/contracts/test_rate_limiter.py", "-k", "goes_on_where"),
    ),
    Fault(
        "Redis counts each process alone",
        (
            (
                "backends/redis/rate_limiter.py",
                "self._item = RateLimitItemPerSecond(limit, window_s, namespace=name)",
                'self._item = RateLimitItemPerSecond(limit, window_s, namespace=f"{name}{id(self)}")',
            ),
        ),
        ("tests/contracts/test_rate_limiter.py", "-k", "two_processes"),
    ),
    Fault(
        "the connections to Redis stay open",
        (("backends/redis/connection.py", "await self.pool.disconnect()", "pass"),),
        ("tests/contracts/test_rate_limiter.py", "-k", "closed_at_the_end"),
    ),
    Fault(
        "the password of Redis is told",
        (
            (
                "model/network.py",
                'message = "the database must',
                'message = f"{parts.geturl()}: the database must',
            ),
        ),
        ("tests/unit/test_addresses.py", "-k", "redis_url_names"),
    ),
    Fault(
        "TLS to Redis may be weakened",
        (("model/network.py", "if options.keys() - _REDIS[scheme]:", "if False:"),),
        ("tests/unit/test_addresses.py", "-k", "redis_url_names"),
    ),
    Fault(
        "a socket of Redis may be on a host",
        (
            (
                "model/network.py",
                'if parts.hostname or not parts.path.strip("/"):',
                'if not parts.path.strip("/"):',
            ),
        ),
        ("tests/unit/test_addresses.py", "-k", "redis_url_names"),
    ),
    Fault(
        "a part of the password is told as the cause",
        (("model/network.py", "raise ValueError(message) from None", "raise"),),
        ("tests/unit/test_addresses.py", "-k", "redis_url_names"),
    ),
    Fault(
        "Redis degraded looks well",
        (
            (
                "backends/redis/connection.py",
                "status = HealthStatus.DEGRADED",
                "status = HealthStatus.HEALTHY",
            ),
        ),
        ("tests/contracts/test_rate_limiter.py", "-k", "goes_on_where or never_there"),
    ),
    Fault(
        "burst: sixty-one are let in",
        (
            (
                "wiring/stack.py",
                "PROXY_REQUESTS, PROXY_WINDOW_S = 60, 60",
                "PROXY_REQUESTS, PROXY_WINDOW_S = 61, 60",
            ),
        ),
        ("tests/system/test_proxy_with_curl.py", "-k", "burst"),
    ),
    Fault(
        "four: the proxy is not served",
        (
            (
                "web/stack.py",
                "[*dashboard.handlers(clients=clients), *proxied]",
                "dashboard.handlers(clients=clients)",
            ),
        ),
        ("tests/system/test_proxy_with_curl.py", "-k", "four_ways"),
    ),
    Fault(
        "nobody tells that Redis is gone",
        (
            (
                "wiring/stack.py",
                '            "dashboard": self.proxy_limiter.dependencies,\n',
                "",
            ),
        ),
        ("tests/system/test_proxy_with_curl.py", "-k", "without_its_redis"),
    ),
)
