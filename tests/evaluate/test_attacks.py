"""Changes of a text and the greedy search: budgets, the similarity filter, and what it keeps. No model is in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from uplift.data import words as wording
from uplift.evaluate import attacks
from uplift.evaluate.attacks import Answer, Found, Limits, Words, search
from uplift.evaluate.robustness import advance

TEXT = "The old film was truly wonderful, and I'd see it again!"


def carry_out(
    judge: Callable[[str], Answer],
    options: Callable[[int], Sequence[str]],
    limits: Limits,
    text: str = TEXT,
    order: Sequence[int] | None = None,
    spent: int = 0,
) -> tuple[Found, list[str]]:
    """How a search ended, and every text that was judged on its way."""
    asked: list[str] = []

    def ask(batch: list[tuple[int, str]]) -> list[Answer]:
        asked.extend(text for _, text in batch)
        return [judge(text) for _, text in batch]

    found = advance({0: search(text, judge(text), options, limits, random.Random(0), order, spent)}, ask)
    return found[0], asked


def letters(wanted: str) -> Callable[[str], Answer]:
    """A judge whose lead is the number of a letter, less 2."""
    return lambda text: Answer(text.count(wanted) - 2.0, text.count(wanted) > 2)


# -- changes -----------------------------------------------------------------------------------------------------------
def test_words_are_found_changed_and_dropped() -> None:
    words = Words(TEXT)
    assert [words[i] for i in range(len(words))] == [
        *("The", "old", "film", "was", "truly", "wonderful", "and", "I'd", "see", "it", "again"),
    ]
    assert words.changed == TEXT and words.similarity == 1
    assert words.with_change(2, "book").changed == TEXT.replace("film", "book")
    assert words.with_change(5, "").changed == "The old film was truly, and I'd see it again!"
    assert words.with_change(0, "").changed == "old film was truly wonderful, and I'd see it again!"
    assert words.with_change(2, "book").with_change(2, "flim").changed == TEXT.replace("film", "flim")
    assert Words("good").with_change(0, "").changed == ""
    assert len(Words("... 12 !")) == 0


def test_similarity_is_the_smaller_share() -> None:
    words = Words("aaaa bb cc dd")
    assert words.with_change(1, "bx").similarity == pytest.approx(0.75)  # 1 of 4 words, 1 of 10 letters
    assert words.with_change(0, "").similarity == pytest.approx(0.6)  # 1 of 4 words, 4 of 10 letters
    assert words.with_change(0, "").share_changed == 0.25
    known = (("", "abc", 3), ("kitten", "sitting", 3), ("form", "from", 2), ("same", "same", 0))
    assert all(attacks.edit_distance(a, b) == attacks.edit_distance(b, a) == distance for a, b, distance in known)


def test_keys_that_touch_touch_each_other() -> None:
    assert set(wording.keyboard_neighbours("g")) == set("fhtyvb") and wording.keyboard_neighbours("é") == ""
    for a in "abcdefghijklmnopqrstuvwxyz":
        assert all(a in wording.keyboard_neighbours(b) for b in wording.keyboard_neighbours(a))


@pytest.mark.parametrize("seed", range(20))
def test_a_typo_is_one_letter_and_a_swap_two(seed: int) -> None:
    for word in ("Wonderful", "film", "OLD", "I'd"):
        for typo in wording.typos(word, random.Random(seed)):
            assert attacks.edit_distance(word, typo) == 1 and len(typo) == len(word)
            assert [letter.isupper() for letter in typo] == [letter.isupper() for letter in word]
        swapped = wording.swaps(word, random.Random(seed))
        assert all(sorted(each) == sorted(word) and each != word for each in swapped)
        assert len(set(swapped)) == len(swapped) <= wording.OPTIONS
    assert wording.swaps("aaa", random.Random(seed)) == [] and wording.typos("日本", random.Random(seed)) == []


# -- search ------------------------------------------------------------------------------------------------------------
def mistyped(place: int) -> list[str]:
    return wording.typos(Words(TEXT)[place], random.Random(place))


def dropped(place: int) -> list[str]:
    return [""]


@pytest.mark.parametrize("queries", [1, 2, 3, 5, 8, 13, 30, 200])
@pytest.mark.parametrize("options", [mistyped, dropped])
@pytest.mark.parametrize("wanted", ["e", "t", "z"])
def test_the_budget_holds_and_is_counted(queries: int, options: Callable[[int], list[str]], wanted: str) -> None:
    for order, spent in ((None, 0), (range(11), 1)):
        found, asked = carry_out(letters(wanted), options, Limits(queries, 0.0), order=order, spent=spent)
        assert len(asked) + spent == found.queries <= queries
        assert len(set(asked)) == len(asked), "a text was paid for twice"


@pytest.mark.parametrize("least", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_every_result_is_similar_enough(least: float) -> None:
    for options in (mistyped, dropped):
        found, _ = carry_out(letters("e"), options, Limits(100, least))
        assert found.similarity >= least and found.words.similarity >= least
        assert found.similarity == found.words.similarity
    strict = Limits(100, 0.5, lambda texts: [0.4] * len(texts))
    found, _ = carry_out(letters("e"), mistyped, strict)
    assert found.text == TEXT and not found.broken, "the second measure of similarity must hold as well"


def test_nothing_is_kept_against_a_constant_model() -> None:
    for options in (mistyped, dropped):
        found, asked = carry_out(lambda text: Answer(0.5, True), options, Limits(40, 0.0))
        assert not found.broken and found.text == TEXT and found.words.share_changed == 0 and asked


def test_the_best_way_is_taken_first_and_success_ends_it() -> None:
    """A judge that counts `good` words: two must go, and only they are worth a query after the ranking."""
    text = "a good and good thing on top of it"
    judge = lambda text: Answer(text.split().count("good") - 0.5, text.split().count("good") > 0)  # noqa: E731
    found, asked = carry_out(judge, lambda place: ["bad"], Limits(20, 0.0), text)
    assert found.broken and found.text == "a bad and bad thing on top of it"
    assert found.queries == len(asked) == 9 + 2  # each word left out once, then the two
    known, _ = carry_out(judge, lambda place: ["bad"], Limits(20, 0.0), text, order=[1, 3], spent=1)
    assert known.text == found.text and known.queries == 3


def test_a_dropped_word_that_was_measured_is_not_asked_again() -> None:
    judge = lambda text: Answer(float("film" in text) - 0.5, "film" in text)  # noqa: E731
    found, asked = carry_out(judge, dropped, Limits(40, 0.0))
    assert found.broken and found.queries == len(asked) == 11 and "film" not in found.text


def test_one_word_is_always_left() -> None:
    found, _ = carry_out(lambda text: Answer(float(len(text)), True), dropped, Limits(100, 0.0), "one two three")
    assert len(Words(found.text)) == 1
    alone, asked = carry_out(lambda text: Answer(float(len(text)), True), dropped, Limits(100, 0.0), "one")
    assert alone.text == "one" and asked == []


def test_searches_side_by_side_end_as_alone() -> None:
    judge, limits = letters("e"), Limits(30, 0.3)
    texts = [TEXT, "seven eleven beetles", "e e e e", "nothing"]

    def start(text: str) -> attacks.Search:
        words = Words(text)
        return search(
            text, judge(text), lambda place: wording.swaps(words[place], random.Random(1)) + [""], limits, random.Random(2)
        )

    together = advance({i: start(text) for i, text in enumerate(texts)}, lambda asked: [judge(text) for _, text in asked])
    for i, text in enumerate(texts):
        assert advance({0: start(text)}, lambda asked: [judge(text) for _, text in asked])[0] == together[i]
