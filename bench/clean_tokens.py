"""``python -m bench.clean --tokens``: rows to token ids as a text training set is encoded, beside the tokenizer alone.

The limit is ``encode_batch`` of the `tokenizers` library with the same file on the same texts, with the same number of threads.
Uplift does more with the same texts: it looks for control tokens in them, cuts long ones into passages, and makes weights.
The two take turns, and the median of each counts.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from bench.clean_corpus import documents
from uplift.core.values import Encoded, Origin, Sample
from uplift.data.chat import Encoder
from uplift.data.passages import passages

MODEL = "smollm2-135m-instruct"
LEAST = 0.7
"""Share of the limit that must be reached at the default length."""
LENGTHS = (1024, 256)
"""Tokens a sample may have: the default of recipes, and a length at which most texts are cut."""
COUNTS = ("samples", "limit tokens", "uplift tokens")
TURNS = 3
BATCH = 1000


def packaged_tokenizer() -> tuple[Any, Path]:
    """The packaged model's tokenizer, and its file."""
    from uplift.core.model_section import PackageModel
    from uplift.model.opening import load_tokenizer, locate

    folder = locate(PackageModel(use="package", name=MODEL), Path()).folder
    return load_tokenizer(folder, []), folder / "tokenizer.json"


def alone(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of all texts, without anything around it."""
    batches = (texts[at : at + BATCH] for at in range(0, len(texts), BATCH))
    return [found.ids for batch in batches for found in tokenizer.encode_batch(list(batch), add_special_tokens=False)]


def path(encoder: Encoder, samples: Sequence[Sample]) -> list[Encoded]:
    """The ids of all samples, as training gets them."""
    return encoder.encode_all(passages(samples, encoder))


def timed(action: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of the processors, and what came out."""
    gc.collect()
    begin, used = time.perf_counter(), time.process_time()
    found = action()
    return time.perf_counter() - begin, time.process_time() - used, found


def compared(tokenizer: Any, file: Path, texts: Sequence[str], length: int, turns: int) -> dict[str, float]:
    """Megabytes a second of both, and how many tokens each found."""
    limit, encoder = Tokenizer.from_file(str(file)), Encoder(tokenizer, length, "causal")
    samples = [Sample(str(number), Origin("texts", number), text=text) for number, text in enumerate(texts)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    spent: list[tuple[float, ...]] = []
    for _ in range(turns):
        clock, used, ids = timed(lambda: alone(limit, texts))
        own_clock, own_used, encoded = timed(lambda: path(encoder, samples))
        spent.append((clock, used, own_clock, own_used))
    rates = [megabytes / statistics.median(column) for column in zip(*spent, strict=True)]
    names = ("limit", "limit by processor time", "uplift", "uplift by processor time")
    found = dict(zip(names, rates, strict=True))
    found |= {"ratio": rates[2] / rates[0], "ratio by processor time": rates[3] / rates[1], "samples": len(encoded)}
    special = set(tokenizer.all_special_ids)  # those that begin and end samples are no tokens of a text
    counts = [sum(token not in special for each in rows for token in each) for rows in (ids, (item.ids for item in encoded))]
    return found | {"limit tokens": counts[0], "uplift tokens": counts[1]}


def show(found: dict[str, dict[str, float]], megabytes: float, threads: int) -> None:
    """A column for each length."""
    table = Table("", *(f"samples of {length} tokens" for length in found), title=f"{megabytes:.1f} MB, {threads} threads")
    for name in next(iter(found.values())):
        table.add_row(name, *(f"{each[name]:,.{0 if name in COUNTS else 2}f}" for each in found.values()))
    Console().print(table)


def benchmark(megabytes: float, threads: int, turns: int = TURNS) -> tuple[dict[str, Any], list[str]]:
    """Measure and print; the record, and what is slower than it must be. To be called before anything is tokenized."""
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    tokenizer, file = packaged_tokenizer()
    texts = list(documents(megabytes))
    found = {str(length): compared(tokenizer, file, texts, length, turns) for length in LENGTHS}
    show(found, megabytes, threads)
    ratio = found[str(LENGTHS[0])]["ratio"]
    missed = [f"{ratio:.2f} of the limit, {LEAST} wanted"] if ratio < LEAST else []
    return {"megabytes": megabytes, "documents": len(texts), "threads": threads, "tokens": found}, missed
