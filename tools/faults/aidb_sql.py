"""Faults in what SQL keeps of the knowledge base, and in the way to PostgreSQL."""

from tools.faults.fault import Fault

_STORE = "tests/contracts/test_knowledge_store.py"
_SERVER = "tests/contracts/test_postgresql.py"
_URLS = "tests/unit/test_addresses.py"

FAULTS = (
    Fault(
        "aidb sql: what was replaced meanwhile counts as indexed",
        (
            (
                "backends/sql/knowledge_store.py",
                "if now.get(one.document.id) == one.document]",
                "if now.get(one.document.id)]",
            ),
        ),
        (_STORE, "-k", "replaced_while"),
    ),
    Fault(
        "aidb sql: a vector that comes while the index is filled is forgotten",
        (
            (
                "backends/sql/knowledge_vectors.py",
                "case((KNOWN, VECTOR_KNOWN), else_=literal(BY_WORDS))",
                "literal(BY_WORDS)",
            ),
        ),
        (_STORE, "-k", "comes_while"),
    ),
    Fault(
        "aidb sql: a chunk that has moved stays as it is in the index",
        (
            (
                "backends/sql/knowledge_rows.py",
                'PLACE = ("ordinal", "start", "end", "first_line", "last_line", "page")',
                "PLACE = ()",
            ),
        ),
        (_STORE,),
    ),
    Fault(
        "aidb sql: metadata changes without the index",
        (
            (
                "backends/sql/knowledge_rows.py",
                '("project", "path", "collection", "metadata", "media")',
                '("project", "path", "collection")',
            ),
        ),
        (_STORE, "-k", "index_says_of"),
    ),
    Fault(
        "aidb sql: a vector of another model is as good",
        (
            (
                "backends/sql/knowledge_rows.py",
                "embedding.c.digest == chunk.c.digest, embedding.c.stamp == stamp.id",
                "embedding.c.digest == chunk.c.digest, embedding.c.stamp != ''",
            ),
        ),
        (_STORE, "-k", "another_model"),
    ),
    Fault(
        "aidb sql: how far all have a vector is remembered for ever",
        (
            (
                "backends/sql/knowledge_store.py",
                "if done is not None and done.texts == texts else",
                "if done is not None else",
            ),
        ),
        (_STORE, "-k", "wherever_its_digest or another_process"),
    ),
    Fault(
        "aidb sql: a vector of any length is kept",
        (
            (
                "backends/sql/knowledge_vectors.py",
                "if len(vector) != stamp.dimension:",
                "if len(vector) < 1:",
            ),
        ),
        (_STORE, "-k", "refused_whole"),
    ),
    Fault(
        "aidb sql: a path prefix is a pattern",
        (
            (
                "backends/sql/full_text.py",
                "func.substr(document.c.path, 1, len(prefix)) == prefix",
                'document.c.path.like(prefix + "%")',
            ),
        ),
        (_STORE, "-k", "keeps_to_where"),
    ),
    Fault(
        "aidb sql: metadata is looked for as text",
        (
            (
                "backends/sql/full_text.py",
                "    if not sqlite:\n",
                "    if sqlite:\n        return document.c.metadata.contains(value)\n    if not sqlite:\n",
            ),
        ),
        (_STORE, "-k", "whatever_it_holds"),
    ),
    Fault(
        "aidb sql: signs stay in what PostgreSQL looks for",
        (
            (
                "backends/sql/full_text.py",
                """f'"{term}"'.replace("_", " ")""",
                """f'"{term}"'""",
            ),
            (
                "backends/sql/migrations/0001_first_tables.py",
                'signs = "!\\"#$%&\'\'()*+,-./:;<=>?@[\\\\]^_`{|}~"',
                'signs = "~"',
            ),
            (
                "backends/sql/full_text.py",
                'SIGNS = "!\\"#$%&\'\'()*+,-./:;<=>?@[\\\\]^_`{|}~"',
                'SIGNS = "~~"',
            ),
        ),
        (_STORE, "-k", "inside_of_names"),
    ),
    Fault(
        "aidb sql: writers of PostgreSQL do not wait for each other",
        (("backends/sql/database.py", "if not self.is_sqlite:", "if False:"),),
        (_STORE, "-k", "concurrent or all_kinds"),
    ),
    Fault(
        "aidb sql: a skill that is the same has changed",
        (
            (
                "backends/sql/skill_rows.py",
                ", where=schema.skill.c.body != body",
                "",
            ),
        ),
        (_STORE, "-k", "skill"),
    ),
    Fault(
        "aidb sql: a NUL is left to PostgreSQL",
        (
            (
                "backends/sql/postgresql.py",
                'obj.replace("\\0", "\\ufffd") if "\\0" in obj else obj',
                "obj",
            ),
        ),
        (_SERVER, "-k", "nul"),
    ),
    Fault(
        "aidb sql: a silent server is waited for",
        (
            (
                "backends/sql/postgresql.py",
                "            limit.reschedule(loop.time())",
                "            pass",
            ),
        ),
        (_SERVER, "-k", "frozen"),
    ),
    Fault(
        "aidb sql: a slow statement is cut off",
        (
            (
                "backends/sql/postgresql.py",
                "asked.exception() is not None or asked.result():",
                "asked.exception() is not None:",
            ),
        ),
        (_SERVER, "-k", "takes_long"),
    ),
    Fault(
        "aidb sql: a connection is waited for as long as it takes",
        (
            (
                "backends/sql/postgresql.py",
                "async with asyncio.timeout(CONNECT_S):",
                "async with asyncio.timeout(None):",
            ),
        ),
        (_SERVER, "-k", "frozen"),
    ),
    Fault(
        "aidb sql: work goes on for who has hung up",
        (
            (
                "backends/sql/postgresql.py",
                '("client_connection_check_interval", "2s"),',
                "",
            ),
        ),
        (_SERVER, "-k", "gives_up"),
    ),
    Fault(
        "aidb sql: a read is of several moments",
        (
            (
                "backends/sql/database.py",
                'isolation_level="REPEATABLE READ", postgresql_readonly=True',
                'isolation_level="READ COMMITTED"',
            ),
        ),
        (_SERVER, "-k", "one_moment"),
    ),
    Fault(
        "aidb sql: text is ordered as the language of the database has it",
        (
            (
                "backends/sql/migrations/0004_knowledge.py",
                '    if op.get_bind().dialect.name == "postgresql":\n        _compare_as_bytes()',
                "",
            ),
        ),
        (_SERVER, "-k", "ordered_by_bytes"),
    ),
    Fault(
        "aidb sql: a database that holds not every text is taken",
        (("backends/sql/postgresql.py", 'if encoding != "UTF8":', "if False:"),),
        (_SERVER, "-k", "cannot_hold"),
    ),
    Fault(
        "aidb sql: a wrong password is an outage",
        (
            (
                "backends/sql/postgresql.py",
                'r"password authentication failed|no password',
                'r"no password',
            ),
        ),
        (_SERVER, "-k", "named_with_the_setting"),
    ),
    Fault(
        "aidb sql: four processes migrate PostgreSQL at once",
        (
            (
                "backends/sql/migrate.py",
                'text("SELECT pg_advisory_xact_lock(:key)")',
                'text("SELECT :key + 0")',
            ),
        ),
        ("tests/contracts/test_migrations.py", "-k", "four_processes"),
    ),
    Fault(
        "aidb sql: texts of before have no digest",
        (
            (
                "backends/sql/migrations/0004_knowledge.py",
                '"sum": _digest(row.heading, row.text)',
                '"sum": ""',
            ),
        ),
        ("tests/contracts/test_migrations.py", "-k", "before_the_vectors"),
    ),
    Fault(
        "aidb sql: options of a database URL are anybody's",
        (
            (
                "model/network.py",
                "if options.keys() - _POSTGRESQL_OPTIONS:",
                "if False:",
            ),
        ),
        (_URLS, "-k", "database_url"),
    ),
    Fault(
        "aidb sql: a password of a database is shown",
        (
            (
                "model/network.py",
                "{parts.username or ''}:***@{host}",
                "{parts.username or ''}:{parts.password}@{host}",
            ),
        ),
        (_URLS, "-k", "database_urls_that_work"),
    ),
    Fault(
        "aidb sql: the engine writes on while the process ends",
        (
            (
                "backends/dbos/engine.py",
                "            database._retry_connection_errors = False",
                "            pass",
            ),
        ),
        ("tests/system/test_on_postgresql.py", "-k", "ends_though"),
    ),
)
