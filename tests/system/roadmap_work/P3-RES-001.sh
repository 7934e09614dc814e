mkdir -p scripts
cat > scripts/detect-resources.sh <<'SH'
bytes=${MEMORY_BYTES:-$(( $(awk '/^MemTotal/ {print $2}' /proc/meminfo) * 1024 ))}
profile=full
[ "$bytes" -le $((16 * 1024 ** 3)) ] && profile=standard
[ "$bytes" -le $((8 * 1024 ** 3)) ] && profile=minimal
profile=${AI_STACK_PROFILE:-$profile}
services="postgres redis qdrant embeddings aidb"
case $profile in
  minimal) ;;
  standard) services="$services hybrid-coordinator ralph-wiggum prometheus" ;;
  full) services="$services hybrid-coordinator ralph-wiggum prometheus mindsdb llama-cpp grafana jaeger" ;;
  *) echo "no such profile: $profile" >&2; exit 2 ;;
esac
if [ "${1:-}" = --services ]; then echo $services; else echo $profile; fi
SH
echo 'podman-compose up -d $(scripts/detect-resources.sh --services)' > scripts/start-ai-stack.sh
