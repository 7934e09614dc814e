"""Attack T7: from inside the sandbox nothing is reached but the model API.

Each attack asserts the answer inside *and* that there was no effect outside. The attacks
are such that they harm nobody when a guard is missing: a setting of the kernel is
written back with its own value, files are made under names of this test alone.
"""

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nestor.backends.sandbox import BubblewrapSandbox
from nestor.backends.sandbox.forwarder import BODY_BYTES, Forwarder
from nestor.model.task import Network
from nestor.ports.sandbox import Mount, SandboxResult, SandboxRun

KEY = "nestor-task-key-of-this-task"
CANARY = "canary-4f9d2c"


class Upstream:
    """A Coordinator that counts what arrives, and would answer anything."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.closed = asyncio.Event()
        self.endless = False

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.raw_path, headers))
        await request.read()
        if not self.endless:
            return web.Response(
                status=self.status, headers=self.headers, text=f"reached {CANARY}"
            )
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            # Then silence: nothing but the agent's leaving can end it.
            await response.write(b"x" * 4000)
            await asyncio.sleep(60)
        finally:
            self.closed.set()
        return response


@asynccontextmanager
async def serving(upstream: Upstream) -> AsyncIterator[str]:
    server = web.Server(upstream.answer, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Inside:
    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.task = home / "tasks" / "t1"
        self.tree = self.task / "tree"
        self.tree.mkdir(parents=True)
        self.sandbox = BubblewrapSandbox(coordinator_url=url, home=home)

    async def run(self, *argv: str, **more: Any) -> SandboxResult:
        mount = Mount(host=self.tree, inside="/workspace", writable=True)
        values: dict[str, Any] = {
            "name": "t1",
            "argv": argv,
            "cwd": "/workspace",
            "mounts": [mount],
            "timeout_s": 30,
            "run_dir": self.task / "run",
            "network": Network.COORDINATOR,
            "task_key": KEY,
        }
        return await self.sandbox.run(SandboxRun(**(values | more)))

    async def sh(self, line: str, **more: Any) -> str:
        return (await self.run("/bin/sh", "-c", line, **more)).output

    async def python(self, program: str, **more: Any) -> str:
        return (await self.run("python3", "-c", program, **more)).output


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def inside(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Inside]:
    async with serving(upstream) as url:
        yield Inside(tmp_path / "home", url)


SEND = """
import json, socket, sys
for raw in json.loads(sys.stdin.read()):
    s = socket.create_connection(("127.0.0.1", 8092))
    s.settimeout(5)
    s.sendall(raw.encode("latin-1"))
    data = b""
    try:
        while part := s.recv(65536):
            data += part
    except (TimeoutError, ConnectionError):
        pass
    print(data.split(b"\\r\\n")[0].decode("latin-1"), flush=True)
"""


async def send(inside: Inside, *requests: str) -> list[str]:
    """Send raw bytes to the bridge; returns each answer's status."""
    done = await inside.run("python3", "-c", SEND, stdin=json.dumps(requests).encode())
    lines = done.output.splitlines()
    assert len(lines) == len(requests), done.output
    return [line.split(" ")[1] if " " in line else "closed" for line in lines]


def request(method: str, target: str, *headers: str, body: str = "") -> str:
    head = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1:8092", "Connection: close"]
    head += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*head, *headers, "", body])


async def test_the_model_api_itself_is_reached(
    inside: Inside, upstream: Upstream
) -> None:
    statuses = await send(
        inside,
        request("GET", "/v1/models"),
        *(
            request("POST", f"/v1/{name}", body="{}")
            for name in ("chat/completions", "messages", "responses", "embeddings")
        ),
        request("POST", "/v1/messages?beta=true", body="{}"),
    )

    assert statuses == ["200"] * 6
    assert upstream.seen[-1][1] == "/v1/messages?beta=true"


