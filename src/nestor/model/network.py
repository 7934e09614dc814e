"""Addresses: which may be bound, named, trusted and called.

Every check raises ``ValueError`` that quotes what is wrong and says what to write instead.
A URL is read once and strictly here, so that no two parsers can disagree on where it leads.
"""

import ipaddress
import re
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
)
_ALLOWED_HOST = re.compile(
    r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_LONGEST_NAME = 253
_LARGEST_PORT = 65535
_WIDEST_TRUST = 8
"""A shorter network prefix would trust a good part of the internet."""
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_RESERVED = ipaddress.IPv4Network("240.0.0.0/4")
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254")
)
"""Where clouds hand out credentials, beside the link-local 169.254.169.254."""
_REDIS = {
    "redis": {"db"},
    "rediss": {"db", "ssl_ca_certs"},
    "unix": {"db"},
}
"""The options of each scheme. Those that weaken TLS or change how long to wait are none."""
_POSTGRESQL = frozenset({"postgresql", "postgres"})
_POSTGRESQL_OPTIONS = frozenset({"host", "sslmode", "sslrootcert", "sslcert", "sslkey"})
"""Those that change how long to wait, or what a session does, are none."""


def bindable(host: str) -> str:
    """Return ``host``; refuse what cannot be bound, and spellings that name another address than they seem to.

    A name passes: whether it resolves shows when it is bound.
    """
    if "%" in host:
        raise ValueError(f"{host!r}: an address with a zone cannot be used in a URL")
    address = _literal(host.removeprefix("[").removesuffix("]"))
    if address is None:
        _refuse_name(host)
    elif "[" in host:
        raise ValueError(f"{host!r}: write the address without brackets")
    elif isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise ValueError(f"{host!r}: write {address.ipv4_mapped}")
    elif address.is_multicast:
        raise ValueError(f"{host!r} is a multicast address")
    return host


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches what is bound there. Of names: ``localhost``."""
    if host.lower() == "localhost":
        return True
    address = _literal(host)
    return address is not None and address.is_loopback


def is_everywhere(host: str) -> bool:
    """Tell whether ``host`` means every address of this machine (``0.0.0.0``, ``::``)."""
    address = _literal(host)
    return address is not None and address.is_unspecified


def reached_at(host: str) -> str:
    """Return where programs of this machine reach what is bound to ``host``."""
    if not is_everywhere(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


def in_url(host: str) -> str:
    """Write an address as it stands in a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def allowed_host(entry: str) -> str:
    """Return a name that a Host header may carry, as it is compared: ``name`` or ``name:port``."""
    text = entry.strip().lower()
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    match = _ALLOWED_HOST.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{entry!r} is not a host name: write name or name:port,"
            " without scheme, path or wildcard"
        )
    name, port = match["name"], match["port"]
    address = _literal(name.strip("[]"))
    if address is None:
        _refuse_name(name)
    elif address.is_unspecified:
        raise ValueError(f"{entry!r}: nobody can be called by that address")
    else:
        name = in_url(str(address))
    _refuse_port(port, entry)
    return f"{name}:{port}" if port else name


def trusted_proxy(entry: str) -> str:
    """Return the address or network of a reverse proxy, in its usual form."""
    try:
        network = ipaddress.ip_network(entry)
    except ValueError as error:
        message = f"{entry!r} is not an address or a network like 10.0.0.0/8 ({error})"
        raise ValueError(message) from error
    if network.prefixlen < _WIDEST_TRUST:
        raise ValueError(
            f"{entry!r} would trust everybody's word for where a request comes from:"
            " name the proxy's own address"
        )
    if isinstance(network, ipaddress.IPv6Network) and network.overlaps(_MAPPED):
        raise ValueError(f"{entry!r}: write the IPv4 addresses in it as IPv4")
    return str(network.network_address if network.num_addresses == 1 else network)


def private_host(entry: str) -> str:
    """Return an address or a network that sandboxes may reach though it is private, with its length."""
    try:
        named = ipaddress.ip_network(entry)
    except ValueError as error:
        message = f"{entry!r} is not an address or a network like 10.0.0.0/8 ({error})"
        raise ValueError(message) from error
    if named.prefixlen < _WIDEST_TRUST:
        raise ValueError(f"{entry!r} is a good part of the internet; name less")
    if isinstance(named, ipaddress.IPv6Network) and named.overlaps(_MAPPED):
        raise ValueError(f"{entry!r}: write the IPv4 addresses in it as IPv4")
    if fault := fault_of(str(named.network_address)):
        raise ValueError(f"{entry!r} {fault}")
    return str(named)


