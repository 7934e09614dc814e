"""Faults in sessions of the page, and in what a browser may do."""

from tools.faults.fault import Fault

FAULTS = (
    Fault(
        "a session counts under a name that other ports share",
        (
            (
                "web/auth.py",
                'if self._page_hosts and is_page_host(sent.get(b"host", ()), self._page_hosts):',
                "if self._page_hosts:",
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "shared_name"),
    ),
    Fault(
        "a session counts on every layer",
        (("web/app.py", "    if layer != auth.PAGE_LAYER:\n", "    if False:\n"),),
        ("tests/faces/test_sessions.py", "-k", "every_other_layer"),
    ),
    Fault(
        "of two session cookies one is taken",
        (
            (
                "web/auth.py",
                "if len(found) > 1 or not _SESSION_SECRET",
                "if not _SESSION_SECRET",
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "a4"),
    ),
    Fault(
        "a cookie of any form is looked up",
        (
            (
                "web/auth.py",
                "if len(found) > 1 or not _SESSION_SECRET.fullmatch(found[0]):",
                "if len(found) > 1:",
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "a4_a_cookie"),
    ),
    Fault(
        "a session changes things without its token",
        (
            (
                "web/auth.py",
                '        if scope["method"] not in {"GET", "HEAD"}:',
                "        if False:",
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "b4_a_session"),
    ),
    Fault(
        "only a POST needs the session's token",
        (
            (
                "web/auth.py",
                '        if scope["method"] not in {"GET", "HEAD"}:',
                '        if scope["method"] == "POST":',
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "b4_a_session"),
    ),
    Fault(
        "any session's token serves for all",
        (
            (
                "web/auth.py",
                "hmac.digest(secret, _CSRF_LABEL",
                'hmac.digest(b"", _CSRF_LABEL',
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "b4_a_session"),
    ),
    Fault(
        "signing in needs no Origin",
        (
            (
                "web/session.py",
                "    if origins not in (\n",
                "    if origins and origins not in (\n",
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "without_an_origin"),
    ),
    Fault(
        "any of our own origins signs in",
        (
            (
                "web/session.py",
                "    if origins not in (\n",
                "    if not origins and () not in (\n",
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "any_other_page"),
    ),
    Fault(
        "a form signs in",
        (
            (
                "web/session.py",
                '    if kind.strip().lower() != b"application/json":',
                "    if False:",
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "a_form"),
    ),
    Fault(
        "a browser is signed in under a name that other ports share",
        (
            (
                "web/session.py",
                "    if not is_page_host(hosts, page_hosts(settings)):",
                "    if False:",
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "other_ports_share"),
    ),
    Fault(
        "links may be guessed without end",
        (("web/session.py", "            if wait_s is None:", "            if True:"),),
        ("tests/faces/test_sign_in.py", "-k", "guessing"),
    ),
    Fault(
        "what others tried refuses a right link",
        (
            (
                "web/session.py",
                "            redeemed = await request.app",
                '            if known.client_of(request.scope) in getattr(failures, "_own", {}):\n                raise Unauthorized("no")\n            redeemed = await request.app',
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "a_right_link"),
    ),
    Fault(
        "what cannot be a link counts",
        (
            (
                "web/session.py",
                "            if not SECRET.fullmatch(token):",
                "            if False:",
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "cannot_be_a_link"),
    ),
    Fault(
        "all clients share the wrong links",
        (
            (
                "web/session.py",
                "failures.admit(known.client_of(request.scope))",
                'failures.admit("")',
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "each_client"),
    ),
    Fault(
        "a right link waits behind guesses",
        (
            (
                "backends/sql/session_store.py",
                "        self._remember(self._hash(link.token))\n",
                "",
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "right_link"),
    ),
    Fault(
        "a new session waits behind guesses",
        (
            (
                "backends/sql/session_store.py",
                "        self._remember(self._hash(secret))\n",
                "",
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "right_link"),
    ),
    Fault(
        "a guessed link waits for writers",
        (
            (
                "backends/sql/session_store.py",
                "        if await self._looked_up(digest, found) is None:",
                "        if False:",
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "for_writers"),
    ),
    Fault(
        "sessions outlive the admin key",
        (
            (
                "wiring/stack.py",
                "made_under=hash_of(api_key)",
                'made_under=hash_of("")',
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "another_admin_key"),
    ),
    Fault(
        "the key goes into no session's hash",
        (
            (
                "backends/sql/session_store.py",
                "hmac.digest(self._made_under, ",
                'hmac.digest(b"", ',
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "another_admin_key"),
    ),
    Fault(
        "links outlive the end of all",
        (
            (
                "backends/sql/session_store.py",
                "            for table in (page_link, page_session):\n                await connection.execute(delete(table))",
                "            await connection.execute(delete(page_session))",
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "all_that_were_ended"),
    ),
    Fault(
        "a page ends the sessions of others",
        (
            (
                "web/session.py",
                '    opt={"scope": "admin", "replies": {204: None}},\n    guards=[_by_key_alone],\n',
                '    opt={"scope": "admin", "replies": {204: None}},\n',
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "ends_every_session_and_open"),
    ),
    Fault(
        "nestor page --end makes a link",
        (("cli/page.py", "    if end:\n", "    if False:\n"),),
        ("tests/faces/test_sign_in.py", "-k", "needs_no_terminal"),
    ),
    Fault(
        "HOST is a name of the page",
        (("web/auth.py", "if host != added and not", "if not"),),
        ("tests/faces/test_sign_in.py", "-k", "nobody_chose and 10.0"),
    ),
    Fault(
        "names of loopback are names of the page",
        (
            (
                "web/auth.py",
                'if host != added and not is_loopback(_bare(host).strip("[].").lower())',
                "if host != added",
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "names_that_other"),
    ),
    Fault(
        "a page may make links",
        (
            (
                "web/session.py",
                '    if connection.scope.get("auth") is not None:',
                "    if False:",
            ),
        ),
        ("tests/faces/test_sign_in.py", "-k", "by_no_page"),
    ),
    Fault(
        "a script may read the session's cookie",
        (("web/session.py", "Path=/; HttpOnly; SameSite", "Path=/; SameSite"),),
        ("tests/faces/test_sign_in.py", "-k", "no_script_reads"),
    ),
    Fault(
        "the session's cookie goes along from other sites",
        (("web/session.py", "SameSite=Strict", "SameSite=Lax"),),
        ("tests/faces/test_sign_in.py", "-k", "no_other_site"),
    ),
    Fault(
        "a link works again",
        (
            (
                "backends/sql/session_store.py",
                "            if used.rowcount != 1:",
                "            if used.rowcount > 1:",
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "once"),
    ),
    Fault(
        "a link never grows old",
        (
            (
                "backends/sql/session_store.py",
                "                    page_link.c.expires_at > time_text(now),",
                '                    page_link.c.expires_at > "",',
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "five_minutes"),
    ),
    Fault(
        "a session never grows old",
        (
            (
                "backends/sql/session_store.py",
                "            page_session.c.expires_at > time_text(self._now()),",
                '            page_session.c.expires_at > "",',
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "eight_hours"),
    ),
    Fault(
        "a session outlives its end",
        (
            (
                "backends/sql/session_store.py",
                "delete(page_session).where(page_session.c.id == session_id)",
                'delete(page_session).where(page_session.c.id == "")',
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "ended"),
    ),
    Fault(
        "a session's secret is stored as it is",
        (
            (
                "backends/sql/session_store.py",
                "secret_hash=self._hash(secret)",
                "secret_hash=secret",
            ),
            (
                "backends/sql/session_store.py",
                "digest = self._hash(secret)",
                "digest = secret",
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "in_the_files"),
    ),
    Fault(
        "guessed sessions keep known ones waiting",
        (
            (
                "backends/sql/session_store.py",
                "self._lookups.turn(known=digest in self._known)",
                "self._lookups.turn(known=False)",
            ),
        ),
        ("tests/contracts/test_session_store.py", "-k", "flood"),
    ),
    Fault(
        "the link is printed to a pipe",
        (("cli/page.py", "    if not screen.terminal:", "    if False:"),),
        ("tests/faces/test_sign_in.py", "-k", "pipe"),
    ),
    Fault(
        "the link of a start is printed to a file",
        (
            (
                "cli/stack.py",
                "page_link=page_link if screen.terminal else None",
                "page_link=page_link",
            ),
        ),
        ("tests/system/test_page_link.py", "-k", "no_link"),
    ),
    Fault(
        "the link of a start is in the log",
        (
            (
                "web/stack.py",
                "                    page_link(url, link.expires_at)",
                '                    page_link(url, link.expires_at)\n                    __import__("sys").stderr.write(url)',
            ),
        ),
        ("tests/system/test_page_link.py", "-k", "terminal"),
    ),
    Fault(
        "strangers hear which paths there are",
        (
            (
                "web/auth.py",
                '            if not self._serves(scope["raw_path"]):',
                "            if False:",
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "p1"),
    ),
    Fault(
        "a stranger hears 403 of every path",
        (
            (
                "web/auth.py",
                '            if not self._serves(scope["raw_path"]):',
                "            if True:",
            ),
        ),
        ("tests/faces/test_sessions.py", "-k", "of_paths_that_are_served"),
    ),
    Fault(
        "the service's own key reaches what its scope reaches",
        (
            (
                "web/auth.py",
                "if principal.key_id == SERVICE and target",
                "if False and target",
            ),
        ),
        ("tests/faces/test_auth.py", "-k", "service_key"),
    ),
    Fault(
        "anything is looked up as a key",
        (
            (
                "web/auth.py",
                '_KEY = re.compile(rb"[!-~]{1,%d}" % MAX_KEY_BYTES)',
                '_KEY = re.compile(rb"(?s:.{1,%d})" % 99_999)',
            ),
        ),
        ("tests/faces/test_auth.py", "-k", "a3_what"),
    ),
    Fault(
        "of several keys one is taken",
        (
            (
                "web/auth.py",
                "    if found or len(bearers) > 1 or len(plain) > 1:",
                "    if False:",
            ),
        ),
        ("tests/faces/test_auth.py", "-k", "a3_a4"),
    ),
    Fault(
        "the page allows scripts of its own text",
        (
            (
                "web/dashboard.py",
                "script-src 'self';",
                "script-src 'self' 'unsafe-inline';",
            ),
            (
                "web/dashboard.py",
                " require-trusted-types-for 'script'; trusted-types 'none'",
                "",
            ),
        ),
        ("tests/system/test_browser.py", "-k", "b5_the_policy"),
    ),
    Fault(
        "the token stays in the address bar",
        (
            (
                "web/static/session.js",
                '    history.replaceState(null, "", location.pathname);\n',
                "",
            ),
        ),
        ("tests/system/test_browser.py", "-k", "leaves_neither"),
    ),
    Fault(
        "the script takes text for HTML",
        (
            (
                "web/static/session.js",
                "    line.textContent = text;",
                "    line.innerHTML = text;",
            ),
            (
                "web/dashboard.py",
                " require-trusted-types-for 'script'; trusted-types 'none'",
                "",
            ),
        ),
        ("tests/system/test_browser.py", "-k", "b5_what"),
    ),
    Fault(
        "a diff is shown as a page",
        (("web/ralph.py", 'media_type="text/plain"', 'media_type="text/html"'),),
        ("tests/system/test_browser.py", "-k", "b5_nothing and ralph"),
    ),
    Fault(
        "problems are shown as pages",
        (
            (
                "web/errors.py",
                '(b"content-type", b"application/problem+json"),',
                '(b"content-type", b"text/html"),',
            ),
        ),
        ("tests/system/test_browser.py", "-k", "b5_nothing and learning"),
    ),
    Fault(
        "a name that was pointed here is served",
        (
            (
                "web/edge.py",
                '        if not self._is_ours(host.decode("latin-1").lower(), port):',
                "        if False:",
            ),
        ),
        ("tests/system/test_browser.py", "-k", "b1"),
    ),
    Fault(
        "pages of other sites are answered",
        (
            (
                "web/edge.py",
                'if not OWN_SITES.issuperset(found[b"sec-fetch-site"]):',
                "if False:",
            ),
        ),
        ("tests/system/test_browser.py", "-k", "b2_b3 and evil"),
    ),
    Fault(
        "pages of other origins are answered",
        (
            (
                "web/edge.py",
                "if len(origins) > 1 or not all(self._is_our_origin(o, port) for o in origins):",
                "if len(origins) > 1:",
            ),
            (
                "web/edge.py",
                'if not OWN_SITES.issuperset(found[b"sec-fetch-site"]):',
                "if False:",
            ),
        ),
        ("tests/system/test_browser.py", "-k", "whole_window and nestor"),
    ),
    Fault(
        "a page may be framed by others",
        (
            (
                "web/headers.py",
                '(b"x-frame-options", b"DENY")',
                '(b"x-frame-options", b"SAMEORIGIN")',
            ),
        ),
        ("tests/system/test_browser.py", "-k", "b6_b8"),
    ),
    Fault(
        "listing keys makes one",
        (
            (
                "web/coordinator.py",
                "    parts = _parts(request)\n    listed = [",
                '    parts = _parts(request)\n    await parts.keys.create("x", ["read"])\n    listed = [',
            ),
        ),
        ("tests/system/test_browser.py", "-k", "b6_b8"),
    ),
)
