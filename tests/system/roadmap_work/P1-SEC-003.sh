mkdir -p ai-stack/compose ai-stack/mcp-servers/config
cat > ai-stack/compose/docker-compose.yml <<'YML'
services:
  postgres:
    environment:
      POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?set it in .env}
  grafana:
    environment:
      GF_SECURITY_ADMIN_PASSWORD: ${GRAFANA_ADMIN_PASSWORD:?set it in .env}
YML
echo 'password: ${AIDB_POSTGRES_PASSWORD}' > ai-stack/mcp-servers/config/config.yaml
printf 'POSTGRES_PASSWORD=placeholder\nGRAFANA_ADMIN_PASSWORD=placeholder\n' > ai-stack/compose/.env.example
printf '.env\n*.secret\n' > .gitignore