TARGETS = [
    "/", "/keys", "/route", "/feedback", "/stats", "/metrics", "/health/detailed",
    "/v1", "/v1/", "/v1/models/", "//v1/models", "/v1//models", "/./v1/models",
    "/v1/../keys", "/v1/models/../../keys", "/v1/models/..%2f..%2fkeys",
    "/v1/%2e%2e/keys", "/v1/%252e%252e/keys", "/v1/%6dodels", "/v1%2fmodels",
    "/v1/models%00", "/v1/models%20", "/v1/models;a=b", "/v1/models?", "/v1/models?a=b",
    "/v1/models#x", "/v1/messages?beta=false", "/v1/messages?beta=true&a=b", "/v1\\models", "/V1/models", "/v1/files", "/mcp",
    "http://127.0.0.1:8092/v1/models", "http://evil.invalid/v1/models",
    "//evil.invalid/v1/models", "*", "/v1/models\xa0", "/v1/chat/completions/x",
]  # fmt: skip


async def test_other_paths_are_refused(inside: Inside, upstream: Upstream) -> None:
    statuses = await send(
        inside,
        *(request("GET", target) for target in TARGETS),
        *(request("POST", target, body="{}") for target in TARGETS),
    )

    assert set(statuses) <= {"403", "400", "closed"}, dict(
        zip(TARGETS * 2, statuses, strict=True)
    )
    assert upstream.seen == []


async def test_other_methods_are_refused(inside: Inside, upstream: Upstream) -> None:
    methods = ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "POST", "get"]
    wrong = [request(method, "/v1/models") for method in methods]
    wrong += [request("GET", "/v1/chat/completions")]
    wrong += [request("CONNECT", "127.0.0.1:22"), request("CONNECT", "/v1/models")]

    statuses = await send(inside, *wrong)

    assert set(statuses) <= {"403", "400", "405", "closed"}, statuses
    assert upstream.seen == []


async def test_smuggled_requests_do_not_arrive(
    inside: Inside, upstream: Upstream
) -> None:
    hidden = "GET /keys HTTP/1.1\r\nHost: x\r\n\r\n"
    await send(
        inside,
        request("POST", "/v1/messages", "Transfer-Encoding: chunked", "Content-Length: 4",
                body="0\r\n\r\n" + hidden),
        request("POST", "/v1/messages", "Content-Length: 2", body="{}" + hidden),
        request("POST", "/v1/messages", "Transfer-Encoding: xchunked") + hidden,
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" + hidden,
    )  # fmt: skip

    assert {target for _, target, _ in upstream.seen} <= {"/v1/messages"}


async def test_keys_and_headers_of_the_agent_are_dropped(
    inside: Inside, upstream: Upstream
) -> None:
    statuses = await send(
        inside,
        request(
            "POST", "/v1/messages",
            "Authorization: Bearer key-of-another-task", "X-API-Key: key-of-another-task",
            "Cookie: session=1", "X-Forwarded-For: 1.2.3.4", "Forwarded: for=1.2.3.4",
            "X-Real-IP: 1.2.3.4", "x-nestor-iteration: 99", "X-Anything: 1",
            "traceparent: 00-11111111111111111111111111111111-1111111111111111-01",
            "Content-Type: application/json", "anthropic-version: 2023-06-01",
            body="{}",
        ),
    )  # fmt: skip

    assert statuses == ["200"]
    ((_, _, headers),) = upstream.seen
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["anthropic-version"] == "2023-06-01"
    assert "1111111111111111" not in headers["traceparent"]
    assert not {"x-api-key", "cookie", "x-forwarded-for", "forwarded", "x-real-ip",
                "x-anything", "x-nestor-iteration"} & set(headers)  # fmt: skip


async def test_a_redirect_is_not_followed_and_headers_do_not_come_back(
    inside: Inside, upstream: Upstream
) -> None:
    elsewhere = Upstream()
    async with serving(elsewhere) as url:
        upstream.status = 307
        upstream.headers = {"Location": f"{url}/v1/models", "Set-Cookie": "a=b"}
        statuses = await send(inside, request("GET", "/v1/models"))

    assert statuses == ["502"]
    assert elsewhere.seen == []


async def test_a_body_over_the_limit_is_refused(
    inside: Inside, upstream: Upstream
) -> None:
    program = f"""
import http.client
for chunked in (False, True):
    c = http.client.HTTPConnection("127.0.0.1", 8092)
    body = (b"x" * 65536 for _ in range({BODY_BYTES // 65536 + 2}))
    headers = {{}} if chunked else {{"Content-Length": str({BODY_BYTES} + 131072)}}
    try:
        c.request("POST", "/v1/messages", body=body, headers=headers, encode_chunked=chunked)
        print(c.getresponse().status)
    except OSError:
        print("closed")
"""
    output = await inside.python(program)

    assert set(output.split()) <= {"413", "closed"}, output
    assert len(output.split()) == 2
    assert upstream.seen == []


