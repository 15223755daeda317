"""Duplicates, conflicts and leakage against planted truth."""

from __future__ import annotations

import random

from uplift.data.explore.duplicates import conflicts_of, duplicates_of, given_split, near_groups, near_to, own_split
from uplift.testing.tiny import tiny_rows

WORDS = [
    f"{first}{second}" for first in ("ka", "lo", "mi", "ne", "ru", "ta", "vo") for second in ("ber", "din", "fol", "gas", "hum")
]


def text(seed: int, length: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(original: str) -> str:
    """One word in sixty is another one: Jaccard similarity of 5-grams about 0.84."""
    words = original.split()
    return " ".join([*words[:-1], "changed"])


def test_exact_normalized_and_near_by_hand(take) -> None:
    rows = [text(0), text(0), text(0).upper(), text(1), edited(text(1)), *(text(seed) for seed in range(2, 30))]
    taken = take([{"text": each} for each in rows])
    sample = taken.sample.first()
    found = duplicates_of(taken, sample, near_groups([row.text for row in sample]))
    assert (found.rows, found.exact, found.normalized, found.near) == (33, 1, 2, 3)
    assert [(cluster.kind, cluster.rows) for cluster in found.clusters] == [("exact", 3), ("near", 2)]
    assert [row.place.rpartition(":")[2] for row in found.clusters[1].shown] == ["4", "5"]


def test_a_text_without_words_is_like_no_other() -> None:
    groups = near_groups(["...", "!!!", "", text(0), text(0)])
    assert len(set(groups.tolist())) == 4
    assert near_groups(["", "..."]).tolist() == [0, 1] and near_groups([]).tolist() == []


def test_conflicts_are_all_found(take) -> None:
    rows = [{"text": text(seed), "label": "ab"[seed % 2]} for seed in range(60)]
    rows += [{"text": text(3).upper(), "label": "a"}, {"text": text(4), "label": "b"}, {"text": text(5), "label": "b"}]
    rows += [{"text": edited(text(7)), "label": "a"}, {"text": edited(text(9)), "label": "b"}]
    taken = take(rows)
    sample = taken.sample.first()
    exact, near, found = conflicts_of(taken, sample, near_groups([row.text for row in sample]))
    assert (exact, near) == (4, 2)  # 3 and 4 with their copies; 7 with its edit
    assert [conflict.kind for conflict in found] == ["exact", "exact", "near"]
    assert all({row.label for row in conflict.shown} == {"a", "b"} for conflict in found)
    assert found[0].labels == {"a": 1, "b": 1}


def test_the_own_split_takes_all_rows_and_keeps_copies_together(take) -> None:
    rows = [{"text": text(seed % 200)} for seed in range(300)] + [{"text": edited(text(seed))} for seed in range(200)]
    taken = take(rows)
    sample = taken.sample.first()
    found = own_split(sample, near_groups([row.text for row in sample]))
    assert not found.given and sum(part.rows for part in found.parts) == 500
    shares = {part.part: part.rows / 500 for part in found.parts}
    assert abs(shares["test"] - 0.2) < 0.08 and abs(shares["validation"] - 0.1) < 0.06
    test = next(leak for leak in found.leaks if leak.part == "test")
    assert test.normalized == 0 and test.near > 20  # an edit falls on the other side in a third of the cases


def test_planted_leaks_are_counted(take) -> None:
    train = [{"text": text(seed)} for seed in range(100)]
    clean = [{"text": text(seed)} for seed in range(1000, 1040)]
    leaked = [{"text": text(seed).upper()} for seed in range(6)] + [{"text": edited(text(seed))} for seed in range(50, 54)]
    first, second = take(train), take(clean + leaked, "test.jsonl")
    rows, held = first.sample.first(), second.sample.first()
    groups = near_groups([row.text for row in (*rows, *held)])
    found = given_split(first, rows, {"test": (second, held)}, {"test": near_to(groups, len(rows))})
    (leak,) = found.leaks
    assert (leak.normalized, leak.runs, leak.near) == (6, 10, 10)
    assert all(example.test.startswith(second.stream._shown) for example in leak.examples)
    assert [part.rows for part in found.parts] == [100, 50]


def test_clean_parts_do_not_leak(take) -> None:
    rows = tiny_rows("text", 80)
    first, second = take(rows[:40]), take(rows[40:], "test.jsonl")
    held = second.sample.first()
    groups = near_groups([row.text for row in (*first.sample.first(), *held)])
    (leak,) = given_split(
        first, first.sample.first(), {"test": (second, held)}, {"test": near_to(groups, len(first.sample))}
    ).leaks
    assert leak.normalized == 0
