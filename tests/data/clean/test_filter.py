"""The rules of C4, Gopher and FineWeb on texts worked by hand, their settings, and the same verdict the second time."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from uplift.core.errors import RecipeError
from uplift.core.prepare_section import Filter
from uplift.data.clean.filter import RULES, RuleFilter
from uplift.data.clean.measures import Measures
from uplift.data.clean.step import Verdict

LINE = "The old mill stood by the river for a hundred years."
PROSE = "\n".join(
    [
        "When the water rose in spring, the people of the village carried their goods to the church on the hill.",
        "Nobody could say how long the dam would hold, and the miller had left with his horses the night before.",
        "They waited, sang a little, and shared the bread that the baker's wife had saved from her shop.",
        "On the third morning the rain stopped; a boy climbed the tower to look at what was left of the fields.",
        "He came down smiling, because the bridge was still there, and with it the only road to be used by carts.",
    ]
)


def judge(text: str, *, only: str = "", **settings: Any) -> Verdict:
    """The verdict of one rule, or of the settings."""
    if only:
        rules = [RULES[only].set]
        off = [name for name, rule in RULES.items() if rule.set in rules and name not in (only, "c4_bad_words")]
        settings = {"rules": rules, "off": off, **settings}
    return RuleFilter(Filter(**settings)).judge(0, text)


def test_good_prose_passes_all_rules_unchanged() -> None:
    verdict = judge(PROSE)
    assert verdict.text == PROSE and not verdict.counts and verdict.edits == ()


@pytest.mark.parametrize(
    "rule, line",
    [
        ("c4_end_mark", "A line that has no mark at its end"),
        ("c4_end_mark", "A line that ends with three dots..."),
        ("c4_line_words", "Only four words here."),
        ("c4_javascript", "Please enable JavaScript to see the comments."),
        ("c4_policy", "Read our Privacy Policy for all the details."),
        ("c4_long_word", "One word of it is " + "x" * 1001 + " far too long."),
    ],
)
def test_lines_that_c4_takes_out(rule: str, line: str) -> None:
    text = f"{LINE}\n{line}\n\n{LINE}\n{line}"
    verdict = judge(text, only=rule)
    assert verdict.text == f"{LINE}\n\n{LINE}" and verdict.counts == {rule: 2}
    assert judge(verdict.text, only=rule).text == verdict.text
    assert judge(line, only=rule).counts == {"empty": 1}


def test_edits_lead_from_the_old_text_to_the_new_one() -> None:
    chance = random.Random(5)
    pieces = [
        LINE,
        "",
        "no end mark",
        "Too short.",
        "A cited line [12] that stays here [edit].",
        "  ",
        "Nested [1[2]3] ones go away here.",
    ]
    for _ in range(500):
        text = "\n".join(chance.choices(pieces, k=chance.randint(1, 9)))
        verdict = judge(text, rules=["c4"], off=["c4_sentences"])
        if verdict.text is None:
            continue
        assert verdict.edits is not None
        rebuilt, at = [], 0
        for edit in verdict.edits:
            assert at <= edit.start <= edit.end <= len(text)
            rebuilt += [text[at : edit.start], edit.new]
            at = edit.end
        assert "".join([*rebuilt, text[at:]]) == verdict.text and sum(verdict.counts.values()) == len(verdict.edits)
        again = judge(verdict.text, rules=["c4"], off=["c4_sentences"])
        assert again.text == verdict.text and not again.counts, text
        assert "\n\n\n" not in verdict.text or "\n\n\n" in text.replace("  ", "")


def test_citations_go_out_of_lines() -> None:
    verdict = judge("It was built in 1850 [3] by two brothers.[citation needed]", only="c4_citations")
    assert verdict.text == "It was built in 1850 by two brothers." and verdict.counts == {"c4_citations": 2}


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
DIFFERENT = " ".join(f"{first}{second}" for first in WORDS for second in WORDS)  # 100 words, none twice


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        ("c4_lorem_ipsum", PROSE, f"{PROSE} Lorem ipsum dolor."),
        ("c4_curly_bracket", PROSE + "}", f"{PROSE} {{"),
        ("c4_sentences", "One ends. Another ends. So does this.", "One ends. So does this, Mr. Smith, e.g. here."),
        ("gopher_words_least", " ".join(["word"] * 50), " ".join(["word"] * 49) + " , . !"),
        ("gopher_words_most", "a " * 100_000, "a " * 100_001),
        ("gopher_word_length_least", "abc abc", "ab abc"),
        ("gopher_word_length_most", "a" * 10, "a" * 11),
        ("gopher_hashes", "# " + "a " * 9, "## " + "a " * 9),  # 1 of 10 tokens, 2 of 11
        ("gopher_ellipses", "... " + "a " * 9, "... … " + "a " * 9),
        ("gopher_bullets", "- a\n" * 9 + "a", "- a\n" * 19 + "a"),
        ("gopher_ellipsis_lines", "a...\n" * 3 + "a\n" * 7, "a...\n" * 4 + "a\n" * 6),
        ("gopher_alphabetic", "a a a a 1", "a a a 1"),
        ("gopher_stop_words", "The end of it", "the the the"),
        ("gopher_repeated_lines", "a\nb\nc\nd\ne\nf\ng\na\na\na", "a\nb\nc\nd\ne\nf\na\na\na\na"),
        (
            "gopher_repeated_line_characters",
            "x" * 60 + "\n" + "y" * 19 + "\n" + "y" * 19,
            "x" * 50 + "\n" + "y" * 24 + "\n" + "y" * 24,
        ),
        ("gopher_repeated_paragraphs", "a\n\nb\n\nc\n\nb", "a\n\nb\n\nb"),
        (
            "gopher_repeated_paragraph_characters",
            "x" * 62 + "\n\n" + "y" * 17 + "\n\n" + "y" * 17,
            "x" * 50 + "\n\n" + "y" * 23 + "\n\n" + "y" * 23,
        ),
        ("gopher_top_2_gram", f"{DIFFERENT} of it of it", "of it then of it now of it"),
        ("gopher_top_3_gram", f"{DIFFERENT} of it is of it is", "of it is here of it is"),
        ("gopher_top_4_gram", f"{DIFFERENT} of it is so of it is so", "of it is so of it is so"),
        *((f"gopher_repeated_{size}_grams", DIFFERENT, " ".join(WORDS * 2)) for size in range(5, 11)),
        ("fineweb_line_punctuation", "a.\n" * 12 + "a\n" * 88, "a.\n" * 11 + "a\n" * 89),
        ("fineweb_short_lines", "x" * 30 + ("\n" + "y" * 31), "x" * 30 + "\n" + "z" * 30 + "\n" + "w" * 30 + "\n" + "y" * 31),
        ("fineweb_repeated_characters", "x" * 198 + "\na\na", "x" * 97 + "\na\na\na"),
        ("fineweb_line_breaks", "a a a\n" * 3 + "b", "a\nb c"),
    ],
)
def test_rules_on_texts(rule: str, good: str, bad: str) -> None:
    assert judge(good, only=rule).text == good
    verdict = judge(bad, only=rule)
    assert verdict.text is None and verdict.counts == {rule: 1}
    assert RULES[rule].meaning in verdict.detail


def test_measures_worked_by_hand() -> None:
    text = Measures("the cat sat. the cat ran. the dog's end")
    assert text.tokens == ["the", "cat", "sat", ".", "the", "cat", "ran", ".", "the", "dog", "'s", "end"]
    assert (text.words, text.word_characters, text.alphabetic) == (10, 29, 10)
    assert text.top_n_gram(2) == len("the cat") * 2 / 39
    assert text.top_n_gram(3) == 0
    # a b c d e (first) a b c d e (seen: 5 characters) a b: too short for another
    again = Measures("a b c d e a b c d e a b")
    assert again.repeated_n_grams(5) == 5 / 23
    # overlapping: after one that was seen, the search goes on behind it
    assert Measures("a a a a a a a").repeated_n_grams(5) == 5 / 13
    assert Measures("a b a b c").repeated_lines == (0, 0)
    assert Measures('Mr. Smith met J. Doe. "Why?" he said. It was 3.5.\nlast line').sentences == 3


def test_n_grams_against_counting_all() -> None:
    chance = random.Random(2)
    for _ in range(200):
        words = chance.choices("abcdef", k=chance.randint(1, 80))
        text = Measures(" ".join(words))
        for size in range(2, 11):
            grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
            most = max((grams.count(gram) for gram in grams), default=0)
            expected = most * (2 * size - 1) / len(text.text) if most > 1 else 0
            assert text.top_n_gram(size) == pytest.approx(expected)
            seen, at, characters = set(), 0, 0
            while at < len(grams):
                if grams[at] in seen:
                    characters, at = characters + size, at + size
                else:
                    seen.add(grams[at])
                    at += 1
            assert text.repeated_n_grams(size) == characters / len(text.text)


def test_the_same_verdict_the_second_time() -> None:
    chance = random.Random(9)
    pieces = [*PROSE.split("\n"), LINE, "- item", "no end mark", "", "see javascript there, it is said.", "1 2 3 4 5 6."]
    kept = 0
    for _ in range(300):
        text = "\n".join(chance.choices(pieces, k=chance.randint(3, 14)))
        verdict = judge(text, off=["gopher_words_least"])
        if verdict.text is not None:
            kept += 1
            assert judge(verdict.text, off=["gopher_words_least"]).text == verdict.text
    assert kept > 20


def test_thresholds_can_be_moved() -> None:
    short = " ".join(["word"] * 20)
    assert judge(short, only="gopher_words_least", limits={"gopher_words_least": 20}).text == short
    verdict = judge(short, only="gopher_words_least", limits={"gopher_words_least": 21})
    assert verdict.detail == "20 < 21 words: it has few words"
    assert judge("Only four words here.", only="c4_line_words", limits={"c4_line_words": 4}).text is not None


def test_bad_words_are_those_of_the_recipe() -> None:
    settings = {"rules": ["c4"], "off": ["c4_sentences"], "bad_words": ["Drat", "by jingo"]}
    assert judge("A dratted mill is what it was.", **settings).text is not None
    assert judge("Oh drat, the mill is gone again.", **settings).counts == {"c4_bad_words": 1}
    assert judge("He said it, By Jingo, and left us.", **settings).counts == {"c4_bad_words": 1}


@pytest.mark.parametrize(
    "settings, what",
    [
        ({"off": ["gopher_bulets"]}, "did you mean `gopher_bullets`"),
        ({"limits": {"c4_sentence": 2}}, "did you mean `c4_sentences`"),
        ({"rules": ["c4"], "off": ["gopher_bullets"]}, "has no effect"),
        ({"off": ["gopher_bullets"], "limits": {"gopher_bullets": 0.5}}, "is off"),
        ({"limits": {"c4_lorem_ipsum": 2}}, "has no threshold"),
        ({"limits": {"gopher_bullets": 1.5}}, "is no threshold"),
        ({"limits": {"gopher_words_least": -1}}, "is no threshold"),
        ({"rules": ["gopher"], "bad_words": ["x"]}, "has no effect"),
        ({"bad_words": [" "]}, "is blank"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        judge("x", **settings)


@pytest.mark.parametrize(
    "piece",
    ["a ", ".", ". ", "\n", " ", "[1", "[1]", "a'", "- ", "1,", "https://", "_", "# ", "a.", '."', "...\n", "{", "\u3002"],
)
def test_hostile_text_takes_no_long_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    everything = RuleFilter(
        Filter(off=["c4_sentences", "gopher_words_least", "c4_end_mark", "c4_line_words", "c4_curly_bracket"])
    )
    everything.judge(0, text)
    measures = Measures(text)
    for rule in RULES.values():
        if rule.measure:
            rule.measure(measures)
    assert time.process_time() - start < 5