async def test_the_upstream_call_ends_when_the_agent_leaves(
    inside: Inside, upstream: Upstream
) -> None:
    upstream.endless = True
    program = """
import http.client, time
c = http.client.HTTPConnection("127.0.0.1", 8092)
c.request("POST", "/v1/messages", body=b"{}")
c.getresponse().read(2000)
c.sock.close(); c.close()
time.sleep(3)
"""
    running = asyncio.create_task(inside.python(program))
    await asyncio.wait_for(upstream.closed.wait(), 10)

    assert not running.done(), "closed because the agent left, not because it ended"
    await running


async def test_no_more_than_eight_requests_at_once(
    inside: Inside, upstream: Upstream
) -> None:
    upstream.endless = True
    program = """
import http.client
held, statuses = [], []
for _ in range(12):
    c = http.client.HTTPConnection("127.0.0.1", 8092)
    c.request("POST", "/v1/messages", body=b"{}")
    statuses.append(c.getresponse().status)
    held.append(c)
print(statuses)
"""
    output = await inside.python(program)

    assert output.strip() == str([200] * 8 + [429] * 4)
    assert len(upstream.seen) == 8


async def test_loopback_services_of_the_host_are_not_reached(
    inside: Inside, upstream: Upstream
) -> None:
    other = Upstream()
    async with serving(other) as url:
        port = url.rpartition(":")[2]
        line = f"for a in 127.0.0.1 localhost 10.0.2.2 [::1] 0.0.0.0; do curl -s -m 2 http://$a:{port}/; done"
        for network in Network:
            output = await inside.sh(line, network=network)
            assert CANARY not in output, network
        abstract = await inside.sh("cat /proc/net/unix | wc -l")

    assert other.seen == []
    assert int(abstract) <= 3, "sockets of the host's namespace are visible"


async def test_secrets_and_other_tasks_cannot_be_read(
    inside: Inside, tmp_path: Path
) -> None:
    (inside.home / "api-key").write_text(CANARY)
    other = inside.home / "tasks" / "t2" / "tree"
    other.mkdir(parents=True)
    (other / "file").write_text(CANARY)
    (inside.task / "own-run-file").write_text(CANARY)
    (inside.tree / "link").symlink_to(inside.home / "api-key")
    (inside.tree / "up").symlink_to(inside.home)
    line = f"""
cat {inside.home}/api-key {other}/file link up/api-key {inside.task}/own-run-file
cat /workspace/../../../api-key ../own-run-file
ls {Path.home()}/.ssh {inside.home} /setup /proc/1/root{inside.home}
cat /proc/1/root{inside.home}/api-key /proc/$PPID/root{inside.home}/api-key
cat /etc/shadow /etc/ssh/ssh_host_*_key {Path.home()}/.bashrc {Path.home()}/.netrc
find / -xdev -name 'api-key' -o -xdev -name 'shadow' 2>/dev/null
"""
    output = await inside.sh(line)

    assert CANARY not in output
    assert "root:" not in output
    refusals = ("No such file", "Permission denied")
    rows = output.splitlines()
    assert len(rows) >= 10
    assert [row for row in rows if not any(word in row for word in refusals)] == []


async def test_processes_of_the_host_are_not_seen(inside: Inside) -> None:
    outside = await asyncio.create_subprocess_exec(
        "sleep", "30", env={"SECRET": CANARY}
    )
    try:
        output = await inside.sh(
            "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; echo; "
            "ls /proc | grep -c '^[0-9]'; "
            f"kill -9 {outside.pid} {os.getpid()} 2>/dev/null"
        )
        assert outside.returncode is None
    finally:
        outside.kill()
        await outside.wait()

    assert CANARY not in output
    assert int(output.split()[-1]) < 12


