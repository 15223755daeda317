"""Words and runs of words as hashes: what counts as a word, and that each hash stands for its words alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from uplift.data.word_runs import BLOCK, TEXTS_BLOCK, KnownHashes, blocks, hash_runs, hash_wholes, hash_words


def of(text: str) -> list[int]:
    return hash_words([text]).hashes.tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, WORLD", "hello world"),
        ("(hello)\n\n—world…", "hello world"),
        ("snake_case", "snake case"),
        ("Café", "cafe"),
        ("caf\u0065\u0301", "CAFÉ"),
        ("na\u00adive zero\u200bwidth", "naive zerowidth"),
        ("ΟΔΟΣ", "οδός"),
        ("Straße", "STRAßE"),
        ("東京 都", "東京都"),
        ("\U0001f600\U0001f680", "\U0001f600 \U0001f680"),
    ],
)
def test_equal_words(one: str, other: str) -> None:
    assert of(one) == of(other) != []


@pytest.mark.parametrize(
    ("one", "other"), [("a b", "b a"), ("ab", "a b"), ("3 apples", "5 apples"), ("1.5", "1 6"), ("東京", "京東"), ("a", "aa")]
)
def test_different_words(one: str, other: str) -> None:
    assert of(one) != of(other)


@pytest.mark.parametrize("text", ["", " \n\t", "...!?", "\ud800", "\U000e0100", "+-*/", "\0"])
def test_texts_without_words(text: str) -> None:
    words = hash_words(["a", text, "b"])
    assert words.counts.tolist() == [1, 0, 1]
    assert hash_runs(words, 3)[1].tolist() == [0, 2]


def test_words_are_those_of_a_plain_reading() -> None:
    rng = random.Random(0)
    letters = "abcXYZ019 éÉß\n.,_-中ไ\u0301\u200d\U0001f600"
    texts = ["".join(rng.choices(letters, k=rng.randint(0, 60))) for _ in range(2000)]
    words = hash_words(texts)
    meaning: dict[int, str] = {}
    for text, start, count in zip(texts, words.starts.tolist(), words.counts.tolist(), strict=True):
        plain = _plain_words(text)
        assert count == len(plain), text
        for number, word in zip(words.hashes[start : start + count].tolist(), plain, strict=True):
            assert meaning.setdefault(number, word) == word
    assert len(set(meaning.values())) == len(meaning) > 1000


def _plain_words(text: str) -> list[str]:
    """The definition of a word, letter by letter."""
    found, current = [], ""
    for letter in text:
        folded = unicodedata.normalize("NFD", letter.casefold()[0])[0]
        category = unicodedata.category(letter)
        if category in ("Mn", "Cf"):
            continue
        alone = category == "So" or letter in "中ไ"
        if category[0] in "LN" and not alone:
            current += folded
            continue
        found += [current] if current else []
        found += [letter] if alone else []
        current = ""
    return found + ([current] if current else [])


def test_a_text_has_the_same_hashes_in_any_company() -> None:
    rng = random.Random(1)
    texts = [" ".join(f"w{rng.randrange(500)}é" for _ in range(rng.randint(0, 40))) for _ in range(300)]
    whole = hash_words(texts)
    alone = [hash_words([text]).hashes for text in texts]
    assert np.array_equal(whole.hashes, np.concatenate(alone))
    runs, owners = hash_runs(whole, 5)
    for index, text in enumerate(texts):
        assert np.array_equal(runs[owners == index], hash_runs(hash_words([text]), 5)[0])


def test_runs_are_those_of_their_words() -> None:
    words = hash_words(["a b c d e", "c d e", "x", "", "b c d"])
    runs, owners = hash_runs(words, 3)
    assert owners.tolist() == [0, 0, 0, 1, 2, 4]
    abc, bcd, cde, same, x, again = runs.tolist()
    assert cde == same and bcd == again and len({abc, bcd, cde, x}) == 4
    wholes = hash_wholes(words).tolist()
    assert wholes[1] == cde and wholes[2] == x and wholes[4] == bcd


def test_hashes_do_not_depend_on_the_process() -> None:
    code = "from uplift.data.word_runs import hash_words; print(hash_words(['Some words, é']).hashes.tolist())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{of('Some words, é')}\n"}


def test_long_texts_are_cut_between_words() -> None:
    words = [f"word{number}" for number in range(2 * BLOCK // 5)]
    text = " ".join(words)
    assert len(text) > 3 * BLOCK
    assert of(text) == [number for start in range(0, len(words), 1000) for number in of(" ".join(words[start : start + 1000]))]


@pytest.mark.parametrize("text", ["x" * 10**6, "é" * 10**6, "ab " * 350_000, "\n" * 10**6, "\u0301" * 10**6, "中" * 10**5])
def test_odd_long_texts_take_no_time(text: str) -> None:
    begin = time.process_time()
    hash_runs(hash_words([text]), 13)
    assert time.process_time() - begin < 3  # a few hundredths of a second; the margin is for crowded machines


def test_blocks_are_bounded_and_complete() -> None:
    texts = ["a" * (TEXTS_BLOCK // 3)] * 7 + ["b" * (2 * TEXTS_BLOCK)] + ["c"] * 5
    parts = list(blocks(texts))
    assert [text for part in parts for text in part] == texts
    assert all(len(part) == 1 or sum(map(len, part)) <= TEXTS_BLOCK for part in parts)
    assert list(blocks([])) == []


def test_known_hashes_are_found_and_no_others() -> None:
    rng = np.random.default_rng(0)
    numbers = np.unique(rng.integers(0, 2**64, 5000, dtype=np.uint64))
    known, strange = numbers[::2], numbers[1::2]
    index = KnownHashes(np.concatenate([known, known[:10]]))
    mixed = rng.permutation(np.concatenate([known, strange]))
    places, which = index.find(mixed)
    assert np.array_equal(index.hashes[which], mixed[places]) and len(places) == len(known)
    assert all(len(part) == 0 for part in KnownHashes(known[:0]).find(mixed))
    assert all(one < other for one, other in pairwise(index.hashes.tolist()))
