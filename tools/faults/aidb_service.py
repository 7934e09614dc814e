"""Faults in AIDB's service: what is promised of answers, writes and outages."""

from tools.faults.fault import Fault

_UNIT, _VECTORS = "tests/unit/test_aidb.py", "tests/unit/test_aidb_vectors.py"
_CACHE, _SKILLS = "tests/unit/test_aidb_cache.py", "tests/unit/test_aidb_skills.py"
_HTTP, _CLI = "tests/faces/test_aidb_http.py", "tests/faces/test_aidb_cli.py"
_MCP = "tests/faces/test_aidb_mcp.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "aidb service: a write is not told to the cache",
        (
            (
                "aidb/service.py",
                "        self._fresh.changed()\n        await self.keeper.settle()",
                "        await self.keeper.settle()",
            ),
            (
                "aidb/index_keeper.py",
                "        await self._sql.run(self._store.mark_indexed(entries))\n        self._changed()",
                "        await self._sql.run(self._store.mark_indexed(entries))",
            ),
        ),
        (_UNIT, "-k", "comes_from_the_cache_until or edit_and_a_deletion"),
    ),
    Fault(
        "aidb service: a version read before a write is remembered after it",
        (
            (
                "aidb/freshness.py",
                "            if epoch == self._epoch:\n                return found",
                "            return found",
            ),
        ),
        (_CACHE, "-k", "reading_from_before"),
    ),
    Fault(
        "aidb service: a version is never read again",
        (("aidb/freshness.py", "RECHECK_S = 0.1", "RECHECK_S = 1e9"),),
        (_CACHE, "-k", "once_in_100_ms"),
    ),
    Fault(
        "aidb service: answers are kept for ever",
        (("aidb/cache.py", "if kept.until > self._timer():", "if kept.until > 0:"),),
        (_CACHE, "-k", "for_an_hour"),
    ),
    Fault(
        "aidb service: answers take all the memory there is",
        (("aidb/cache.py", " or self._bytes > self._max_bytes:", ":"),),
        (_CACHE, "-k", "bounded_room"),
    ),
    Fault(
        "aidb service: another base's answers are given",
        (
            (
                "aidb/cache.py",
                "            space,\n            version,",
                "            version,",
            ),
        ),
        (_CACHE, "-k", "its_own_base"),
    ),
    Fault(
        "aidb service: an outage of Redis is not told",
        (
            (
                "aidb/service.py",
                "        if self._cache.shared_is_away:",
                "        if False:",
            ),
        ),
        (_CACHE, "-k", "without_redis"),
    ),
    Fault(
        "aidb service: a degraded answer is kept",
        (
            (
                "aidb/finder.py",
                "return Found(hits, [INDEX_DOWN], complete=False)",
                "return Found(hits, [INDEX_DOWN], complete=True)",
            ),
        ),
        (_UNIT, "-k", "degraded_answer_is_not_kept"),
    ),
    Fault(
        "aidb service: what waits for the index is not looked for",
        (
            (
                "aidb/finder.py",
                "        elif waiting or self._keeper.healing:",
                "        elif self._keeper.healing:",
            ),
        ),
        (_UNIT, "-k", "what_waits"),
    ),
    Fault(
        "aidb service: without SQL nothing answers",
        (
            (
                "aidb/finder.py",
                "            told = await self._seen.ask(\n                lambda: self._index.entries(ids), within_s=WAIT_S\n            )",
                "            raise",
            ),
        ),
        (_UNIT, "-k", "when_sql_is_gone"),
    ),
    Fault(
        "aidb service: an embedder that is away is not told",
        (
            (
                "aidb/finder.py",
                "        except Unavailable:\n            return _Vector(None, EMBEDDER_DOWN)",
                "        except Unavailable:\n            return _Vector(None, None)",
            ),
        ),
        (_VECTORS, "-k", "without_the_embedder"),
    ),
    Fault(
        "aidb service: texts are embedded while another batch has them",
        (
            (
                "aidb/embedding_worker.py",
                "left_out = known | waiting | self._overflow",
                "left_out = waiting | self._overflow",
            ),
        ),
        (_VECTORS, "-k", "embedded_once_however"),
    ),
    Fault(
        "aidb service: one refused text holds up all",
        (
            (
                "aidb/embedding_worker.py",
                "                self._refuse(digest, str(error))",
                "                raise",
            ),
        ),
        (_VECTORS, "-k", "holds_up_no_other"),
    ),
    Fault(
        "aidb service: another model's index is left as it is",
        (
            (
                "aidb/index_keeper.py",
                "self.stamp != self.wanted and self.embedded:",
                "self.stamp is None and self.embedded:",
            ),
        ),
        (_VECTORS, "-k", "another_model"),
    ),
    Fault(
        "aidb service: writes during a rebuild are not in the new index",
        (
            (
                "aidb/index_keeper.py",
                "        if self._beside is not None:\n            await self._seen.run(self._beside[0].remove(gone))",
                "        if self._beside is None:\n            pass",
            ),
        ),
        (_VECTORS, "-k", "in_both"),
    ),
    Fault(
        "aidb service: the canary says what it wants",
        (
            (
                "aidb/canary.py",
                "                found[leg] = well",
                "                found[leg] = True",
            ),
        ),
        (_VECTORS, "-k", "canary"),
    ),
    Fault(
        "aidb service: the canary is shown",
        (
            (
                "aidb/assemble.py",
                "document.project != CANARY_PROJECT and _fits",
                "_fits",
            ),
        ),
        (_VECTORS, "-k", "canary"),
    ),
    Fault(
        "aidb service: the canary is counted among what was added",
        (("aidb/verify.py", "        if own is not None:", "        if own == '':"),),
        (_VECTORS, "-k", "canary"),
    ),
    Fault(
        "aidb service: verify looks at one side",
        (
            (
                "aidb/verify.py",
                "                extra.append(other)",
                "                pass",
            ),
        ),
        (_VECTORS, "-k", "verify_names"),
    ),
    Fault(
        "aidb service: retired patterns are found",
        (
            (
                "aidb/skills.py",
                "        if skill.status is not SkillStatus.ACTIVE:",
                "        if skill.status is SkillStatus.CANDIDATE:",
            ),
        ),
        (_SKILLS, "-k", "retired"),
    ),
    Fault(
        "aidb service: patterns fill an answer",
        (("aidb/assemble.py", "MAX_LEARNED = 3", "MAX_LEARNED = 30"),),
        (_SKILLS, "-k", "at_most_three"),
    ),
    Fault(
        "aidb service: half-written patterns stay so",
        (
            (
                "aidb/service.py",
                "            await self.skills.reconcile()",
                "            pass",
            ),
        ),
        (_SKILLS, "-k", "half_done"),
    ),
    Fault(
        "aidb service: a received file is left on the disk",
        (("aidb/spool.py", "            os.unlink(path)", "            str(path)"),),
        (_HTTP, "-k", "a_file_is_sent or leaves_nothing"),
    ),
    Fault(
        "aidb service: a file may be of any length",
        (
            ("aidb/spool.py", "if size > MAX_CONTENT_BYTES:", "if size < 0:"),
            (
                "web/edge.py",
                '    "/documents/file": MAX_DOCUMENT_BYTES,',
                '    "/documents/file": 1 << 40,',
            ),
        ),
        (_HTTP, "-k", "refused_by_name"),
    ),
    Fault(
        "aidb service: a page begins with the last of the one before",
        (
            (
                "backends/sql/knowledge_store.py",
                "query.where(tuple_(*name) > tuple_",
                "query.where(tuple_(*name) >= tuple_",
            ),
        ),
        (_HTTP, "-k", "page_by_page"),
    ),
    Fault(
        "aidb service: any key adds by the tools",
        (("web/mcp_aidb.py", "if not user.may(SERVICE):", "if user is None:"),),
        (_MCP, "-k", "key_that_reads"),
    ),
    Fault(
        "aidb service: an editor is cut off while the stack is away",
        (
            (
                "cli/mcp.py",
                "            if asked is not None:\n                self._say(_error(asked, _SERVER_ERROR, str(error)))\n            return",
                "            raise",
            ),
        ),
        (_MCP, "-k", "away"),
    ),
    Fault(
        "aidb service: files of other folders are taken for deleted",
        (
            (
                "cli/adding.py",
                '                known["metadata"].get(FOLDER) != mark\n                or ',
                "                ",
            ),
        ),
        (_CLI, "-k", "only_what_changed"),
    ),
    Fault(
        "aidb service: what cannot be opened is forgotten",
        (
            (
                "cli/folder.py",
                "            if reason == CLOSED:",
                "            if not reason:",
            ),
        ),
        (_CLI, "-k", "cannot_be_opened"),
    ),
    Fault(
        "aidb service: a dry run forgets",
        (
            (
                "cli/adding.py",
                "            if not self._dry_run:\n                target",
                "            if True:\n                target",
            ),
        ),
        (_CLI, "-k", "dry_run"),
    ),
    Fault(
        "aidb service: verify ends well whatever it found",
        (
            (
                "cli/knowledge.py",
                '        screen.line("mend it with: nestor kb reindex")\n    raise typer.Exit(1)',
                '        screen.line("mend it with: nestor kb reindex")',
            ),
        ),
        (_CLI, "-k", "verify_ends"),
    ),
)
