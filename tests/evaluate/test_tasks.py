"""From a model and samples to the numbers of a report."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from uplift.core.errors import DataError
from uplift.core.recipe import ChatTask, ClassifyTask, HfModel, TextTask
from uplift.core.report import Evaluation
from uplift.core.values import Message, Origin, Sample
from uplift.data.chat import Encoder
from uplift.evaluate import tasks
from uplift.evaluate.outcomes import Outcomes
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model
from uplift.testing.tiny import tiny_causal, tiny_rows

LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tiny_causal(tmp_path_factory.mktemp("model"))
    return open_model(
        HfModel(id=str(folder)), head="language", labels=LABELS, base_dir=Path(), device=torch.device("cpu"), seed=0
    )


def asked(count: int) -> list[Sample]:
    made = []
    for index, row in enumerate(tiny_rows("classify", count)):
        turns = (
            Message("user", "Is this sentence positive or negative? " + row["text"]),
            Message("assistant", row["label"], learn=True),
        )
        made.append(Sample(f"s{index}", Origin("rows", index + 1), messages=turns, label=LABELS.index(row["label"])))
    return made


def test_label_words_are_measured(model: LanguageModel) -> None:
    encoder = Encoder(model.tokenizer, 128, "causal")
    measured = tasks.evaluate_model(model, asked(40), ClassifyTask(), encoder, bootstrap=200, batch_tokens=256)
    assert measured.outcomes.metric == "accuracy" and measured.prefix >= 16
    assert {"accuracy", "macro_f1", "micro_f1", "mcc", "nll", "brier", "calibration_error"} <= measured.metrics.keys()
    assert measured.main.low <= measured.main.value <= measured.main.high
    assert measured.probabilities is not None and measured.probabilities.shape == (40, 2)
    np.testing.assert_allclose(measured.probabilities.sum(1), 1.0)
    assert measured.label_mass is not None and (measured.label_mass <= 1).all()
    assert measured.correct is not None and measured.correct.mean() == measured.main.value
    assert any("balanced" in note for note in measured.notes)


def test_text_is_measured_and_perplexity_is_per_token(model: LanguageModel) -> None:
    encoder = Encoder(model.tokenizer, 128, "causal")
    samples = [Sample(f"t{i}", Origin("f", i + 1), text=row["text"]) for i, row in enumerate(tiny_rows("text", 12))]
    measured = tasks.evaluate_model(model, samples, TextTask(), encoder, bootstrap=200, batch_tokens=256)
    assert measured.outcomes.metric == "bits_per_byte" and measured.predicted is None
    assert measured.metrics["perplexity"].value == pytest.approx(math.exp(measured.metrics["nll"].value))
    total_bytes = measured.outcomes.units.sum()
    assert measured.main.value == pytest.approx(measured.nll.sum() / math.log(2) / total_bytes)


def test_evaluation_holds_the_base_and_is_plain_json(model: LanguageModel) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 300)
    ids = [str(i) for i in range(300)]

    def system(skill: float) -> tasks.Measured:
        right = np.where(rng.uniform(size=300) < skill, 0.9, 0.2)
        probabilities = np.stack([np.where(truth == 0, right, 1 - right), np.where(truth == 1, right, 1 - right)], axis=1)
        return tasks.measure_labels(ids, truth, probabilities, LABELS, resamples=300)

    base, tuned = system(0.6), system(0.9)
    evaluation = tasks.to_evaluation(tuned, base)
    assert evaluation.difference is not None and evaluation.difference.low is not None and evaluation.difference.low > 0
    assert evaluation.base is not None and evaluation.base.value == base.main.value and evaluation.higher_is_better
    assert evaluation.confusion is not None and sum(map(sum, evaluation.confusion.counts)) == 300
    assert sum(row.support for row in evaluation.classes) == 300 and sum(b.count for b in evaluation.calibration) == 300
    again = Evaluation.model_validate(json.loads(evaluation.model_dump_json()))
    assert again.value == tuned.main.value
    alone = tasks.to_evaluation(tuned)
    assert alone.base is None and alone.difference is None
    same = tasks.to_evaluation(tuned, tuned).difference
    assert same is not None and same.p == 1.0 and (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_unbalanced_classes_are_judged_by_macro_f1() -> None:
    truth = np.array([0] * 70 + [1] * 30)
    probabilities = np.tile([0.8, 0.2], (100, 1))
    measured = tasks.measure_labels([str(i) for i in range(100)], truth, probabilities, LABELS, resamples=200)
    assert measured.outcomes.metric == "macro_f1" and measured.main.value == pytest.approx((2 * 70 / 170) / 2)
    assert any("not balanced" in note for note in measured.notes)


def test_item_order_changes_no_number() -> None:
    rng = np.random.default_rng(1)
    truth, probabilities = rng.integers(0, 2, 120), rng.dirichlet([1, 1], 120)
    ids = [str(i) for i in range(120)]
    one = tasks.measure_labels(ids, truth, probabilities, LABELS, resamples=200)
    order = rng.permutation(120)
    other = tasks.measure_labels([ids[i] for i in order], truth[order], probabilities[order], LABELS, resamples=200)
    for name in ("accuracy", "macro_f1", "mcc", "calibration_error"):
        assert dataclasses.astuple(one.metrics[name])[:1] == pytest.approx(dataclasses.astuple(other.metrics[name])[:1])
    assert one.metrics["accuracy"] == other.metrics["accuracy"]


def test_outcomes_survive_a_file() -> None:
    truth = np.array([0, 1, 1])
    measured = tasks.measure_labels(["a", "b", "c"], truth, np.eye(2)[truth], LABELS, resamples=100)
    again = Outcomes.from_json(json.loads(json.dumps(measured.outcomes.to_json())))
    assert again.fingerprint == measured.outcomes.fingerprint


def test_nothing_to_evaluate_is_said(model: LanguageModel) -> None:
    encoder = Encoder(model.tokenizer, 128, "causal")
    with pytest.raises(DataError, match="nothing to evaluate"):
        tasks.evaluate_model(model, [], ChatTask(), encoder)
    unlabelled = [dataclasses.replace(sample, label=None) for sample in asked(2)]
    with pytest.raises(DataError, match="no label"):
        tasks.evaluate_model(model, unlabelled, ClassifyTask(), encoder)