def refuse_redis_url(url: str) -> None:
    """Hold ``redis(s)://HOST[:PORT][/DB]`` or ``unix:///PATH``; never quotes the password."""
    if any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError("holds a space or a control character")
    scheme = url.partition("://")[0]
    if scheme not in _REDIS or "://" not in url:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        port = parts.port
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        # Not chained: what stands in the port's place may be a password.
        message = (
            "cannot be read; write %XX for signs in a password, 1 to 65535 as port"
        )
        raise ValueError(message) from None
    if port == 0:
        raise ValueError(f"the port must be 1 to {_LARGEST_PORT}")
    _refuse_redis_parts(scheme, parts, options)


def _refuse_redis_parts(
    scheme: str, parts: SplitResult, options: dict[str, list[str]]
) -> None:
    if parts.fragment:
        raise ValueError("holds a fragment; write %23 for '#' in a password")
    databases = options.get("db", [])
    if scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            raise ValueError("names no socket of this machine; write unix:///PATH")
    elif not parts.hostname:
        raise ValueError("names no host; write redis://HOST:PORT/DB")
    else:
        databases = [*databases, parts.path.strip("/") or "0"]
    if options.keys() - _REDIS[scheme]:
        known = ", ".join(sorted(_REDIS[scheme]))
        raise ValueError(f"holds an option beside those of {scheme}://: {known}")
    for database in databases:
        if not (database.isascii() and database.isdecimal()):
            message = "the database must be a number, as in redis://HOST:PORT/0"
            raise ValueError(message)


