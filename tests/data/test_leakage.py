"""Leakage: planted overlaps are found by their kind, clean text raises no alarm, and it is fast."""

from __future__ import annotations

import random
import time

import pytest

from uplift.core.values import Message, Origin, Sample
from uplift.data.formats import sample_id
from uplift.data.leakage import GRAM, Leakage, find_leakage

WORDS = [f"w{index}" for index in range(3000)]


def sample(text: str, line: int) -> Sample:
    return Sample(sample_id(text), Origin("f", line), text=text)


def texts(rng: random.Random, count: int, low: int = 5, high: int = 60) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(low, high))) for _ in range(count)]


def of(train: list[str], test: list[str]) -> Leakage:
    return find_leakage([sample(t, i) for i, t in enumerate(train)], [sample(t, i) for i, t in enumerate(test)])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_planted_leaks(share: float, seed: int) -> None:
    rng = random.Random(seed)
    train, test = texts(rng, 3000, 20), texts(rng, 1000, 20)
    count = max(1, int(share * len(test)) // 3)
    where = rng.sample(range(len(test)), 3 * count)
    for index in where[:count]:
        test[index] = rng.choice(train)
    for index in where[count : 2 * count]:
        test[index] = "  " + rng.choice(train).upper().replace(" ", "\n")
    for index in where[2 * count :]:
        words = rng.choice(train).split()
        start = rng.randint(0, len(words) - GRAM)
        run = ", ".join(words[start : start + GRAM])
        test[index] = f"{texts(rng, 1)[0]} ({run})! {texts(rng, 1)[0]}"
    found = of(train, test)
    assert (found.exact, found.normalized, found.ngram) == (count, 2 * count, 3 * count)
    assert found.tested == 1000 and found.share == pytest.approx(3 * count / 1000)
    assert 1 <= len(found.examples) <= 5


def test_clean_text_is_clean() -> None:
    rng = random.Random(9)
    assert of(texts(rng, 5000), texts(rng, 2000)).ngram == 0


def test_the_rule_needs_thirteen_words_or_a_whole_short_text() -> None:
    long = [f"a{i}" for i in range(40)]
    other = [f"b{i}" for i in range(40)]
    twelve, thirteen = [*long[5:17], *other], [*long[5:18], *other]
    assert of([" ".join(long)], [" ".join(twelve)]).ngram == 0
    assert of([" ".join(long)], [" ".join(thirteen)]).ngram == 1
    assert of(["Not bad, really."], ["not BAD really", "not bad", "really not bad"]).ngram == 1
    assert of(["..."], ["...", "!?!"]).exact == 1


def test_runs_do_not_cross_texts() -> None:
    words = [f"a{i}" for i in range(GRAM)]
    assert of([" ".join(words[:7]), " ".join(words[7:])], [" ".join(words)]).ngram == 0


def test_answers_and_questions_of_the_task_do_not_count() -> None:
    ask = " ".join(f"word{i}" for i in range(20))
    make = lambda text: Sample(  # noqa: E731
        sample_id(text), Origin("f", 1), (Message("user", f"{text} {ask}"), Message("assistant", ask, learn=True)),
        extras={"content": text},
    )  # fmt: skip
    assert find_leakage([make("one")], [make("two")]).ngram == 0


def test_nothing_to_compare() -> None:
    assert of([], ["a"]) == Leakage(tested=1)
    assert of(["a"], []) == Leakage()


def test_ten_thousand_rows_are_fast() -> None:
    rng = random.Random(1)
    train, test = texts(rng, 9000), texts(rng, 1000)
    start = time.process_time()
    of(train, test)
    assert time.process_time() - start < 10  # about half a second; the margin is for crowded machines
