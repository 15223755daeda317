"""datatrove's side of ``bench.clean``, run by the interpreter of an environment of its own: it imports nothing of Uplift.

Its blocks are driven in one process on documents in memory, as its local executor drives them for one task; what they write
between stages goes to a temporary folder, as it must. Seconds are those of the processor.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups
from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature


class PlainWords:
    """Words are what stands between white space: the quickest tokenizer there is."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def whole(document: Document) -> str:
    return document.text


def timed(action: Callable[[], Any]) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin


def exact(documents: list[Document], folder: Path) -> dict[str, float]:
    config = ExactDedupConfig(content_getter=whole, only_dedup_in_index=False)
    signatures, found = str(folder / "exact"), str(folder / "exact-found")
    left: list[Document] = []

    def work() -> None:
        ExactDedupSignature(signatures, config).run(iter(documents))
        ExactFindDedups(signatures, found, config=config).run()
        left.extend(ExactDedupFilter(found, config=config).run(iter(documents)))

    return {"exact": timed(work), "exact left": len(left)}


def near(documents: list[Document], folder: Path, plain: bool) -> dict[str, float]:
    first = MinhashDedupSignature(str(folder / "signatures"))
    if plain:
        first.word_tokenizer = PlainWords()
    else:
        first.get_shingles("to load the tokenizer takes seconds")
    names = [str(folder / name) for name in ("signatures", "buckets", "clusters")]
    left: list[Document] = []

    def cluster() -> None:
        for bucket in range(14):
            MinhashDedupBuckets(names[0], names[1], only_dedup_in_index=False).run(rank=bucket, world_size=14)
        MinhashDedupCluster(names[1], names[2]).run()
        left.extend(MinhashDedupFilter(names[2]).run(iter(documents)))

    return {"signatures": timed(lambda: first.run(iter(documents))), "clusters": timed(cluster), "near left": len(left)}


def main() -> None:
    """Arguments: a file of JSON lines with ``text``, and ``spacy`` (datatrove's own choice for English) or ``plain``."""
    with open(sys.argv[1], encoding="utf-8") as file:
        documents = [Document(text=json.loads(line)["text"], id=str(number)) for number, line in enumerate(file)]
    with tempfile.TemporaryDirectory() as folder:
        found = exact(documents, Path(folder)) | near(documents, Path(folder), plain=sys.argv[2] == "plain")
    print(json.dumps(found | {"version": importlib.metadata.version("datatrove")}))


if __name__ == "__main__":
    main()
