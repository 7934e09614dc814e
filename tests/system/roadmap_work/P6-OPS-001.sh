mkdir -p ai-stack/mcp-servers/shared systemd
cat > ai-stack/mcp-servers/shared/telemetry_rotation.py <<'PY'
import datetime, gzip, os, shutil

class TelemetryRotator:
    def __init__(self, folder, max_age_days=30, compress_after_days=7, processed=None):
        self.folder, self.processed = folder, processed or (lambda name: True)
        self.delete_after = datetime.timedelta(days=max_age_days)
        self.compress_after = datetime.timedelta(days=compress_after_days)

    def rotate(self, now):
        compressed, deleted = [], []
        for path in sorted(self.folder.glob("*.jsonl*")):
            when = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc)
            if path.name.endswith(".tmp") or not self.processed(path.name):
                continue
            if now - when > self.delete_after:
                path.unlink()
                deleted.append(path.name)
            elif now - when > self.compress_after and path.suffix == ".jsonl":
                new = path.with_suffix(".jsonl.tmp")
                with path.open("rb") as read, gzip.open(new, "wb") as write:
                    shutil.copyfileobj(read, write)
                os.utime(new, (when.timestamp(), when.timestamp()))
                os.replace(new, f"{path}.gz")
                path.unlink()
                compressed.append(path.name)
        return compressed, deleted
PY
printf '[Timer]\nOnCalendar=daily\nPersistent=true\n' > systemd/telemetry-rotation.timer
printf '[Service]\nType=oneshot\nExecStart=/usr/bin/rotate-telemetry\n' > systemd/telemetry-rotation.service
