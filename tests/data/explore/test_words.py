"""Words: counts, Zipf, and those that speak for a label."""

from __future__ import annotations

import math
from collections import Counter

from uplift.data.explore.words import speaking_words, vocabulary_of, words_of


def test_the_log_odds_by_hand() -> None:
    """10 of 20 words on one side, 2 of 20 on the other; the prior is the whole: 12 of 40."""
    own, whole = Counter(good=10, film=10), Counter(good=12, film=28)
    (word, score), *rest = speaking_words(own, whole)
    odds = math.log(22 / (20 + 40 - 22)) - math.log(14 / (20 + 40 - 14))
    assert word == "good" and not rest  # `film` speaks for the other side
    assert score == round(odds / math.sqrt(1 / 22 + 1 / 14), 2)


def test_rare_words_need_more_evidence() -> None:
    rest = Counter({f"w{index}": 50 for index in range(100)})
    own = Counter({f"w{index}": 50 for index in range(100)}) + Counter(often=60, rare=3)
    scores = dict(speaking_words(own, own + rest))
    assert scores["often"] > 3 * scores["rare"]


def test_natural_frequencies_have_slope_minus_one(take) -> None:
    words = [f"w{rank}" for rank in range(1, 2001) for _ in range(max(1, 4000 // rank))]
    found = vocabulary_of(take([{"text": " ".join(words)}]).sample.first())
    assert found.distinct == 2000 and found.words == len(words) and found.top[0] == ("w1", 4000)
    assert -1.1 <= (found.slope or 0) <= -0.9
    assert found.zipf[0] == (1, 4000) and found.zipf[-1][0] == 2000


def test_labels_are_told_by_their_words(take) -> None:
    rows = [{"text": f"the meal was {'lovely' if index % 2 else 'dreadful'}", "label": "ab"[index % 2]} for index in range(40)]
    by_label = {one.label: [word for word, _ in one.words] for one in vocabulary_of(take(rows).sample.first()).by_label}
    assert by_label == {"a": ["dreadful"], "b": ["lovely"]}


def test_strange_text_is_cheap() -> None:
    assert words_of("x" * 100_000) == ["x" * 40] and words_of("... !!!") == []
