"""Faults in what a start refuses, and in where models may be."""

from tools.faults.fault import Fault

R = "tests/unit/test_refusals.py"
AD = "tests/unit/test_addresses.py"
S = "tests/faces/test_attack_ssrf.py"
S1 = "tests/faces/test_attack_ssrf_requests.py"
B = "tests/system/test_bad_starts.py"
SET = "tests/unit/test_settings.py"

FAULTS = (
    Fault(
        "a8: bound for everybody without a chosen key",
        (
            (
                "settings.py",
                "if self.api_key is None and not network.is_loopback(self.host):",
                "if False:",
            ),
        ),
        (R, "-k", "a8"),
    ),
    Fault(
        "a8: clients of this machine call the wildcard address",
        (
            (
                "model/network.py",
                'return "::1" if ":" in host else "127.0.0.1"',
                "return host",
            ),
        ),
        (B, "-k", "names_that_were_allowed"),
    ),
    Fault(
        "a8: nobody is warned of an open bind",
        (
            (
                "cli/doctor.py",
                "    for finding in _reach(settings):",
                "    for finding in ():",
            ),
        ),
        (B, "-k", "warns_of_it"),
    ),
    Fault(
        "a7: a placeholder is a secret",
        (("model/secret.py", "if is_placeholder(value):", "if False:"),),
        (R, "-k", "a7_a_placeholder"),
    ),
    Fault(
        "a7: only the old placeholders are known",
        (
            (
                "model/secret.py",
                "digits <= _MOST_DIGITS and _WORDS.fullmatch(words) is not None",
                "False",
            ),
        ),
        (R, "-k", "a7_a_placeholder"),
    ),
    Fault(
        "a7: an empty secret counts as none",
        (("settings.py", "if not os.environ[given].strip():", "if False:"),),
        (R, "-k", "did_not_arrive"),
    ),
    Fault(
        "a7: a key that can be guessed is taken",
        (("settings.py", 'if info.field_name == "api_key" and (', "if False and ("),),
        (R, "-k", "guessed"),
    ),
    Fault(
        "a random key is refused as a placeholder",
        (("model/secret.py", 'r"change.?me|', 'r"x|change.?me|'),),
        (R, "-k", "random_key"),
    ),
    Fault(
        "a secret that every user can read is taken",
        (("model/secret.py", "if found.st_mode & stat.S_IROTH:", "if False:"),),
        (R, "-k", "others_can_read"),
    ),
    Fault(
        "a secret that others can write is taken",
        (
            (
                "model/secret.py",
                "if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):",
                "if False:",
            ),
        ),
        (R, "-k", "others_can_read"),
    ),
    Fault(
        "a FIFO in the place of a secret is waited for",
        (("resilience/secret_file.py", "os.O_NONBLOCK | ", ""),),
        (R, "-k", "no_small_text"),
    ),
    Fault(
        "what was opened is not looked at",
        (
            (
                "resilience/secret_file.py",
                "fault_of_file(os.fstat(handle), path, owner_only=owner_only)",
                "fault_of_file(os.lstat(path), path, owner_only=owner_only)",
            ),
        ),
        (R, "-k", "through_the_links"),
    ),
    Fault(
        "a settings file with a secret may be open",
        (("settings.py", "if held and (fault", "if False and (fault"),),
        (R, "-k", "settings_file"),
    ),
    Fault(
        "the command line reads an open key file",
        (
            (
                "cli/client.py",
                "return read_secret_file(path, owner_only=True)",
                "return path.read_text().strip()",
            ),
        ),
        (B, "-k", "key_file_must"),
    ),
    Fault(
        "the data folder of another user is used",
        (
            (
                "backends/files/data_folder.py",
                "            _refuse_if_not_ours(home)",
                "            pass",
            ),
        ),
        (B, "-k", "another_user"),
    ),
    Fault(
        "settings in small letters are read unseen",
        (
            (
                "settings.py",
                "name.upper().startswith(PREFIX)",
                "name.startswith(PREFIX)",
            ),
        ),
        (SET, "-k", "unknown_variable"),
    ),
    Fault(
        "names in the settings file count in any case",
        (
            (
                "settings.py",
                "sorted(values.keys() - Settings.model_fields.keys())",
                "sorted({k.lower() for k in values} - Settings.model_fields.keys())",
            ),
        ),
        (SET, "-k", "unknown_name"),
    ),
    Fault(
        "everybody may be a trusted proxy",
        (("model/network.py", "if network.prefixlen < _WIDEST_TRUST:", "if False:"),),
        (AD, "-k", "trusted_proxy"),
    ),
    Fault(
        "an allowed host may be anything",
        (
            (
                "settings.py",
                "named = [network.allowed_host(entry) for entry in value]",
                "named = list(value)",
            ),
        ),
        (AD, "-k", "allowed_host"),
    ),
    Fault(
        "s1: another spelling of api_base passes",
        (
            (
                "coordinator/dialects/pointers.py",
                'return re.sub(r"[^a-z0-9]", "", name.lower())',
                'return name.replace("_", "").replace("-", "").lower()',
            ),
        ),
        (S1, "-k", "s1_a_chat_cannot"),
    ),
    Fault(
        "s1: a tool may name a server",
        (
            (
                "coordinator/dialects/pointers.py",
                "            if nearby is not None and nearby.free and nearby.applies(inner, value):",
                '            if name == "tools" or (nearby is not None and nearby.free and nearby.applies(inner, value)):',
            ),
        ),
        (S1, "-k", "neither_tools"),
    ),
    Fault(
        "s1: only the outer fields of a chat are looked at",
        (
            (
                "coordinator/dialects/pointers.py",
                "                add((inner, (link, name), depth + 1, nearby))",
                "                pass",
            ),
        ),
        (S1, "-k", "at_no_depth"),
    ),
    Fault(
        "s1: all of a tool is its schema",
        (
            (
                "coordinator/dialects/pointers.py",
                '"tools.*.function.parameters", ',
                '"tools.*.function", ',
            ),
        ),
        (S1, "-k", "at_no_depth"),
    ),
    Fault(
        "s1: names in a JSON schema are taken for fields",
        (
            (
                "coordinator/dialects/pointers.py",
                "nearby.free and nearby",
                "False and nearby",
            ),
        ),
        (S1, "-k", "passes_untouched"),
    ),
    Fault(
        "s1: an address stands where a file's id should",
        (
            (
                "coordinator/dialects/pointers.py",
                "refused = any(isinstance",
                "refused = False and any(isinstance",
            ),
        ),
        (S1, "-k", "fetch_for"),
    ),
    Fault(
        "s1: metadata is not looked at",
        (
            (
                "coordinator/dialects/pointers.py",
                "(label and name in _EVERYDAY)",
                "label",
            ),
        ),
        (S1, "-k", "at_no_depth"),
    ),
    Fault(
        "s1: any depth is looked at",
        (("coordinator/dialects/pointers.py", " or depth > _DEEPEST:", ":"),),
        (S1, "-k", "too_deep"),
    ),
    Fault(
        "s1: a model's server fetches for a caller",
        (
            (
                "coordinator/dialects/pointers.py",
                'value.startswith("data:")',
                "bool(value)",
            ),
        ),
        (S1, "-k", "fetch_for"),
    ),
    Fault(
        "s2: redirects are followed",
        (
            (
                "backends/model_http/endpoint.py",
                "allow_redirects=False",
                "allow_redirects=True",
            ),
        ),
        (S, "-k", "s2"),
    ),
    Fault(
        "s3: a name of the internet turns private",
        (
            (
                "backends/openai/resolver.py",
                "            self._public.add(name)",
                "            pass",
            ),
        ),
        (S, "-k", "turn_private"),
    ),
    Fault(
        "s3: a private address beside a public one is called",
        (
            (
                "backends/openai/resolver.py",
                "            return public\n",
                "            return usable\n",
            ),
        ),
        (S, "-k", "one_public"),
    ),
    Fault(
        "s3: one private address keeps a name from being pinned",
        (
            (
                "backends/openai/resolver.py",
                "        if public:",
                "        if public and len(public) == len(found):",
            ),
        ),
        (S, "-k", "one_public"),
    ),
    Fault(
        "s3: another spelling of a name is another name",
        (
            (
                "backends/openai/resolver.py",
                'name = host.lower().removesuffix(".")',
                "name = host",
            ),
        ),
        (S, "-k", "turn_private"),
    ),
    Fault(
        "s3: a name leads to the metadata service",
        (("backends/openai/resolver.py", 'if faults[one["host"]] is None', "if True"),),
        (S, "-k", "no_name_leads or mixed"),
    ),
    Fault(
        "s3: an IPv4 address hides in an IPv6 one",
        (
            (
                "model/network.py",
                'found = embedded(ipaddress.ip_address(address.partition("%")[0]))',
                'found = ipaddress.ip_address(address.partition("%")[0])',
            ),
        ),
        (S, "-k", "no_name_leads"),
    ),
    Fault(
        "s3: the stack looks names up in its own way",
        (("wiring/models.py", "model_session()", "aiohttp.ClientSession()"),),
        (S, "-k", "running_stack"),
    ),
    Fault(
        "s4: numbers are host names",
        (("model/network.py", "if _NUMBER.fullmatch(labels[-1]):", "if False:"),),
        (AD, "-k", "s4_a_base"),
    ),
    Fault(
        "s4: an IPv4 address may be written as IPv6",
        (
            (
                "model/network.py",
                "fault_of(host) or _double_meaning(address)",
                "fault_of(host)",
            ),
        ),
        (AD, "-k", "s4_a_base"),
    ),
    Fault(
        "s4: a model may be at the metadata address",
        (
            (
                "model/network.py",
                "fault_of(host) or _double_meaning(address)",
                "_double_meaning(address)",
            ),
        ),
        (AD, "-k", "s4_a_base"),
    ),
    Fault(
        "s4: a user in a base URL passes",
        (
            ("model/network.py", 'if "@" in authority:', "if False:"),
            (
                ("model/network.py"),
                '[A-Za-z0-9._-]+)"\n    r"(?::(?P<port>',
                '[A-Za-z0-9._@-]+)"\n    r"(?::(?P<port>',
            ),
            (
                "model/network.py",
                "if len(host) > _LONGEST_NAME or not all",
                "if False and not all",
            ),
        ),
        (AD, "-k", "s4"),
    ),
    Fault(
        "s5: a proxy of the environment sees the key",
        (("backends/openai/resolver.py", "trust_env=False", "trust_env=True"),),
        (S, "-k", "own_origin"),
    ),
    Fault(
        "s5: cookies of one provider are kept",
        (
            (
                "backends/openai/resolver.py",
                "aiohttp.DummyCookieJar()",
                "aiohttp.CookieJar(unsafe=True)",
            ),
        ),
        (S, "-k", "own_origin"),
    ),
    Fault(
        "s5: the local model is told the remote key",
        (
            (
                "wiring/models.py",
                'base_url=settings.local_base_url or "",',
                'base_url=settings.local_base_url or "", api_key=settings.remote_api_key.get_secret_value() if settings.remote_api_key else None,',
            ),
        ),
        (S, "-k", "own_origin"),
    ),
    Fault(
        "s3: doctor looks the name up again",
        (
            (
                "cli/doctor.py",
                "socket.create_connection((address, port), _PATIENCE_S)",
                "socket.create_connection((host, port), _PATIENCE_S)",
            ),
        ),
        (S, "-k", "address_that_it_checked"),
    ),
    Fault(
        "s3: doctor takes any certificate",
        (
            (
                "cli/doctor.py",
                "tls = ssl.create_default_context()",
                "tls = ssl._create_unverified_context()",
            ),
        ),
        (S, "-k", "certificate"),
    ),
    Fault(
        "s3: doctor asks for the certificate of an address",
        (
            (
                "cli/doctor.py",
                "server_hostname=host",
                "server_hostname=connection.sock.getpeername()[0]",
            ),
        ),
        (S, "-k", "certificate"),
    ),
)
