# Small parts, for P7-TEST-001 to test.
cd_to=ai-stack/mcp-servers
mkdir -p $cd_to/knowledge
cat > $cd_to/knowledge/knowledge.py <<'PY'
class Knowledge:
    def __init__(self):
        self.pages = []

    def add(self, page):
        self.pages.append(page)

    def find(self, words):
        return [page for page in self.pages if set(words.split()) & set(page.split())]
PY
mkdir -p $cd_to/learning
cat > $cd_to/learning/learning.py <<'PY'
import json
import os


class Learner:
    def __init__(self, events, place):
        self.events, self.place = events, place

    def at(self):
        return int(self.place.read_text()) if self.place.exists() else 0

    def learn(self, most):
        lines = self.events.read_text().splitlines()[self.at() :][:most]
        patterns = [json.loads(line)["task"] for line in lines]
        beside = self.place.with_suffix(".new")
        beside.write_text(str(self.at() + len(lines)))
        os.replace(beside, self.place)
        return patterns
PY
mkdir -p $cd_to/loop
cat > $cd_to/loop/loop.py <<'PY'
def run(task, agent, check, router, knowledge, tell, most=3):
    for n in range(1, most + 1):
        context = knowledge.find(task)
        agent(task, context, router.ask(task, n))
        passed = check()
        tell({"task": task, "iteration": n, "passed": passed})
        if passed:
            return n
    return None
PY
mkdir -p $cd_to/profiles
cat > $cd_to/profiles/profiles.py <<'PY'
def tier(memory_gib):
    for name, least in (("large", 32), ("medium", 16), ("small", 0)):
        if memory_gib >= least:
            return name
    raise ValueError(memory_gib)
PY
mkdir -p $cd_to/router
cat > $cd_to/router/router.py <<'PY'
class Router:
    def __init__(self, local, remote):
        self.local, self.remote = local, remote

    def ask(self, query, iteration=1):
        first, second = self.local, self.remote
        if iteration > 1:
            first, second = second, first
        try:
            return first(query)
        except OSError:
            return second(query)
PY
