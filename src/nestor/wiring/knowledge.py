"""AIDB's parts: where texts, vectors and answers stand, what reads and what embeds."""

import hashlib
import importlib.util
from contextlib import AsyncExitStack

from nestor.aidb.service import Aidb
from nestor.aidb.spool import Spool
from nestor.backends.documents.children import DocumentChildren
from nestor.backends.embeddings.choose import embedder_of, refuse_embeddings
from nestor.backends.openai.resolver import model_session
from nestor.backends.sql.database import Database
from nestor.backends.sql.identity import identity_of
from nestor.backends.sql.knowledge_store import SqlKnowledgeStore
from nestor.errors import Misconfigured
from nestor.model.network import without_password
from nestor.ports.answer_cache import AnswerCache
from nestor.ports.embedder import Embedder
from nestor.ports.event_log import EventLog
from nestor.ports.search_index import SearchIndex
from nestor.resilience.answer_cache import MemoryAnswers
from nestor.settings import Settings
from nestor.telemetry.learning_client import LearningClient


def refuse_knowledge(settings: Settings) -> None:
    """Raise ``Misconfigured`` for settings that AIDB cannot start with; makes nothing."""
    if _embeds(settings):
        refuse_embeddings(
            settings.embeddings_model, settings.embeddings_base_url, settings.home
        )
    if settings.qdrant_url and importlib.util.find_spec("qdrant_client") is None:
        why = "needs the package qdrant-client: pip install 'nestor[qdrant]'"
        raise Misconfigured(f"NESTOR_QDRANT_URL: {why}")


async def aidb_of(
    stack: AsyncExitStack, settings: Settings, database: Database, event_log: EventLog
) -> tuple[Aidb, Spool]:
    """Open AIDB and start it; also where documents wait that are being sent."""
    index = await _index(settings, database)
    stack.push_async_callback(index.close)
    embedder = await open_embedder(stack, settings)
    shared = _shared(settings)
    if shared is not None:
        stack.push_async_callback(shared.close)
    reader = await stack.enter_async_context(DocumentChildren())
    spool = Spool(settings.home / "run" / "spool")
    spool.open()
    aidb = Aidb(
        SqlKnowledgeStore(database),
        index,
        LearningClient(event_log, "aidb"),
        reader=reader,
        embedder=embedder,
        shared=shared,
        space=_space(settings),
    )
    stack.push_async_callback(aidb.stop)
    await aidb.start()
    return aidb, spool


async def _index(settings: Settings, database: Database) -> SearchIndex:
    if settings.qdrant_url is None:
        from nestor.backends.qdrant.edge import QdrantEdgeIndex  # noqa: PLC0415 - heavy

        return await QdrantEdgeIndex.open(settings.home / "qdrant")
    from nestor.backends.qdrant.server import QdrantServerIndex  # noqa: PLC0415 - an extra

    key = settings.qdrant_api_key
    return QdrantServerIndex.connect(
        settings.qdrant_url,
        api_key=key.get_secret_value() if key else None,
        # By the database: it is what the index is filled from, and emptied to fit.
        alias=f"nestor-{await identity_of(database)}",
    )


async def open_embedder(stack: AsyncExitStack, settings: Settings) -> Embedder | None:
    """Make the embedder that the settings name, closed with ``stack``; None: they name none."""
    if not _embeds(settings):
        return None
    session = await stack.enter_async_context(model_session())
    key = settings.embeddings_api_key
    embedder = embedder_of(
        settings.embeddings_model,
        base_url=settings.embeddings_base_url,
        api_key=key.get_secret_value() if key else None,
        home=settings.home,
        session=session,
        query_prefix=settings.embeddings_query_prefix,
        text_prefix=settings.embeddings_text_prefix,
        timeout_s=settings.model_timeout_s,
    )
    if embedder is not None:
        stack.push_async_callback(embedder.close)
    return embedder


def _embeds(settings: Settings) -> bool:
    """A recording holds no vectors: what is replayed asks no server for them."""
    replayed = settings.replay_cassette is not None
    return bool(settings.embeddings_model) and not (
        replayed and not settings.embeds_in_process
    )


def _shared(settings: Settings) -> AnswerCache | None:
    if settings.redis_url is None:
        return None
    from nestor.backends.redis.answer_cache import RedisAnswers  # noqa: PLC0415 - an extra
    from nestor.backends.redis.connection import RedisConnection  # noqa: PLC0415

    url = settings.redis_url.get_secret_value()
    # AIDB's own memory comes before it: a second one here would hold the same.
    return RedisAnswers(
        RedisConnection(url, user="knowledge answers"), local=MemoryAnswers(0)
    )


def _space(settings: Settings) -> str:
    """Tell one knowledge base from others that use the same Redis."""
    named = f"{without_password(settings.database)} {settings.home}"
    if not settings.database.startswith("sqlite"):
        named = without_password(settings.database)
    return hashlib.sha256(named.encode()).hexdigest()[:16]
