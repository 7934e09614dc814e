"""Faults in the isolation of agents: networks, limits, Landlock, what is inherited."""

from tools.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph isolation: egress admits every host",
        (
            (
                "backends/sandbox/egress.py",
                "if self._hosts is not None and target not in self._hosts:",
                "if self._hosts is not None and not target:",
            ),
        ),
        ("tests/contracts/test_sandbox_network.py", "-k", "granted_host and Bubble"),
    ),
    Fault(
        "ralph isolation: egress forgets what it refused",
        (
            (
                "backends/sandbox/egress.py",
                'self._refusals.add(f"host {target}")',
                'self._refusals.add("")',
            ),
        ),
        ("tests/contracts/test_sandbox_network.py", "-k", "granted_host and Bubble"),
    ),
    Fault(
        "ralph isolation: a granted name may lead to this machine",
        (
            (
                "backends/sandbox/networks.py",
                "if any(found in network for network in self._barred):",
                "if any(found in network for network in ()):",
            ),
        ),
        (
            "tests/contracts/test_sandbox_network.py",
            "-k",
            "grant_of_a_private and Bubble",
        ),
    ),
    Fault(
        "ralph isolation: an IPv6 spelling of an IPv4 address passes",
        (
            (
                "backends/sandbox/networks.py",
                '        if embedded(found) != found:\n            return "hides an IPv4 address"\n',
                "",
            ),
            (
                "backends/sandbox/networks.py",
                '"168.63.129.16/32", "::/127", "::ffff:0:0/96",',
                '"168.63.129.16/32", "::/127",',
            ),
        ),
        (
            "tests/contracts/test_sandbox_network.py",
            "-k",
            "grant_of_a_private and Bubble",
        ),
    ),
    Fault(
        "ralph isolation: plain http goes through the proxy unnoticed",
        (
            (
                "backends/sandbox/egress.py",
                "self._refusals.add(_plain(method, target))",
                "_plain(method, target)",
            ),
        ),
        ("tests/contracts/test_sandbox_network.py", "-k", "granted_host and Bubble"),
    ),
    Fault(
        "ralph isolation: refusals are kept without end",
        (
            (
                "backends/sandbox/refusals.py",
                "if len(self._seen) < _MOST:",
                "if self._seen is not None:",
            ),
        ),
        (
            "tests/contracts/test_sandbox_network.py",
            "-k",
            "bounded_and_printable and Bubble",
        ),
    ),
    Fault(
        "ralph isolation: refusals are kept as they came",
        (
            (
                "backends/sandbox/refusals.py",
                'c if c.isascii() and c.isprintable() else "?"',
                "c",
            ),
        ),
        (
            "tests/contracts/test_sandbox_network.py",
            "-k",
            "bounded_and_printable and Bubble",
        ),
    ),
    Fault(
        "ralph isolation: the forwarder forgets what it refused",
        (
            (
                "backends/sandbox/forwarder.py",
                'self._refusals.add(f"request {request.method} {shown}")',
                "del shown",
            ),
        ),
        (
            "tests/contracts/test_sandbox_network.py",
            "-k",
            "bounded_and_printable and Bubble",
        ),
    ),
    Fault(
        "ralph isolation: the proxy needs no password",
        (
            (
                "backends/sandbox/egress.py",
                "if given is None or not hmac.compare_digest(given[1], self._login):",
                "if given is None:",
            ),
        ),
        ("tests/unit/test_egress.py", "-k", "password"),
    ),
    Fault(
        "ralph isolation: the proxy's connections are not counted",
        (
            (
                "backends/sandbox/egress.py",
                "if len(self._open) >= CONNECTIONS:",
                "if len(self._open) >= 10 * CONNECTIONS:",
            ),
        ),
        ("tests/unit/test_egress.py", "-k", "counted"),
    ),
    Fault(
        "ralph isolation: a silent tunnel stays open",
        (
            (
                "backends/sandbox/egress.py",
                "idle.reschedule(loop.time() + IDLE_S)",
                "idle.reschedule(loop.time() + 600)",
            ),
        ),
        ("tests/unit/test_egress.py", "-k", "silent"),
    ),
    Fault(
        "ralph isolation: a question of any kind is handed on",
        (
            (
                "backends/sandbox/questions.py",
                "if question.kind not in _KINDS:",
                "if not question.kind:",
            ),
        ),
        (
            "tests/contracts/test_sandbox_network.py",
            "-k",
            "from_inside_is_answered and Bubble",
        ),
    ),
    Fault(
        "ralph isolation: questions are asked side by side",
        (
            (
                "backends/sandbox/questions.py",
                "        self._waiting = True\n",
                "        self._waiting = False\n",
            ),
        ),
        ("tests/contracts/test_sandbox_network.py", "-k", "one_at_a_time and Bubble"),
    ),
    Fault(
        "ralph isolation: questions have no end",
        (
            (
                "backends/sandbox/questions.py",
                "if self._asked >= MOST:",
                "if self._asked >= 10 * MOST:",
            ),
        ),
        ("tests/contracts/test_sandbox_network.py", "-k", "one_at_a_time and Bubble"),
    ),
    Fault(
        "ralph isolation: network full reaches private networks",
        (
            (
                "backends/sandbox/routes.py",
                "        for network in unreachable:\n",
                "        for network in ():\n",
            ),
        ),
        ("tests/contracts/test_sandbox_network.py", "-k", "network_full"),
    ),
    Fault(
        "ralph isolation: network full reaches this machine by its own address",
        (
            (
                "backends/sandbox/networks.py",
                "for one in (*BARRED, *own)]",
                "for one in BARRED]",
            ),
        ),
        ("tests/system/test_attack_t7_reach.py", "-k", "services and full and Bubble"),
    ),
    Fault(
        "ralph isolation: a private network that was allowed is barred",
        (
            (
                "backends/sandbox/routes.py",
                "        for network in reachable:\n",
                "        for network in ():\n",
            ),
        ),
        ("tests/contracts/test_sandbox_network.py", "-k", "network_full"),
    ),
    Fault(
        "ralph isolation: address space counts as memory",
        (
            (
                "backends/sandbox/guarded.py",
                '            "CORE": 0,\n',
                '            "CORE": 0,\n            "AS": run.memory_bytes,\n',
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "only_reserved and Bubble"),
    ),
    Fault(
        "ralph isolation: the kernel's end for want of memory is not told",
        (
            (
                "backends/sandbox/usage.py",
                'if name == "oom_kill" and int(number):',
                'if name == "oom" and int(number):',
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "hog and Bubble and True"),
    ),
    Fault(
        "ralph isolation: memory is not watched without a cgroup",
        (
            (
                "backends/sandbox/usage.py",
                "        over = self._over(list(pids()))\n",
                "        over = False\n",
            ),
        ),
        (
            "tests/contracts/test_sandbox_limits.py",
            "-k",
            "hog and Bubble and private-False",
        ),
    ),
    Fault(
        "ralph isolation: shared memory is not counted",
        (
            (
                "backends/sandbox/usage.py",
                "return own + max(shared, files + hidden) > self.limit",
                "return own > self.limit",
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "hog and Bubble and shared"),
    ),
    Fault(
        "ralph isolation: files without a name are not counted as memory",
        (
            (
                "backends/sandbox/usage.py",
                "if _shared_memory() - self._shared > self.limit // 2:",
                "if _shared_memory() < 0:",
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "hog and Bubble and nameless"),
    ),
    Fault(
        "ralph isolation: only the first process counts for memory",
        (
            (
                "backends/sandbox/usage.py",
                "        over = self._over(list(pids()))\n",
                "        over = self._over(list(pids())[:5])\n",
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "hog and Bubble and many"),
    ),
    Fault(
        "ralph isolation: the disk is not watched",
        (
            (
                "backends/sandbox/guardian.py",
                "if why := self.disk.exceeded(self.all_pids):",
                "if why := '':",
            ),
        ),
        (
            "tests/contracts/test_sandbox_limits.py",
            "-k",
            "disk_filler and Bubble and big",
        ),
    ),
    Fault(
        "ralph isolation: deleted files take no room",
        (
            (
                "backends/sandbox/usage.py",
                "total = max(total + gone, grown if found.closed else 0)",
                "total = max(total, grown if found.closed else 0)",
            ),
        ),
        (
            "tests/contracts/test_sandbox_limits.py",
            "-k",
            "disk_filler and Bubble and deleted",
        ),
    ),
    Fault(
        "ralph isolation: the disk is walked by paths",
        (
            (
                "backends/sandbox/usage.py",
                "fd = os.open(name, flags, dir_fd=folder)",
                "fd = os.open(name if folder is None else os.readlink(f'/proc/self/fd/{folder}') + '/' + name, flags)",
            ),
            (
                "backends/sandbox/usage.py",
                "        found.closed = True\n        return\n    try:",
                "        return\n    try:",
            ),
        ),
        (
            "tests/contracts/test_sandbox_limits.py",
            "-k",
            "disk_filler and Bubble and longest",
        ),
    ),
    Fault(
        "ralph isolation: what was there counts against the usual disk limit",
        (
            (
                "backends/sandbox/usage.py",
                "self.limit += max(0, total - grown)",
                "self.limit += 0",
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "taken_up"),
    ),
    Fault(
        "ralph isolation: a walk that a slice ended is lost",
        (
            (
                "backends/sandbox/usage.py",
                "return self._judge(self._held, grown, pids)",
                "return self._judge(so_far, grown, pids)",
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "taken_up"),
    ),
    Fault(
        "ralph isolation: too many processes are not told as a limit",
        (
            (
                "backends/sandbox/guarded.py",
                'LIMITS = frozenset({"memory", "disk", "processes"})',
                'LIMITS = frozenset({"memory", "disk"})',
            ),
        ),
        ("tests/contracts/test_sandbox_limits.py", "-k", "fork_bomb and NoSandbox"),
    ),
    Fault(
        "ralph isolation: Landlock lets everything be read",
        (
            (
                "backends/sandbox/confine.py",
                "    given = [(path, reading) for path in read]\n",
                "    given = [(path, reading) for path in (*read, '/')]\n",
            ),
        ),
        ("tests/system/test_attack_t7_reach.py", "-k", "keys_other_tasks and Landlock"),
    ),
    Fault(
        "ralph isolation: Landlock lets everything be written",
        (
            (
                "backends/sandbox/confine.py",
                "    given += [(path, rights & ~DEVICE_MAKING) for path in write]\n",
                "    given += [(path, rights & ~DEVICE_MAKING) for path in (*write, '/')]\n",
            ),
        ),
        ("tests/system/test_attack_t7_reach.py", "-k", "keys_other_tasks and Landlock"),
    ),
    Fault(
        "ralph isolation: Landlock lets TCP out",
        (
            (
                "backends/sandbox/confine.py",
                'about += struct.pack("=Q", BIND_TCP | CONNECT_TCP)',
                'about += struct.pack("=Q", BIND_TCP)',
            ),
            (
                "backends/sandbox/confine.py",
                "    for port in ports:\n",
                "    for port in ():\n",
            ),
        ),
        (
            "tests/system/test_attack_t7_reach.py",
            "-k",
            "services and Landlock and none",
        ),
    ),
    Fault(
        "ralph isolation: under Landlock there are sockets of every kind",
        (
            (
                "backends/sandbox/confine.py",
                '_if(number("socket"), 0, 11),',
                "_if(0x3FFFFFFF, 0, 11),",
            ),
        ),
        (
            "tests/system/test_attack_t7_reach.py",
            "-k",
            "services and Landlock and none",
        ),
    ),
    Fault(
        "ralph isolation: under Landlock the first packet may carry data",
        (
            (
                "backends/sandbox/confine.py",
                "_op(0x45, 0, 1, FAST_OPEN),",
                "_op(0x45, 0, 1, 0),",
            ),
        ),
        (
            "tests/system/test_attack_t7_reach.py",
            "-k",
            "services and Landlock and none",
        ),
    ),
    Fault(
        "ralph isolation: under Landlock others can be signalled",
        (
            (
                "backends/sandbox/confine.py",
                "SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS)",
                "SCOPE_ABSTRACT_SOCKETS)",
            ),
        ),
        ("tests/system/test_attack_t7_reach.py", "-k", "signalled and Landlock"),
    ),
    Fault(
        "ralph isolation: under Landlock root stays root",
        (
            (
                "backends/sandbox/confine.py",
                "    drop_capabilities()\n    _prctl",
                "    _prctl",
            ),
        ),
        ("tests/system/test_attack_t7_reach.py", "-k", "privilege and Landlock"),
    ),
    Fault(
        "ralph isolation: under Landlock the limits of others can be set",
        (
            (
                "backends/sandbox/confine.py",
                '_if(number("prlimit64"), 0, 4),',
                "_if(0x3FFFFFFF, 0, 4),",
            ),
        ),
        ("tests/system/test_attack_t7_reach.py", "-k", "signalled and Landlock"),
    ),
    Fault(
        "ralph isolation: a variable reaches the launcher of Landlock",
        (("backends/sandbox/confine.py", 'VEILED = "NESTOR_VEILED_"', 'VEILED = ""'),),
        ("tests/system/test_attack_t7_reach.py", "-k", "library and Landlock"),
    ),
    Fault(
        "ralph isolation: the keys of the session are inherited",
        (
            (
                "backends/sandbox/processes.py",
                "            _libc.syscall(keyctl, JOIN_SESSION_KEYRING, None)\n",
                "            pass\n",
            ),
        ),
        ("tests/system/test_attack_t7_reach.py", "-k", "privilege and Bubble"),
    ),
    Fault(
        "ralph isolation: auto takes bubblewrap that does not work",
        (
            (
                "backends/sandbox/choice.py",
                "if may_fall_back and bubblewrap.probe() and landlock.probe() is None:",
                "if kind == 'never':",
            ),
        ),
        ("tests/unit/test_sandbox_choice.py",),
    ),
    Fault(
        "ralph isolation: root is left to Landlock unasked",
        (("backends/sandbox/choice.py", " and os.geteuid() != 0", ""),),
        ("tests/unit/test_sandbox_choice.py",),
    ),
    Fault(
        "ralph isolation: a metadata address may be named as private host",
        (
            (
                "model/network.py",
                '    if fault := fault_of(str(named.network_address)):\n        raise ValueError(f"{entry!r} {fault}")\n    return str(named)',
                "    return str(named)",
            ),
        ),
        ("tests/unit/test_addresses.py", "-k", "private_host"),
    ),
)