def refuse_database_url(url: str) -> None:
    """Hold ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``.

    A socket of this machine: ``postgresql://USER@/DATABASE?host=/FOLDER``. Never quotes
    the password.
    """
    if url.startswith("sqlite:///"):
        return
    if any(c.isspace() or not c.isprintable() or c == "\\" for c in url):
        raise ValueError("holds a space, a backslash or a control character")
    scheme = url.partition(":")[0]
    if scheme.partition("+")[0] not in _POSTGRESQL:
        raise ValueError(
            "not a database that Nestor can use; use sqlite:///PATH or postgresql://…"
        )
    if scheme not in _POSTGRESQL or not url.startswith(f"{scheme}://"):
        raise ValueError("write postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    try:
        parts = urlsplit(url)
        port = parts.port
        options = parse_qs(
            parts.query, strict_parsing=bool(parts.query), keep_blank_values=True
        )
    except ValueError:
        # Not chained: what stands in the port's place may be a password.
        message = (
            "cannot be read; write %XX for signs in a password, 1 to 65535 as port"
        )
        raise ValueError(message) from None
    if port == 0:
        raise ValueError(f"the port must be 1 to {_LARGEST_PORT}")
    _refuse_postgresql_parts(parts, options)


def _refuse_postgresql_parts(parts: SplitResult, options: dict[str, list[str]]) -> None:
    if parts.fragment:
        raise ValueError("holds a fragment; write %23 for '#' in a password")
    if parts.netloc.count("@") > 1:
        raise ValueError("holds two '@'; write %40 for '@' in a password")
    if parts.hostname and any(sign in parts.hostname for sign in ",%"):
        raise ValueError("names several hosts, or an odd one; name one")
    if not re.fullmatch(r"/[^/]+", parts.path):
        raise ValueError("names no database; write postgresql://…/DATABASE")
    if options.keys() - _POSTGRESQL_OPTIONS:
        known = ", ".join(sorted(_POSTGRESQL_OPTIONS))
        raise ValueError(f"holds an option beside those that Nestor knows: {known}")
    if any(len(values) > 1 for values in options.values()):
        raise ValueError("holds an option twice")
    folder = options.get("host", [""])[0]
    if "host" in options and (parts.hostname or not folder.startswith("/")):
        raise ValueError(
            "host= is for the folder of a socket: postgresql://USER@/DATABASE?host=/FOLDER"
        )
    if not parts.hostname and not folder:
        raise ValueError(
            "names no host; write postgresql://USER:PASSWORD@HOST/DATABASE"
        )


def database_url(url: str) -> str:
    """Return a URL that ``refuse_database_url`` lets through as it is opened."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql://{rest}" if separator and scheme in _POSTGRESQL else url


def without_password(url: str) -> str:
    """Return a URL for people: a password in it becomes stars."""
    if password_in(url) is None:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:***@{host}").geturl()


def password_in(url: str) -> str | None:
    """Return the password that a URL carries, decoded; None without one."""
    try:
        found = urlsplit(url).password
    except ValueError:
        return None
    return None if found is None else unquote(found)


def base_url(url: str) -> str:
    """Return ``url``; hold the address of a model server to ``http(s)://HOST[:PORT][/PATH]``.

    Private and loopback addresses are fine: people run models there. What is refused are
    link-local and metadata addresses, and every spelling that parsers read in two ways.
    """
    _refuse_odd_characters(url)
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"http", "https"}:
        kind = f"{scheme!r} is" if separator else "that is"
        raise ValueError(f"{kind} not served; it must be http(s)://HOST/…")
    authority = rest.partition("/")[0]
    if "@" in authority:
        # Not quoted: what stands there may be a password.
        raise ValueError(
            "holds a user or a password before '@'; use the API key setting"
        )
    for sign, what in (("?", "query"), ("#", "fragment")):
        if sign in url:
            raise ValueError(f"holds a {what} ({sign!r}); end it with the path")
    match = _URL.fullmatch(url)
    if match is None:
        bad = authority if _URL.fullmatch(f"{scheme}://{authority}") is None else rest
        raise ValueError(f"{bad!r} is not HOST, HOST:PORT or HOST:PORT/PATH")
    _refuse_port(match["port"], authority)
    host = match["host"].strip("[]").lower()
    address = _literal(host)
    bracketed = isinstance(address, ipaddress.IPv6Address)
    if address is None or bracketed != ("[" in authority):
        _refuse_name(match["host"])
    elif fault := fault_of(host) or _double_meaning(address):
        raise ValueError(f"{host!r} {fault}")
    return url


def fault_of(address: str) -> str | None:
    """Say why no model can be at an IP address; None when one can.

    An IPv4 address inside an IPv6 one counts as itself.
    """
    found = embedded(ipaddress.ip_address(address.partition("%")[0]))
    if found in _METADATA:
        return "is the metadata service of a cloud, which hands out credentials"
    if found.is_link_local:
        return "is a link-local address, where clouds hand out credentials"
    if found.is_unspecified or found in _THIS_NETWORK:
        return "is no address of a server"
    if found.is_multicast or found in _RESERVED:
        return "is a multicast or reserved address"
    return None


def is_public(address: str) -> bool:
    """Tell whether an address belongs to the internet, not to this machine or its networks."""
    return embedded(ipaddress.ip_address(address.partition("%")[0])).is_global


def embedded(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one carries (mapped, 6to4, NAT64), else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _double_meaning(address: Address) -> str | None:
    """Refuse IPv6 spellings of IPv4 addresses: filters that look for one miss the other."""
    other = embedded(address)
    if other != address:
        return f"hides an IPv4 address; write {other}"
    if isinstance(address, ipaddress.IPv6Address) and 1 < int(address) < 1 << 32:
        return "hides an IPv4 address; write that one"
    return None


def _refuse_name(host: str) -> None:
    """Refuse what is no host name, above all numbers that resolvers take for addresses."""
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        message = f"{host!r} is an odd way to write an address; write it like 127.0.0.1"
        raise ValueError(message)
    if len(host) > _LONGEST_NAME or not all(_LABEL.fullmatch(one) for one in labels):
        raise ValueError(f"{host!r} is neither an address nor a host name")


def _refuse_port(port: str | None, where: str) -> None:
    if port is not None and not 0 < int(port) <= _LARGEST_PORT:
        raise ValueError(f"{where!r}: the port must be 1 to {_LARGEST_PORT}")


def _refuse_odd_characters(url: str) -> None:
    for character in url:
        if character.isspace() or not character.isprintable():
            raise ValueError(f"holds a space or a control character ({character!r})")
        if character == "\\":
            raise ValueError("holds a backslash, which programs read in two ways")
        if not character.isascii():
            message = f"holds {character!r}; write names in their ASCII form (xn--…)"
            raise ValueError(message)
