"""What every Sandbox promises of the network: models, granted hosts and questions."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.contracts.sandbox_place import (
    Make,
    Place,
    coordinator,
)

from nestor.backends.sandbox import BubblewrapSandbox, LandlockSandbox, NoSandbox
from nestor.backends.sandbox.machine import own_addresses
from nestor.errors import SandboxError
from nestor.model.task import Network
from nestor.ports.sandbox import Answer, Ask, Sandbox, SandboxResult

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("network", [Network.COORDINATOR, Network.FULL])
async def test_the_model_is_reached_with_the_tasks_key_and_trace(
    make: Make, place: Place, network: Network
) -> None:
    program = """
import os, urllib.request
request = urllib.request.Request(
    os.environ["MODEL_URL"] + "/chat/completions", data=b'{"stream": true}',
    headers={"Content-Type": "application/json", "Authorization": "Bearer dummy",
             "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "X-Api-Key": "other"})
print(urllib.request.urlopen(request).read())
"""
    async with coordinator() as (url, seen):
        result = await make(url).run(
            place.run(
                "python3",
                "-c",
                program,
                env={"MODEL_URL": "http://127.0.0.1:8092/v1"},
                network=network,
                task_key="task-secret",
                trace_id=TRACE,
                iteration=4,
            )
        )

    assert result.output == "b'data: one\\n\\ndata: two\\n\\n'\n"
    (request,) = seen
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer task-secret"
    assert request.headers["traceparent"].split("-")[1] == TRACE
    assert request.headers["x-nestor-iteration"] == "4"
    assert not {"Cookie", "X-Forwarded-For", "X-Api-Key"} & set(request.headers)


async def test_the_tasks_key_is_nowhere_the_command_can_look(
    make: Make, place: Place
) -> None:
    line = (
        "env; cat /proc/self/environ /proc/1/environ /proc/$PPID/environ "
        "/proc/[0-9]*/cmdline; ls -lR /run/nestor; cat /run/nestor/*; true"
    )
    result = await make("http://127.0.0.1:9").run(
        place.sh(line, network=Network.COORDINATOR, task_key="task-secret")
    )

    assert "task-secret" not in result.output
    for path in place.home.rglob("*"):
        assert not path.is_file() or b"task-secret" not in path.read_bytes()


@pytest.mark.parametrize("make", [LandlockSandbox, NoSandbox], indirect=True)
async def test_what_opens_the_models_never_stands_in_a_command_line(
    make: Make, place: Place
) -> None:
    """Every user of the machine can read that; a namespace's address opens nothing."""
    sandbox = make("http://127.0.0.1:9")
    url = "http://127.0.0.1:8092/v1"
    given: dict[str, Any] = {"network": Network.COORDINATOR, "task_key": "k"}
    with pytest.raises(SandboxError, match="NESTOR_MODEL_BASE_URL"):
        await sandbox.run(place.sh(f"echo {url}", **given))
    line = "tr '\\0' ' ' </proc/$$/cmdline; echo; echo $MODEL_URL"
    result = await sandbox.run(place.sh(line, env={"MODEL_URL": url}, **given))
    shown, address = result.output.strip().splitlines()[-2:]
    assert "MODEL_URL" in shown
    secret = urlsplit(address).path.removesuffix("/v1")
    assert len(secret) > 20
    assert secret not in shown
    # Without models there is no address to hide.
    assert (await sandbox.run(place.sh(f"echo {url}"))).output.strip() == url


async def test_a_model_that_is_down_is_told_as_502(make: Make, place: Place) -> None:
    line = "curl -s -o /dev/null -w '%{http_code}' $MODEL_URL/models"
    result = await make("http://127.0.0.1:9").run(
        place.sh(
            line,
            env={"MODEL_URL": "http://127.0.0.1:8092/v1"},
            network=Network.COORDINATOR,
            task_key="k",
        )
    )

    assert result.output == "502"


async def test_network_coordinator_without_a_key_is_refused(
    sandbox: Sandbox, place: Place
) -> None:
    with pytest.raises(SandboxError, match="task key"):
        await sandbox.run(place.sh("true", network=Network.COORDINATOR))


PROXIED = """
import http.client, json, os, sys, urllib.parse as u, base64
at = u.urlsplit(os.environ["HTTPS_PROXY"])
login = {"Proxy-Authorization": "Basic " + base64.b64encode(
    f"{at.username}:{at.password}".encode()).decode()} if at.password else {}
for target in json.load(sys.stdin):
    try:
        if target.startswith("http:"):
            c = http.client.HTTPConnection(at.hostname, at.port, timeout=20)
            c.request("GET", target, headers=login)
        else:
            c = http.client.HTTPConnection(at.hostname, at.port, timeout=20)
            name, _, port = target.rpartition(":")
            c.set_tunnel(name, int(port), headers=login)
            c.request("GET", "/v1/models")
        r = c.getresponse()
        print(r.status, r.read())
    except OSError as error:
        print(error)
"""


async def proxied(
    sandbox: Sandbox,
    place: Place,
    *targets: str,
    hosts: Sequence[str],
) -> SandboxResult:
    return await sandbox.run(
        place.run(
            "python3",
            "-c",
            PROXIED,
            stdin=json.dumps(targets).encode(),
            hosts=hosts,
            network=Network.COORDINATOR,
            task_key="k",
        )
    )


async def test_a_granted_host_is_reached_and_no_other(
    isolating: Make, place: Place
) -> None:
    async with coordinator() as (url, seen), coordinator() as (other, unseen):
        port, forbidden = (one.rpartition(":")[2] for one in (url, other))
        result = await proxied(
            isolating(url, private_hosts=["127.0.0.1/32"]),
            place,
            f"LOCALHOST:{port}",
            f"localhost:{forbidden}",
            f"http://localhost:{port}/v1/models",
            "pypi.invalid:443",
            "http://plain.invalid/a",
            "pypi.invalid:443",
            hosts=[f"LocalHost:{port}"],
        )

    granted, *refused = result.output.splitlines()
    assert granted == "200 b'data: one\\n\\ndata: two\\n\\n'"
    assert all("403" in line for line in refused), refused
    assert len(refused) == 5
    assert len(seen) == 1
    assert seen[0].headers.get("Authorization") is None, "no key leaves with it"
    assert unseen == []
    assert result.refused == [
        f"host localhost:{forbidden}",
        f"plain http to localhost:{port}: only https:// can be granted",
        "host pypi.invalid:443",
        "plain http to plain.invalid:80: only https:// can be granted",
    ]


async def test_a_grant_of_a_private_address_leads_nowhere(
    isolating: Make, place: Place
) -> None:
    """Whoever answers for a granted name must not get into this machine by it."""
    async with coordinator() as (url, seen):
        port = url.rpartition(":")[2]
        names = ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
                 "127.1", "2130706433", "0x7f.1", *own_addresses()[:1],
                 "169.254.169.254", "100.100.100.200", "10.0.0.1", "100.64.0.1"]  # fmt: skip
        targets = [f"{name}:{port}" for name in names]
        result = await proxied(isolating(url), place, *targets, hosts=targets)

    lines = result.output.splitlines()
    assert len(lines) == len(targets), result.output
    assert all("403" in line or "502" in line for line in lines), lines
    assert seen == []
    assert all(text.startswith("address ") for text in result.refused), result.refused


async def test_what_is_remembered_of_refusals_is_bounded_and_printable(
    isolating: Make, place: Place
) -> None:
    program = """
import os, socket, urllib.parse as u
at = u.urlsplit(os.environ["http_proxy"])
model = u.urlsplit(os.environ["MODEL_URL"])
def send(to, line):
    with socket.create_connection((to.hostname, to.port)) as s:
        s.sendall(line + b"\\r\\nHost: x\\r\\n\\r\\n")
        s.settimeout(5)
        while s.recv(4096): pass
send(model, b"DELETE " + model.path.encode() + b"/files?" + b"x" * 500 + b" HTTP/1.0")
import base64
login = b"" if not at.password else b"\\r\\nProxy-Authorization: Basic " + base64.b64encode(
    f"{at.username}:{at.password}".encode())
send(at, b"GET http://a\\x1b[31m\\xff.invalid/ HTTP/1.0" + login)
for n in range(70):
    send(at, b"CONNECT h%d.invalid:1 HTTP/1.0" % n + login)
"""
    result = await isolating("http://127.0.0.1:9").run(
        place.run(
            "python3",
            "-c",
            program,
            env={"MODEL_URL": "http://127.0.0.1:8092/v1"},
            network=Network.COORDINATOR,
            task_key="k",
        )
    )

    assert result.exit_code == 0, result.output
    assert len(result.refused) == 50
    assert result.refused[0].startswith("request DELETE /v1/files?xxx")
    assert all(text.isprintable() and len(text) <= 200 for text in result.refused)
    assert "host h40.invalid:1" in result.refused


async def test_the_variables_of_a_proxy_are_there_where_a_proxy_is(
    isolating: Make, place: Place
) -> None:
    for network in (Network.COORDINATOR, Network.NONE):
        result = await isolating("http://127.0.0.1:9").run(
            place.sh(
                "env | grep -i ^https*_proxy= | sort; echo $NO_PROXY",
                network=network,
                task_key="k",
            )
        )
        *rows, local = result.output.splitlines()
        expected = ["HTTPS_PROXY", "HTTP_PROXY", "http_proxy", "https_proxy"]
        names = sorted(row.partition("=")[0] for row in rows)
        assert names == (expected if network is Network.COORDINATOR else [])
        assert local == ("127.0.0.1,localhost" if names else "")


ASKING = """
import json, os, sys, threading, urllib.error, urllib.request
def ask(body):
    url = os.environ["MODEL_URL"].removesuffix("/v1") + "/nestor/ask"
    request = urllib.request.Request(url, data=body.encode(), method="POST")
    try:
        return urllib.request.urlopen(request, timeout=30).read().decode()
    except urllib.error.HTTPError as error:
        return str(error.code)
"""


async def asked(
    sandbox: Sandbox,
    place: Place,
    program: str,
    answer: Callable[[Ask], Awaitable[Answer]] | None,
) -> list[str]:
    result = await sandbox.run(
        place.run(
            "python3",
            "-c",
            ASKING + program,
            env={"MODEL_URL": "http://127.0.0.1:8092/v1"},
            network=Network.COORDINATOR,
            task_key="k",
            ask=answer,
        )
    )
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


async def test_a_question_from_inside_is_answered(make: Make, place: Place) -> None:
    heard: list[Ask] = []

    async def answer(question: Ask) -> Answer:
        heard.append(question)
        await asyncio.sleep(0.5)
        return Answer(approved=[True, False, None][len(heard) - 1], note="n")

    program = """
good = json.dumps({"kind": "command", "subject": "rm -rf x", "why": "old"})
for body in [good] * 3:
    print(ask(body))
for bad in ("", "[]", "{}", json.dumps({"kind": "start", "subject": "x"}),
            json.dumps({"kind": "command", "subject": " "}),
            json.dumps({"kind": "host", "subject": "a", "role": "admin"}),
            json.dumps({"kind": "command", "subject": "x" * 20000})):
    print(ask(bad))
"""
    said = await asked(make("http://127.0.0.1:9"), place, program, answer)

    assert said[:3] == [
        f'{{"approved":{word},"note":"n"}}' for word in ("true", "false", "null")
    ]
    assert said[3:] == ["400"] * 6 + ["413"]
    assert heard == [Ask(kind="command", subject="rm -rf x", why="old")] * 3


async def test_questions_are_asked_one_at_a_time_and_not_without_end(
    make: Make,
    place: Place,
) -> None:
    waiting = asyncio.Event()

    async def answer(question: Ask) -> Answer:
        if question.subject == "slow":
            waiting.set()
            await asyncio.sleep(1.5)
        return Answer(approved=True)

    program = """
import time
def body(subject): return json.dumps({"kind": "path", "subject": subject})
slow = threading.Thread(target=lambda: print(ask(body("slow")), flush=True))
slow.start(); time.sleep(0.7)
print(ask(body("second"))); slow.join()
print(sum(ask(body("more")) != "429" for _ in range(110)))
"""
    said = await asked(make("http://127.0.0.1:9"), place, program, answer)

    assert said == ["429", '{"approved":true,"note":""}', "99"]
    assert waiting.is_set()


async def test_without_anybody_to_answer_a_question_is_refused(
    make: Make,
    place: Place,
) -> None:
    program = """print(ask(json.dumps({"kind": "command", "subject": "x"})))"""
    assert await asked(make("http://127.0.0.1:9"), place, program, None) == ["403"]


ROUTES = """
import errno, json, socket, subprocess, sys
for address in json.load(sys.stdin):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # No packet is sent: only the way is looked for.
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try:
            s.connect((address, 9))
            print(address, "way")
        except OSError as error:
            print(address, errno.errorcode[error.errno])
take_back = '''
import socket, struct
body = struct.pack("=BBBBBBBBI", 2, 8, 0, 0, 254, 0, 0, 0, 0)
body += struct.pack("=HH4s", 8, 1, bytes([10, 0, 0, 0]))
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
    s.bind((0, 0))
    s.sendall(struct.pack("=IHHII", 16 + len(body), 25, 5, 1, 0) + body)
    print("deleted", struct.unpack_from("=i", s.recv(4096), 16)[0])
'''
for argv in (["python3"], ["unshare", "-Ur", "python3"]):
    print(subprocess.run([*argv, "-c", take_back], capture_output=True, text=True).stdout.strip())
"""


async def test_network_full_has_no_way_to_private_networks(place: Place) -> None:
    barred = ["10.0.0.1", "172.16.0.1", "172.31.255.1", "192.168.1.1", "100.64.0.1",
              "169.254.169.254", "10.8.0.1", "fd00::1", "::ffff:10.0.0.1",
              *(a for a in own_addresses() if ":" not in a)]  # fmt: skip
    ways = ["1.1.1.1", "172.32.0.1", "10.9.3.4"]
    sandbox = BubblewrapSandbox(
        coordinator_url="http://127.0.0.1:9",
        home=place.home,
        private_hosts=["10.9.0.0/16"],
    )
    result = await sandbox.run(
        place.run(
            "python3",
            "-c",
            ROUTES,
            stdin=json.dumps([*barred, *ways]).encode(),
            network=Network.FULL,
        )
    )

    rows = [line.split() for line in result.output.splitlines()]
    found = {row[0]: row[1] for row in rows[: len(barred + ways)]}
    assert {one for one, said in found.items() if said == "way"} == set(ways)
    assert set(found) == {*barred, *ways}
    # EPERM: whoever may not set routes cannot take these back, nor root of a new namespace.
    assert rows[len(barred + ways) :] == [["deleted", "-1"]] * 2
