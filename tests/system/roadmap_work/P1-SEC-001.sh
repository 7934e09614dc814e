mkdir -p scripts
cat > scripts/serve-dashboard.sh <<'SH'
exec python3 -c '
import http.client, http.server, os
from urllib.parse import urlsplit
ALLOWED = {"/aidb/" + p for p in ("health/live", "health/ready", "health/startup", "health/detailed", "metrics")}
AIDB = urlsplit(os.environ["AIDB_URL"])
class Dashboard(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path not in ALLOWED:
            return self.send_error(403)
        aidb = http.client.HTTPConnection(AIDB.hostname, AIDB.port, timeout=2)
        aidb.request("GET", self.path.removeprefix("/aidb"))
        reply = aidb.getresponse()
        body = reply.read(1 << 20)
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["DASHBOARD_PORT"])), Dashboard).serve_forever()
'
SH
