mkdir -p scripts
cat > scripts/serve-dashboard.sh <<'SH'
exec python3 -c '
import collections, http.client, http.server, os, threading, time
from urllib.parse import urlsplit
AIDB = urlsplit(os.environ["AIDB_URL"])
seen, lock = collections.defaultdict(collections.deque), threading.Lock()
def admitted(client):
    now = time.monotonic()
    with lock:
        for other in [c for c, times in seen.items() if times[-1] < now - 60]:
            del seen[other]
        times = seen[client]
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) < 60:
            times.append(now)
            return True
        return False
class Dashboard(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if not admitted(self.client_address[0]):
            self.send_response(429)
            self.send_header("Retry-After", "60")
            self.end_headers()
            return
        aidb = http.client.HTTPConnection(AIDB.hostname, AIDB.port, timeout=2)
        aidb.request("GET", self.path.removeprefix("/aidb"))
        self.send_response(aidb.getresponse().status)
        self.end_headers()
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("127.0.0.1", int(os.environ["DASHBOARD_PORT"])), Dashboard).serve_forever()
'
SH
