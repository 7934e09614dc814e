cd ai-stack/mcp-servers 2>/dev/null || { mkdir -p ai-stack/mcp-servers; cd ai-stack/mcp-servers; }
mkdir -p shared ralph-wiggum hybrid-coordinator aidb
cat > shared/learning_client.py <<'PY'
import datetime, json, os

class LearningClient:
    def __init__(self, path):
        self.path = path

    def log_event(self, event_type, data):
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        line = json.dumps({"event_type": event_type, "timestamp": now, "data": data}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, line.encode())
        os.close(file)
PY
cat > ralph-wiggum/orchestrator.py <<'PY'
class RalphOrchestrator:
    def __init__(self, hybrid, aidb, learning, agent):
        self.hybrid, self.aidb, self.learning, self.agent = hybrid, aidb, learning, agent

    async def execute_task(self, task):
        say, text = self.learning.log_event, task["description"]
        say("task_started", {"task_id": task["task_id"], "description": text})
        success, n = False, 0
        while not success and n < task["max_iterations"]:
            n += 1
            context = await self.had(self.aidb.get_context(text))
            guidance = await self.had(self.hybrid.route_query(query=text, context=context, iteration=n))
            end = await self.agent(task, context, guidance)
            if end["exit_code"] == 2:
                say("exit_blocked", {"iteration": n})
            success = end["exit_code"] != 2 and end["verified"]
            say("task_iteration", {"iteration": n, "success": success})
        say("task_completed", {"success": success, "iterations": n})
        return {"success": success, "iterations": n}

    async def had(self, asked):
        try:
            return await asked
        except OSError:
            return None
PY
printf 'def routed(say, side):\n    say("query_routed", {"side": side})\n' > hybrid-coordinator/coordinator.py
printf 'def retrieved(say, items):\n    say("context_retrieved", {"items": items})\n' > aidb/server.py
