"""Addresses in settings: each leads to one place, whoever reads it."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import BlockingConnectionPool
from sqlalchemy import make_url
from yarl import URL

from nestor.errors import Misconfigured
from nestor.model import network
from nestor.settings import Settings

PASSWORD = "fQ8zB1nV0sT4yL7wKcR2"


def taken(**values: Any) -> Settings:
    return Settings.load(**values)


def refused(**values: Any) -> str:
    with pytest.raises(Misconfigured) as caught:
        Settings.load(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        *("http://nestor.lan", "nestor.lan/", "*", "*.lan", "a b", "user@nestor.lan"),
        *("0.0.0.0", "::", "127.1", "nestor.lan:0", "nestor.lan:65536", "a:b", "[::1"),
    ],
)
def test_an_allowed_host_is_a_name_and_nothing_else(entry: str) -> None:
    said = refused(allowed_hosts=f"good.lan,{entry}")
    assert said.startswith("NESTOR_ALLOWED_HOSTS: ")
    assert repr(entry) in said


def test_allowed_hosts_are_kept_as_they_are_compared() -> None:
    given_ = "Nestor.LAN, proxy.lan:8443 ,FD00:0::2,[fd00::3]:80,10.0.0.1"
    assert taken(allowed_hosts=given_).allowed_hosts == [
        *("nestor.lan", "proxy.lan:8443", "[fd00::2]", "[fd00::3]:80", "10.0.0.1"),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        *("0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "::ffff:0:0/96", "::/64"),
        *("proxy.lan", "10.0.0.1/8", "10.0.0", "*", "10.0.0.0/33", "fe80::1%eth0/64"),
    ],
)
def test_a_trusted_proxy_is_an_address_or_a_network_but_not_everybody(
    entry: str,
) -> None:
    said = refused(trusted_proxies=f"10.0.0.1,{entry}")
    assert said.startswith("NESTOR_TRUSTED_PROXIES")
    assert repr(entry) in said


def test_trusted_proxies_are_kept_in_their_usual_form() -> None:
    given_ = "10.0.0.0/8, 192.0.2.7,FD00:0::1"
    found = taken(trusted_proxies=given_).trusted_proxies
    assert found == ["10.0.0.0/8", "192.0.2.7", "fd00::1"]


@pytest.mark.parametrize(
    "url",
    [
        *("http://:PASS@h", "h:6379", "redis://", "redis:///0", "redis://:PASS@"),
        *("redis://h:99999", "redis://:PASS@h:0/0", "redis://u:PASS", "unix://"),
        "redis://:PASS@h:port",
        *("redis://:PASS@h/x", "redis://h/1/2", "redis://h/ 0", "redis://[::1"),
        *("redis://:PASS@h/0?db=x", "redis://h?db=-1", "REDIS://h", "redis:h", "127.1"),
        *("unix://host/path", "unix:///", "redis://:a#PASS@h", "redis://h/0#PASS"),
        *("rediss://:PASS@h?ssl_cert_reqs=none", "redis://h?ssl_ca_certs=/ca.pem"),
        *(
            "redis://:PASS@h?socket_timeout=99",
            "unix:///s?password=PASS",
            "redis://h?x",
        ),
    ],
)
def test_a_redis_url_names_a_server(url: str) -> None:
    said = refused(redis_url=url.replace("PASS", PASSWORD))
    assert said.startswith("NESTOR_REDIS_URL: ")
    assert PASSWORD not in said
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says was held above
        network.refuse_redis_url(url.replace("PASS", PASSWORD))
    assert caught.value.__cause__ is None


def test_redis_urls_that_work_are_taken_and_passwords_never_shown() -> None:
    for url in (
        "redis://h",
        f"rediss://u:{PASSWORD}@h:6380/1",
        "unix:///run/redis.sock",
        f"unix://u:{PASSWORD}@/run/redis.sock?db=2",
        "redis://[::1]:6379?db=3",
        "rediss://h/0?ssl_ca_certs=/etc/ca.pem",
    ):
        taken(redis_url=url)
        BlockingConnectionPool.from_url(url)  # the driver reads it too


@pytest.mark.parametrize(
    "url",
    [
        *("nestor.db", "mysql://u:PASS@h/x", "sqlite://", "POSTGRESQL://u:PASS@h/x"),
        *("postgresql:u:PASS@h", "postgresql+psycopg://u:PASS@h/x", "postgresql://h"),
        *("postgresql://u:PASS@h/", "postgresql://u:PASS@h/a/b", "postgresql:///x"),
        *("postgresql://u:PASS@/x", "postgresql://u:PASS@h:0/x", "postgresql://[::1/x"),
        *("postgresql://u:PASS@h:99999/x", "postgresql://u:PASS@h:port/x"),
        *("postgresql://u:a@PASS@h/x", "postgresql://u:a#PASS@h/x"),
        *("postgresql://u:a/PASS@h/x", "postgresql://u:a?PASS@h/x"),
        *("postgresql://u:PASS@a,b/x", "postgresql://u:a PASS@h/x"),
        *("postgresql://u:a\\PASS@h/x", "postgresql://u:PASS@h/x?password=PASS"),
        *("postgresql://u@h/x?options=-c%20a", "postgresql://u@h/x?connect_timeout=0"),
        *("postgresql://u@h/x?host=/run", "postgresql://u@/x?host=other"),
        *("postgresql://u@/x?host=/a&host=/b", "postgresql://u@h/x?sslmode"),
    ],
)
def test_a_database_url_names_a_file_or_a_server(url: str) -> None:
    said = refused(database_url=url.replace("PASS", PASSWORD))
    assert said.startswith("NESTOR_DATABASE_URL: ")
    assert PASSWORD not in said
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says was held above
        network.refuse_database_url(url.replace("PASS", PASSWORD))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "host", "shown"),
    [
        ("postgresql://h/x", "h", "postgresql://h/x"),
        ("postgres://u:PASS@h:5433/x", "h", "postgresql://u:***@h:5433/x"),
        ("postgresql://u:PASS@[::1]/x", "::1", "postgresql://u:***@[::1]/x"),
        ("postgresql://u%40a:PASS@h/x", "h", "postgresql://u%40a:***@h/x"),
        (
            "postgresql://u:PASS@:5433/x?host=/run/postgresql",
            None,
            "postgresql://u:***@:5433/x?host=/run/postgresql",
        ),
        (
            "postgresql://u:PASS@h/x?sslmode=verify-full&sslrootcert=/ca.pem",
            "h",
            "postgresql://u:***@h/x?sslmode=verify-full&sslrootcert=/ca.pem",
        ),
    ],
)
def test_database_urls_that_work_are_taken_and_passwords_never_shown(
    url: str, host: str | None, shown: str
) -> None:
    settings = taken(database_url=url.replace("PASS", f"{PASSWORD}%40%23"))
    assert PASSWORD not in repr(settings)
    read = make_url(settings.database)  # the driver reads it too
    assert (read.drivername, read.host, read.database) == ("postgresql", host, "x")
    if "PASS" in url:
        assert read.password == f"{PASSWORD}@#"
    assert network.without_password(settings.database) == shown


ODD_URLS = {
    "http://2130706433/v1": "2130706433",
    "http://0x7f.1/v1": "0x7f.1",
    "http://0x7f000001/v1": "0x7f000001",
    "http://127.1/v1": "127.1",
    "http://0177.0.0.1/v1": "0177.0.0.1",
    "http://127.0.0.1./v1": "127.0.0.1.",
    "http://127.0.0.1.0x1/v1": "0x1",
    "http://[::ffff:127.0.0.1]/v1": "127.0.0.1",
    "http://[::ffff:7f00:1]/v1": "127.0.0.1",
    "http://[::127.0.0.1]/v1": "::127.0.0.1",
    "http://[64:ff9b::7f00:1]/v1": "127.0.0.1",
    "http://[2002:7f00:1::]/v1": "127.0.0.1",
    "http://[127.0.0.1]/v1": "[127.0.0.1]",
    "http://[fe80::1%25eth0]/v1": "fe80::1%25eth0",
    "http://169.254.169.254/v1": "169.254.169.254",
    "http://169.254.1.1/v1": "169.254.1.1",
    "http://[fd00:ec2::254]/v1": "fd00:ec2::254",
    "http://[fe80::1]/v1": "fe80::1",
    "http://0.0.0.0/v1": "0.0.0.0",
    "http://[::]/v1": "'::'",
    "http://224.0.0.1/v1": "224.0.0.1",
    "http://user@host/v1": "'@'",
    "http://user:hunter22@host/v1": "'@'",
    "http://good.example@127.0.0.1/v1": "'@'",
    "http://127.0.0.1\\@good.example/v1": "backslash",
    "http://good.example\\.evil/v1": "backslash",
    "http://good.example /v1": "' '",
    "http://good.example\t/v1": "control",
    "http://good.example\r\nX: y/v1": "control",
    "http://good.example#@evil/v1": "'@'",
    "http://good.example/v1#x": "'#'",
    "http://good.example/v1?x=1": "'?'",
    "http://good.example:80:90/v1": "80:90",
    "http://good.example:0/v1": ":0",
    "http://good.example:99999/v1": "99999",
    "http://%31%32%37.0.0.1/v1": "%31",
    "http://\u217027.0.0.1/v1": "ASCII",
    "http://127。0。0。1/v1": "ASCII",
    "http:///v1": "''",
    "http:/good.example/v1": "http(s)://",
    "//good.example/v1": "http(s)://",
    "good.example/v1": "http(s)://",
    "file:///etc/passwd": "'file'",
    "gopher://127.0.0.1:6379/_x": "'gopher'",
    "unix:///run/model.sock": "'unix'",
    "unix:/run/model.sock": "http(s)://",
    "http+unix://run/model.sock": "'http+unix'",
}


@pytest.mark.parametrize("side", ["local", "remote"])
@pytest.mark.parametrize(("url", "part"), ODD_URLS.items())
def test_s4_a_base_url_that_can_be_read_in_two_ways_is_refused(
    side: str, url: str, part: str
) -> None:
    said = refused(**{f"{side}_model": "m", f"{side}_base_url": url})
    assert said.startswith(f"NESTOR_{side.upper()}_BASE_URL: "), said
    assert part in said
    assert "hunter22" not in said


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:11434/v1", "http://[::1]:8080/v1", "http://10.1.2.3/v1"),
        *("https://api.example.com/v1", "http://host.docker.internal:11434/v1/"),
        *("http://vllm", "http://my_model:8000/v1", "http://[fd00::2]:8000/v1"),
        *("http://localhost:8080/a/b:c@d/v1", "http://192.168.1.5.nip.io/v1"),
    ],
)
def test_models_on_this_machine_and_its_networks_are_fine(url: str) -> None:
    settings = taken(local_model="m", local_base_url=url)
    assert settings.local_base_url == url


@given(
    st.one_of(
        st.from_regex(r"https?://[ -~]{1,30}", fullmatch=True),
        st.text(alphabet="htps:/@[].%\\?#0x127afZ-", max_size=40).map(
            "http://".__add__
        ),
        st.ip_addresses(v=4).map("http://{}/v1".format),
        st.ip_addresses(v=6).map("http://[{}]:8/v1".format),
    )
)
def test_s4_two_parsers_agree_on_every_url_that_is_taken(url: str) -> None:
    try:
        network.base_url(url)
    except ValueError:
        return
    parts, other = urlsplit(url), URL(url)
    assert other.host is not None
    assert parts.hostname == other.host.lower()
    assert (parts.port or other.port, parts.username) == (other.port, other.user)
    assert other.user is other.password is None


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("index.example", "not an address or a network"),
        ("10.0.0.1/8", "host bits"),
        ("0.0.0.0/1", "good part of the internet"),
        ("169.254.169.254", "link-local"),
        ("100.100.100.200", "metadata"),
        ("::ffff:10.0.0.0/104", "as IPv4"),
    ],
)
def test_a_private_host_of_sandboxes_is_an_address_that_hands_out_no_credentials(
    entry: str, why: str
) -> None:
    said = refused(sandbox_private_hosts=f"10.0.0.1,{entry}")
    assert "NESTOR_SANDBOX_PRIVATE_HOSTS" in said
    assert why in said


def test_private_hosts_of_sandboxes_are_kept_as_networks() -> None:
    found = taken(sandbox_private_hosts="10.0.0.1, fd00::/8").sandbox_private_hosts
    assert found == ["10.0.0.1/32", "fd00::/8"]