async def test_sockets_of_other_runs_are_not_seen(
    inside: Inside, upstream: Upstream
) -> None:
    other = Forwarder(
        upstream=inside.sandbox._coordinator_url,
        task_key="key-of-another-task",
        trace_id="",
        iteration=None,
    )
    async with other.on_socket(inside.home) as path:
        output = await inside.sh(
            f"curl -s -m 2 --unix-socket {path} http://x/v1/models; "
            "find /tmp /run /home /workspace /dev /var -type s; "
            "awk '$5 ~ /sock/ {print $5}' /proc/self/mountinfo"
        )

    own = ["/run/nestor/coordinator.sock", "/run/nestor/egress.sock"]
    assert output.split() == own
    assert upstream.seen == []


async def test_nothing_can_be_mounted_and_no_privilege_gained(inside: Inside) -> None:
    line = """
mount -t tmpfs none /tmp && echo BROKE
mount --bind /workspace /usr && echo BROKE
mount -o remount,rw /usr && echo BROKE
umount /proc/sys && echo BROKE
unshare -Ur true && echo BROKE
unshare -m true && echo BROKE
chroot / true && echo BROKE
mknod /tmp/disk b 8 0 && echo BROKE
grep -q 'NoNewPrivs:.1' /proc/self/status || echo BROKE
grep -E 'Cap(Prm|Eff|Bnd|Inh|Amb):' /proc/self/status | grep -v 0000000000000000 && echo BROKE
true
"""
    assert "BROKE" not in await inside.sh(line)


async def test_read_only_parts_stay_as_they_are(inside: Inside) -> None:
    name = f"nestor-test-{uuid.uuid4().hex}"
    program = f"""
import os, sys
for place in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/run", "/run/nestor", "/proc/sys",
              "/var", "/home", sys.base_prefix):
    try:
        open(os.path.join(place, "{name}"), "w")
        print("WROTE", place)
    except OSError:
        pass
# A kernel setting gets its own value again: without the guard nothing would change.
for setting in ("/proc/sys/kernel/printk_delay", "/proc/sys/vm/swappiness"):
    try:
        value = open(setting).read()
        open(setting, "w").write(value)
        print("WROTE", setting)
    except OSError:
        pass
for own in ("/run/nestor/bridge.py", "/etc/passwd", "/etc/ssl/certs/ca-certificates.crt"):
    try:
        open(own, "a")
        print("OPENED", own)
    except OSError:
        pass
for root, folders, files in os.walk("/proc"):
    folders[:] = [f for f in folders if not f.isdigit() and f not in ("self", "thread-self", "pressure")]
    for file in files:
        path = os.path.join(root, file)
        if os.access(path, os.W_OK) and not os.path.samefile(path, "/dev/null"):
            try:
                os.close(os.open(path, os.O_WRONLY))
                print("WRITABLE", path)
            except OSError:
                pass
print("done")
"""
    output = await inside.python(program)

    assert output.split("\n") == ["done", ""]
    for place in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/run", sys.base_prefix):
        assert not Path(place, name).exists()


async def test_links_out_of_the_workspace_have_no_effect_on_the_host(
    inside: Inside, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    folder = tmp_path / "folder"
    folder.mkdir()
    line = f"""
ln -s {victim} a && echo changed > a
ln -s {folder} b && echo made > b/file
ln -s ../../../../victim c && echo changed > c
ln {victim} d
rm -rf {victim} {folder}
true
"""
    await inside.sh(line)

    assert victim.read_text() == "whole"
    assert list(folder.iterdir()) == []


async def test_the_launchers_descriptors_cannot_be_taken(inside: Inside) -> None:
    program = """
import os
for pid in (1, os.getppid()):
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            print(pid, os.readlink(f"/proc/{pid}/fd/{fd}"))
    except PermissionError:
        print(pid, "denied")
"""
    output = await inside.python(program)

    assert f"{2} denied" in output
    assert str(inside.home) not in output
    assert "lock" not in output


async def test_a_resolver_and_a_way_out_exist_only_with_network_full(
    inside: Inside,
) -> None:
    line = "cat /etc/resolv.conf; cat /proc/net/dev | grep -c tap0"

    assert await inside.sh(line, network=Network.FULL) == "nameserver 10.0.2.3\n1\n"
    for network in (Network.NONE, Network.COORDINATOR):
        output = await inside.sh(line, network=network)
        assert "nameserver" not in output
        assert output.endswith("\n0\n")
