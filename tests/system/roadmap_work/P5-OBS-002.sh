mkdir -p ai-stack/compose/prometheus
cd ai-stack/compose/prometheus
printf 'rule_files:\n  - alerts.yml\n' > prometheus.yml
printf 'groups:\n  - name: learning\n    rules:\n' > alerts.yml
rule() {
  printf '      - alert: %s\n        expr: %s\n        for: 5m\n        labels:\n          severity: %s\n        annotations:\n          summary: see the runbook\n' "$1" "$2" "$3" >> alerts.yml
}
rule LearningDaemonDown 'up{job="learning-daemon"} == 0 or absent(up{job="learning-daemon"})' critical
rule LearningFallingBehind 'learning_lag_seconds > 300' warning
rule DatasetGrowthAnomalous 'delta(learning_dataset_size_bytes[1h]) > 10485760' warning
rule LearningErrorRateHigh 'rate(learning_errors_total[5m]) / rate(learning_events_processed_total[5m]) > 0.1' warning
rule MemoryCritical 'system_memory_usage_percent > 90' critical
rule DiskCritical 'system_disk_usage_percent > 85' critical
