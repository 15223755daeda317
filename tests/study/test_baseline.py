"""The baseline that needs no language model."""

from __future__ import annotations

import pytest

from uplift.core.errors import DataError
from uplift.core.values import Message, Origin, Sample
from uplift.study import baseline
from uplift.testing.tiny import tiny_rows

LABELS = ("negative", "positive")


def samples(count: int, seed: int) -> list[Sample]:
    rows = tiny_rows("classify", count, seed)
    return [
        Sample(f"{seed}-{i}", Origin("x", i + 1), text=row["text"], label=LABELS.index(row["label"]))
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("with_validation", [True, False])
def test_learns_words_that_decide(with_validation: bool) -> None:
    held_out = samples(40, 2) if with_validation else []
    fitted = baseline.tfidf(samples(120, 0), samples(80, 1), LABELS, held_out, resamples=200)
    assert fitted.measured.main.value > 0.95 and fitted.measured.outcomes.metric == "accuracy"
    assert fitted.parameters > 50 and fitted.size_bytes == 8 * fitted.parameters and "C = " in fitted.note
    assert fitted.measured.outcomes.ids[0] == "1-0"


def test_shuffled_labels_teach_nothing() -> None:
    train = [Sample(s.id, s.origin, text=s.text, label=(i // 2) % 2) for i, s in enumerate(samples(200, 0))]
    fitted = baseline.tfidf(train, samples(200, 1), LABELS, resamples=200)
    assert 0.35 < fitted.measured.main.value < 0.65


def test_label_unseen_in_training_and_prompted_samples_work() -> None:
    def asked(sample: Sample) -> Sample:
        turns = (Message("user", sample.text or ""), Message("assistant", LABELS[sample.label or 0], learn=True))
        return Sample(sample.id, sample.origin, messages=turns, label=sample.label, extras={"content": sample.text})

    train, test = [asked(s) for s in samples(60, 0)], [asked(s) for s in samples(30, 1)]
    fitted = baseline.tfidf(train, test, (*LABELS, "unseen"), resamples=200)
    assert fitted.measured.probabilities is not None and (fitted.measured.probabilities[:, 2] == 0).all()


def test_majority_is_the_largest_share() -> None:
    test = samples(50, 1)
    fitted = baseline.majority([s for s in samples(60, 0) if s.label == 1], test, LABELS, resamples=200)
    assert fitted.measured.metrics["accuracy"].value == pytest.approx(sum(s.label == 1 for s in test) / 50)


def test_one_label_is_refused() -> None:
    with pytest.raises(DataError, match="two labels"):
        baseline.tfidf([s for s in samples(60, 0) if s.label == 1], samples(10, 1), LABELS)
