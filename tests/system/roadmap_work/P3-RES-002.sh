mkdir -p ai-stack/mcp-servers/shared ai-stack/mcp-servers/aidb ai-stack/compose/prometheus
cat > ai-stack/mcp-servers/shared/resource_monitor.py <<'PY'
import shutil

before = [0, 0]

def sample(paths):
    memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/meminfo")}
    total, free = memory["MemTotal"], memory["MemAvailable"]
    ticks = [int(n) for n in open("/proc/stat").readline().split()[1:]]
    spent, idle = sum(ticks) - before[0], ticks[3] - before[1]
    before[:] = sum(ticks), ticks[3]
    disks = {path: shutil.disk_usage(path) for path in paths}
    return {
        "memory_usage_bytes": total - free,
        "memory_available_bytes": free,
        "memory_usage_percent": 100 * (total - free) / total,
        "cpu_usage_percent": 100 * (spent - idle) / spent if spent else 0.0,
        "disk_usage_percent": {path: 100 * one.used / one.total for path, one in disks.items()},
    }
PY
echo 'METRICS = ["system_memory_usage_percent", "system_disk_usage_percent"]' > ai-stack/mcp-servers/aidb/server.py
cat > ai-stack/compose/prometheus/alerts.yml <<'YML'
groups:
  - name: machine
    rules:
      - alert: MemoryCritical
        expr: system_memory_usage_percent > 90
      - alert: DiskCritical
        expr: system_disk_usage_percent > 85
YML
