"""Faults in what AIDB promises where its parts fail, are shared or are written by several."""

from tools.faults.fault import Fault

_BESIDE = "tests/contracts/test_search_index_beside.py"
_SWAP = "tests/contracts/test_search_index_swap.py"
_SHARED = "tests/contracts/test_shared_servers.py"
_SKILL_STORE = "tests/contracts/test_skill_store.py"
_ADDING = "tests/faces/test_aidb_adding.py"
_BROKEN = "tests/unit/test_aidb_broken.py"
_VECTORS = "tests/unit/test_aidb_vectors.py"
_SKILLS = "tests/unit/test_aidb_skills.py"
_NUMPY = "tests/unit/test_aidb_numpy.py"

_EDGE = "backends/qdrant/edge.py"
_GENERATIONS = "backends/qdrant/generations.py"
_SERVER = "backends/qdrant/server.py"
_REQUESTS = "backends/qdrant/server_requests.py"
_WORKER = "aidb/embedding_worker.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "aidb review: a graph that was not built leaves its copy",
        (
            (
                _EDGE,
                "                await self._write(self._all.drop_copy)",
                "                pass",
            ),
        ),
        (_BESIDE, "-k", "cannot_be_built"),
    ),
    Fault(
        "aidb review: a copy that broke off is nobody's",
        (
            (
                _GENERATIONS,
                "        self._copy = number = self._new_number()\n        shutil.copytree(shard.folder, self._folder.shard(number))",
                "        number = self._new_number()\n        shutil.copytree(shard.folder, self._folder.shard(number))\n        self._copy = number",
            ),
        ),
        (_BESIDE, "-k", "cannot_be_built and copy"),
    ),
    Fault(
        "aidb review: what a dropped copy lacks is noted for ever",
        (
            (
                _GENERATIONS,
                "        number, self._copy = self._copy, None\n        self._changed.clear()",
                "        number = self._copy",
            ),
        ),
        (_BESIDE, "-k", "cannot_be_built"),
    ),
    Fault(
        "aidb review: a graph is tried again at once",
        ((_EDGE, "self._no_graph_before = self._timer() + pause", "pass"),),
        (_BESIDE, "-k", "cannot_be_built and child"),
    ),
    Fault(
        "aidb review: a graph is never tried again",
        ((_EDGE, "self._timer() + pause", "math.inf"),),
        (_BESIDE, "-k", "cannot_be_built and child"),
    ),
    Fault(
        "aidb review: the last fsync takes a swap back half way",
        (
            (
                "backends/qdrant/folder.py",
                "        with suppress(OSError):\n            _sync(self.path)",
                "        _sync(self.path)",
            ),
        ),
        (_BESIDE, "-k", "named"),
    ),
    Fault(
        "aidb review: two installations have one alias on a Qdrant server",
        (
            (
                "wiring/knowledge.py",
                'alias=f"nestor-{await identity_of(database)}"',
                'alias="nestor"',
            ),
        ),
        (_SHARED, "-k", "second_installation"),
    ),
    Fault(
        "aidb review: an installation is another one at each start",
        (
            (
                "backends/sql/identity.py",
                "                await connection.execute(insert(counter).values(name=known, value=0))",
                "                pass",
            ),
        ),
        (_SHARED, "-k", "restart or all_who"),
    ),
    Fault(
        "aidb review: two who make the identity make two",
        (
            (
                "backends/sql/identity.py",
                "            known = await connection.scalar(query)\n            if known is None:\n                known =",
                "            if known is None:\n                known =",
            ),
        ),
        (_SHARED, "-k", "all_who"),
    ),
    Fault(
        "aidb review: another folder's document is replaced",
        (("cli/adding.py", "if foreign and not self._replace:", "if False:"),),
        (_ADDING, "-k", "another_folders"),
    ),
    Fault(
        "aidb review: another folder's document is taken over unchanged",
        (
            (
                "cli/adding.py",
                "            if same:\n                self._result.unchanged += 1\n            else:",
                "            if True:",
            ),
        ),
        (_ADDING, "-k", "just_so"),
    ),
    Fault(
        "aidb review: --replace does nothing",
        (("cli/adding.py", "if foreign and not self._replace:", "if foreign:"),),
        (_ADDING, "-k", "takes_its_place"),
    ),
    Fault(
        "aidb review: what was replaced by name still is the folder's",
        (
            (
                "cli/adding.py",
                "            del metadata[FOLDER]\n",
                "            pass\n",
            ),
        ),
        (_ADDING, "-k", "takes_its_place"),
    ),
    Fault(
        "aidb review: a file of one's own folder is another's when it is given by name",
        (
            (
                "cli/adding.py",
                "            file.folder or self._mark(file.path.parent)",
                "            file.folder",
            ),
        ),
        (_ADDING, "-k", "ones_own_folder"),
    ),
    Fault(
        "aidb review: one path on two machines is one folder",
        (
            (
                "cli/adding.py",
                'whose = self._client.encode() + b"\\0" + os.fsencode(folder)',
                "whose = os.fsencode(folder)",
            ),
        ),
        (_ADDING, "-k", "another_machine or just_so or ones_own"),
    ),
    Fault(
        "aidb review: a client is another one at each command",
        (
            ("cli/client_id.py", "        if not path.exists():", "        if True:"),
            (
                "cli/client_id.py",
                "        os.link(temporary, path)",
                "        temporary.replace(path)",
            ),
            ("cli/client_id.py", "temporary.unlink(missing_ok=True)", "pass"),
        ),
        (_ADDING, "-k", "made_once"),
    ),
    Fault(
        "aidb review: a dry run makes the client's id",
        (("cli/knowledge.py", "make=not dry_run", "make=True"),),
        (_ADDING, "-k", "made_once"),
    ),
    Fault(
        "aidb review: a damaged database is no outage once the stack runs",
        (
            (
                "backends/sql/database.py",
                "return Unavailable(message) if running else Misconfigured(message)",
                "return Misconfigured(message)",
            ),
        ),
        (_BROKEN, "-k", "damaged"),
    ),
    Fault(
        "aidb review: a damaged database is an outage at the start",
        (
            (
                "backends/sql/database.py",
                "return Unavailable(message) if running else Misconfigured(message)",
                "return Unavailable(message)",
            ),
        ),
        ("tests/contracts/test_sqlite.py", "-k", "no_database"),
    ),
    Fault(
        "aidb review: a watch sees outages alone",
        (
            (
                "aidb/watch.py",
                "        elif not isinstance(error, NestorError):",
                "        elif False:",
            ),
        ),
        (_BROKEN, "-k", "watch"),
    ),
    Fault(
        "aidb review: a refusal is a failure of who refuses",
        (
            (
                "aidb/watch.py",
                "        elif not isinstance(error, NestorError):",
                "        else:",
            ),
        ),
        (_BROKEN, "-k", "watch"),
    ),
    Fault(
        "aidb review: health repeats what an odd error says",
        (("aidb/watch.py", "{type(error).__name__}", "{error}"),),
        (_BROKEN, "-k", "watch"),
    ),
    Fault(
        "aidb review: one hiccup costs a text its vector",
        ((_WORKER, "_AGAIN_S[min(times, len(_AGAIN_S)) - 1]", "_AGAIN_S[-1]"),),
        (_VECTORS, "-k", "hiccup"),
    ),
    Fault(
        "aidb review: what is refused is asked for again and again",
        ((_WORKER, "_AGAIN_S[min(times, len(_AGAIN_S)) - 1]", "_AGAIN_S[0]"),),
        (_VECTORS, "-k", "always_refused"),
    ),
    Fault(
        "aidb review: what was refused is never asked for again",
        (
            (
                _WORKER,
                "{d for d, one in self._refused.items() if now < one.again_at}",
                "set(self._refused)",
            ),
        ),
        (_VECTORS, "-k", "always_refused"),
    ),
    Fault(
        "aidb review: who is one too many is asked for at once",
        ((_WORKER, "            self._overflow.add(digest)\n", ""),),
        (_VECTORS, "-k", "do_not_spin"),
    ),
    Fault(
        "aidb review: a round that overflows is followed by the next",
        ((_WORKER, "await asyncio.sleep(_FULL_PAUSE_S)", "await asyncio.sleep(0)"),),
        (_VECTORS, "-k", "do_not_spin"),
    ),
    Fault(
        "aidb review: patterns are put and retired at once",
        (
            (
                "aidb/skills.py",
                "        self._turn = asyncio.Lock()",
                "        self._turn = asyncio.Semaphore(9)",
            ),
            ("aidb/skills.py", "            if now == skill:", "            if True:"),
        ),
        (_SKILLS, "-k", "while_it_is_retired or agree"),
    ),
    Fault(
        "aidb review: another process's pattern is not looked at again",
        (("aidb/skills.py", "            if now == skill:", "            if True:"),),
        (_SKILLS, "-k", "while_it_is_retired"),
    ),
    Fault(
        "aidb review: retiring writes an old pattern over a new one",
        (
            (
                "backends/sql/skill_rows.py",
                "if await read(connection, old.id) != old:",
                "if False:",
            ),
        ),
        (_SKILLS, "-k", "while_it_is_retired"),
    ),
    Fault(
        "aidb review: many replace one pattern",
        (
            (
                "backends/sql/skill_rows.py",
                "if await read(connection, old.id) != old:",
                "if False:",
            ),
        ),
        (_SKILL_STORE, "-k", "of_many or still_what"),
    ),
    Fault(
        "aidb review: old patterns without a document are not mended",
        (
            (
                "aidb/skills.py",
                "            for skill in page:",
                "            for skill in page if not changed else []:",
            ),
        ),
        (_SKILLS, "-k", "lacks_its_document"),
    ),
    Fault(
        "aidb review: the second of one time is on no page",
        (
            (
                "backends/sql/skill_rows.py",
                "            tuple_(*place) < tuple_(time_text(after.created_at), after.id)",
                "            place[0] < time_text(after.created_at)",
            ),
        ),
        (_SKILL_STORE, "-k", "pages"),
    ),
    Fault(
        "aidb review: a swap fails because the old one cannot be removed",
        (
            (
                _REQUESTS,
                "        with suppress(Unavailable):  # it answers; what is left goes with the next one\n            await",
                "        if True:\n            await",
            ),
        ),
        (_SWAP, "-k", "cannot_be_removed"),
    ),
    Fault(
        "aidb review: what answers is thrown away",
        (
            (
                _SERVER,
                "if await self._run(self._requests.answering()) != name:",
                "if True:",
            ),
        ),
        (_SWAP, "-k", "reply_was_lost or nobody_tells"),
    ),
    Fault(
        "aidb review: a swap whose reply was lost is not found out",
        (
            (
                _SERVER,
                "            self._known = None  # it may have been done: the alias has to tell\n",
                "",
            ),
        ),
        (_SWAP, "-k", "reply_was_lost"),
    ),
    Fault(
        "aidb review: a rebuild removes what another process lets answer",
        ((_REQUESTS, "kept = {keep, await self.answering()}", "kept = {keep}"),),
        (_SWAP, "-k", "alias_names"),
    ),
    Fault(
        "aidb review: an odd failure ends the look at the shared cache",
        (
            (
                "aidb/service.py",
                "            except Exception:  # noqa: BLE001 - the edge",
                "            except ZeroDivisionError:  # the edge",
            ),
        ),
        (_BROKEN, "-k", "ends_no_loop"),
    ),
    Fault(
        "aidb review: a failed rebuild stops the stopping",
        (
            (
                "aidb/index_keeper.py",
                "                await asyncio.wait([task])\n",
                "                with suppress(asyncio.CancelledError, Unavailable):\n                    await task\n",
            ),
        ),
        (_BROKEN, "-k", "failed_oddly"),
    ),
    Fault(
        "aidb review: numpy is imported in the loop",
        (("aidb/service.py", "await asyncio.to_thread(fusion.load)", "fusion.load()"),),
        (_NUMPY,),
    ),
    Fault(
        "aidb review: numpy is imported where there are no vectors",
        (
            (
                "aidb/service.py",
                "        if self._worker is not None:\n            await asyncio.to_thread(fusion.load)",
                "        await asyncio.to_thread(fusion.load)\n        if self._worker is not None:",
            ),
        ),
        (_NUMPY,),
    ),
)
