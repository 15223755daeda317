"""datatrove's side of ``bench.clean --pipeline``, run by the interpreter of an environment of its own.

Arguments: a folder of JSON lines, a folder to work in, the number of workers, and ``spacy`` (its own choice for English) or
``plain`` (words are what stands between white space, sentences end with a mark). Everything runs as its documentation has it:
local executors, one after the other, whose processes import this module again.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import datatrove.pipeline.dedup.minhash as minhash
import datatrove.utils.word_tokenizers as word_tokenizers
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter

WORDS = "BENCH_CLEAN_WORDS"
"""Environment variable that the worker processes read: `plain` or `spacy`."""
BUCKETS = 14
END = re.compile(r"(?<=[.!?])\s+")


class PlainWords:
    """The quickest tokenizer there is."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        edges = [0, *(match.end() for match in END.finditer(text)), len(text)]
        return list(zip(edges, edges[1:], strict=False))


def plain_words(language: str) -> PlainWords:
    return PlainWords()


if os.environ.get(WORDS) == "plain":
    word_tokenizers.load_word_tokenizer = plain_words
    minhash.load_word_tokenizer = plain_words


def carry_out(steps: list[Any], folder: Path, name: str, tasks: int, workers: int) -> tuple[float, list[Any]]:
    """Seconds by the clock, and what its steps say of themselves, all tasks together."""
    begin = time.perf_counter()
    stats = LocalPipelineExecutor(
        steps, tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder / "logs" / name)
    ).run()
    return time.perf_counter() - begin, stats.stats


def writer(folder: Path) -> JsonlWriter:
    return JsonlWriter(str(folder), output_filename="${rank}.jsonl", compression=None)


def seconds(step: Any) -> float:
    return float(step.time_stats.total)


def characters(step: Any) -> float:
    return float(step.stats["doc_len"].total)


def pipeline(documents: str, folder: Path, workers: int) -> dict[str, Any]:
    """Stages as Uplift has them: seconds of work (all processes together), characters that came in, documents that are left."""
    filtered, names = folder / "filtered", [str(folder / name) for name in ("signatures", "buckets", "clusters")]
    filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
    first_steps = [JsonlReader(documents), *filters, PIIFormatter(), writer(filtered)]
    first_clock, first = carry_out(first_steps, folder, "filter", workers, workers)
    signing_steps = [JsonlReader(str(filtered)), minhash.MinhashDedupSignature(names[0])]
    signing_clock, signing = carry_out(signing_steps, folder, "signatures", workers, workers)
    bucket_steps = [minhash.MinhashDedupBuckets(names[0], names[1], only_dedup_in_index=False)]
    bucket_clock, buckets = carry_out(bucket_steps, folder, "buckets", BUCKETS, workers)
    cluster_clock, clusters = carry_out([minhash.MinhashDedupCluster(names[1], names[2])], folder, "clusters", 1, 1)
    last_steps = [JsonlReader(str(filtered)), minhash.MinhashDedupFilter(names[2]), writer(folder / "cleaned")]
    last_clock, last = carry_out(last_steps, folder, "cleaned", workers, workers)
    signatures = seconds(signing[1]) - seconds(signing[0])  # what it measures contains the reading
    return {
        "stages": {
            "reading": {"seconds": seconds(first[0]), "characters": characters(first[0])},
            "filter": {"seconds": sum(seconds(step) for step in first[1:5]), "characters": characters(first[0])},
            "pii": {"seconds": seconds(first[5]), "characters": characters(first[4])},
            "dedup": {
                "seconds": signatures + seconds(buckets[0]) + seconds(clusters[0]) + seconds(last[1]),
                "characters": characters(first[4]),
            },
            "between passes": {"seconds": seconds(first[6]) + seconds(signing[0]) + seconds(last[0])},
            "writing": {"seconds": seconds(last[2])},
        },
        "filters": {type(step).__name__: seconds(stats) for step, stats in zip(filters, first[1:5], strict=True)},
        "executors": [first_clock, signing_clock, bucket_clock, cluster_clock, last_clock],
        "left": {"filter": first[4].stats["forwarded"].total, "dedup": last[1].stats["forwarded"].total},
    }


def main() -> None:
    """Print what was found as the last line."""
    documents, folder, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    found = pipeline(documents, folder, workers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
