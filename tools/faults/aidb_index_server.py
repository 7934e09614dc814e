"""Faults in the search index on a Qdrant server, and in its settings."""

from tools.faults.fault import Fault

_CONTRACT = "tests/contracts/test_search_index.py"
_SERVER = "tests/contracts/test_search_index_server.py"
_DOCTOR = "tests/faces/test_doctor_qdrant.py"

FAULTS = (
    Fault(
        "aidb index: a swap on the server is two requests",
        (
            (
                "backends/qdrant/server_requests.py",
                "            changes.append(models.DeleteAliasOperation(delete_alias=gone))\n",
                "            await self.client.update_collection_aliases(change_aliases_operations=[models.DeleteAliasOperation(delete_alias=gone)])\n",
            ),
        ),
        (_SERVER, "-k", "one_request"),
    ),
    Fault(
        "aidb index: redirects are followed with the key",
        (
            (
                "backends/qdrant/server_requests.py",
                "follow_redirects=False",
                "follow_redirects=True",
            ),
        ),
        (_SERVER, "-k", "redirect"),
    ),
    Fault(
        "aidb index: the environment's proxy sees the key",
        (
            (
                "backends/qdrant/server_requests.py",
                "trust_env=False",
                "trust_env=True",
            ),
        ),
        (_SERVER, "-k", "proxy"),
    ),
    Fault(
        "aidb index: a collection that is gone is an outage",
        (
            (
                "backends/qdrant/server.py",
                "raise IndexDamaged(_GONE) from error",
                "raise Unavailable(_GONE) from error",
            ),
            (
                "backends/qdrant/server.py",
                "            raise IndexDamaged(_GONE)\n",
                "            raise Unavailable(_GONE)\n",
            ),
        ),
        (_SERVER, "-k", "damage_not_emptiness"),
    ),
    Fault(
        "aidb index: a collection that is gone is made anew, empty",
        (
            (
                "backends/qdrant/server.py",
                "        if self._met:\n            raise",
                "        if False:\n            raise",
            ),
        ),
        (_SERVER, "-k", "damage_not_emptiness"),
    ),
    Fault(
        "aidb index: a swap elsewhere is not seen",
        (
            (
                "backends/qdrant/server.py",
                "                if self._known is collection:\n                    self._known = None\n",
                "",
            ),
        ),
        (_SERVER, "-k", "sees_the_swap"),
    ),
    Fault(
        "aidb index: the server need not have written yet",
        (
            (
                "backends/qdrant/server_collection.py",
                "points=made, wait=True",
                "points=made, wait=False",
            ),
        ),
        (_SERVER, "-k", "servers_disk"),
    ),
    Fault(
        "aidb index: what begins like ours is ours",
        (
            (
                "backends/qdrant/server_requests.py",
                "self._name.fullmatch(name)",
                "self._name.match(name)",
            ),
        ),
        (_SERVER, "-k", "dead_process"),
    ),
    Fault(
        "aidb index: any version of the server will do",
        (
            (
                "backends/qdrant/server_requests.py",
                "if tuple(numbers) < _OLDEST:",
                "if not numbers:",
            ),
        ),
        (_SERVER, "-k", "older_server"),
    ),
    Fault(
        "aidb index: who asks a hanging server waits for all before",
        (
            (
                "backends/qdrant/server.py",
                "async with asyncio.timeout(TIMEOUT_S):",
                "async with asyncio.timeout(None):",
            ),
        ),
        (_SERVER, "-k", "hangs_wait"),
    ),
    Fault(
        "aidb index: one query is two requests",
        (
            (
                "backends/qdrant/server_collection.py",
                "        size, found = await asyncio.gather(self.count(), self._ask_legs(asked))\n",
                "        size, found = await self.count(), {}\n        for leg, one in asked.items():\n            found |= await self._ask_legs({leg: one})\n",
            ),
        ),
        (_SERVER, "-k", "both_legs"),
    ),
    Fault(
        "aidb index: a request that no OpenAPI knows",
        (
            (
                "backends/qdrant/server_requests.py",
                "type=models.KeywordIndexType.KEYWORD, prefix=by_beginning",
                'type=models.KeywordIndexType.KEYWORD, prefix=by_beginning, memory="warm"',
            ),
        ),
        (_CONTRACT, "-k", "http"),
    ),
    Fault(
        "aidb index: a key without a server is taken",
        (
            (
                "settings.py",
                "if self.qdrant_api_key and not self.qdrant_url:",
                "if False:",
            ),
        ),
        (_DOCTOR, "-k", "needs_a_server"),
    ),
    Fault(
        "aidb index: doctor asks only what needs no key",
        (
            (
                "backends/qdrant/server_requests.py",
                "        await requests.ask(client.get_aliases())\n",
                "",
            ),
        ),
        (_DOCTOR, "-k", "wrong_with_the_server"),
    ),
)
