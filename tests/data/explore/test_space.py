"""The label model and the map."""

from __future__ import annotations

import random

import numpy as np
import pytest

from uplift.data.explore.space import judge_labels, map_topics, tfidf_of
from uplift.testing.tiny import tiny_rows

FILLER = [f"word{index}" for index in range(300)]


def labelled(count: int, seed: int = 0, noise: float = 0.0) -> tuple[list[dict[str, str]], set[int]]:
    """Rows whose label stands in them as one of ten words for it; the places of those that carry the wrong one."""
    rng = random.Random(seed)
    rows, wrong = [], set()
    for index in range(count):
        label = index % 2
        words = rng.choices(FILLER, k=12) + rng.sample([f"{'ab'[label]}sign{number}" for number in range(10)], 3)
        if rng.random() < noise:
            wrong.add(index)
            label = 1 - label
        rows.append({"text": " ".join(words), "label": "ab"[label]})
    return rows, wrong


def judged(take, rows):
    sample = take(rows).sample.first()
    found = tfidf_of([row.text for row in sample])
    assert found is not None
    return judge_labels(sample, found[0])


def test_labels_that_follow_from_words_are_foretold(take) -> None:
    found = judged(take, labelled(400)[0])
    assert found.accuracy >= 0.99 and found.majority == 0.5 and found.suspicious == 0


def test_planted_label_errors_are_found(take) -> None:
    """Of 5 % flipped labels at least 3 in 4 are suspected (26 of 31 here), and of those shown 9 in 10 are wrong."""
    rows, wrong = labelled(600, noise=0.05)
    found = judged(take, rows)
    assert len(wrong) > 20 and 0.75 * len(wrong) <= found.suspicious <= 1.1 * len(wrong)
    told = {int(row.place.rpartition(":")[2]) - 1 for row in found.examples}
    assert len(told & wrong) >= 0.9 * len(told)


def test_random_labels_are_at_chance_even_among_copies(take) -> None:
    """Every text stands three times with one random label: a model that saw the copies would be right."""
    rng = random.Random(1)
    rows = []
    for _ in range(150):
        text = " ".join(rng.choices(FILLER, k=15))
        rows += [{"text": text, "label": rng.choice("ab")}] * 3
    found = judged(take, rows)
    assert abs(found.accuracy - 0.5) < 0.15


def test_one_label_is_not_judged(take) -> None:
    rows = [{"text": f"some text {index}", "label": "a"} for index in range(20)]
    sample = take(rows, text="text", label="label").sample.first()
    found = tfidf_of([row.text for row in sample])
    assert found is not None and judge_labels(sample, found[0]) is None


def test_texts_without_words_have_no_matrix() -> None:
    assert tfidf_of(["...", "!!!"]) is None and tfidf_of(["one", "two"]) is None


@pytest.fixture
def topics() -> list[dict[str, str]]:
    rng = random.Random(0)
    themes = {"sea": ["boat", "wave", "harbour", "sailor", "anchor"], "food": ["bread", "cheese", "kitchen", "pepper", "oven"]}
    return [
        {"text": " ".join(rng.choices(words, k=8) + rng.choices(FILLER, k=2)), "label": theme}
        for _ in range(60)
        for theme, words in themes.items()
    ]


def test_topics_lie_apart_and_are_named_by_their_words(take, topics) -> None:
    sample = take(topics).sample.first()
    matrix, words = tfidf_of([row.text for row in sample])  # type: ignore[misc]
    found = map_topics(sample, matrix, words, None, "words")
    assert found is not None and len(found.points) == 120 and sum(topic.rows for topic in found.topics) == 120
    places = np.array([(point.x, point.y) for point in found.points])
    assert places.min() >= 0 and places.max() <= 1
    sea = np.array([point.label == "sea" for point in found.points])
    inside = np.linalg.norm(places[sea] - places[sea].mean(axis=0), axis=1).mean()
    assert np.linalg.norm(places[sea].mean(axis=0) - places[~sea].mean(axis=0)) > inside
    assert np.average([topic.purity for topic in found.topics], weights=[topic.rows for topic in found.topics]) > 0.95
    named = {word for topic in found.topics for word in topic.words}
    assert named & {"boat", "wave", "harbour", "sailor", "anchor"} and named & {"bread", "cheese", "kitchen", "oven"}
    assert found == map_topics(sample, matrix, words, None, "words")  # the same digits


def test_embeddings_place_the_rows(take, topics) -> None:
    sample = take(topics).sample.first()
    matrix, words = tfidf_of([row.text for row in sample])  # type: ignore[misc]
    line = np.array([[1.0, 0.0] if row.label == "sea" else [0.0, 1.0] for row in sample])
    line += np.random.default_rng(0).normal(0, 0.02, line.shape)
    found = map_topics(sample, matrix, words, line, "a model")
    assert found is not None and found.by == "a model" and all(topic.purity == 1 for topic in found.topics)


def test_few_rows_have_no_map(take) -> None:
    sample = take(tiny_rows("text", 10)).sample.first()
    matrix, words = tfidf_of([row.text for row in sample])  # type: ignore[misc]
    assert map_topics(sample, matrix, words, None, "words") is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("vocabulary", [2, 3, 5])
def test_a_handful_of_words_is_enough_for_a_map(take, vocabulary: int) -> None:
    words = [f"word{'abcde'[index]}" for index in range(vocabulary)]
    sample = take([{"text": f"{index} {words[index % vocabulary]}"} for index in range(50)]).sample.first()
    matrix, known = tfidf_of([row.text for row in sample])  # type: ignore[misc]
    found = map_topics(sample, matrix, known, None, "words")
    assert found is not None and len(found.points) == 50
    assert all(0 <= place <= 1 for point in found.points for place in (point.x, point.y))


@pytest.mark.filterwarnings("error")
def test_rows_with_the_same_words_have_no_map(take) -> None:
    sample = take([{"text": f"{index} word"} for index in range(50)]).sample.first()
    matrix, known = tfidf_of([row.text for row in sample])  # type: ignore[misc]
    assert map_topics(sample, matrix, known, None, "words") is None
