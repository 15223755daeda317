from __future__ import annotations

import random
from itertools import pairwise

import pytest

from uplift.core.values import Corpus, Message, Origin, Progress, Sample
from uplift.data.sampling import Order
from uplift.techniques.curriculum.curriculum_length import CurriculumLength, competence, length_of, rank_correlation
from uplift.techniques.placebo.shuffled_labels import ShuffledLabels, partners
from uplift.techniques.prompt.few_shot import FewShot, choose
from uplift.techniques.stop.early_stopping import EarlyStopping


def asked(index: int, label: int | None = None, system: bool = False, length: int = 5) -> Sample:
    label = index % 2 if label is None else label
    turns = [Message("user", f"question {index} " + "x" * length), Message("assistant", ("no", "yes")[label], learn=True)]
    first = [Message("system", "be brief")] if system else []
    return Sample(f"id{index}", Origin("rows.jsonl", index + 1), messages=(*first, *turns), label=label)


# -- curriculum --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pacing", ["sqrt", "linear"])
def test_competence_rises_from_start_to_one(pacing):
    values = [competence(i / 100, 0.1, 0.5, pacing) for i in range(101)]
    assert values[0] == pytest.approx(0.1) and all(value == 1.0 for value in values[50:])
    assert all(earlier <= later for earlier, later in pairwise(values))
    assert competence(0.25, 0.1, 0.5, "linear") == pytest.approx(0.55)
    assert competence(0.25, 0.1, 0.5, "sqrt") == pytest.approx((0.01 + 0.99 / 2) ** 0.5)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0.0 and rank_correlation([1, 2], [1, 2]) == 0.0


def drawn(technique: CurriculumLength, samples: list[Sample], seed: int = 0) -> list[int]:
    technique.samples(Corpus(samples, "train"))
    order = Order(samples, seed, lambda sample, fraction: technique.weights(sample, Progress(fraction=fraction)))
    return order.epoch(0, lambda position: position / len(samples))


def test_short_samples_come_first_then_all_and_each_exactly_once():
    lengths = random.Random(0).sample(range(1, 2001), 400)
    samples = [asked(i, length=length) for i, length in enumerate(lengths)]
    order = drawn(CurriculumLength(start=0.1, warmup=0.5), samples)
    assert sorted(order) == list(range(400))
    means = [sum(lengths[i] for i in order[begin : begin + 50]) / 50 for begin in range(0, 400, 50)]
    assert means[0] < 600 and means[0] < means[1] < means[3]
    assert max(lengths[i] for i in order[:25]) <= 0.35 * max(lengths)


def test_full_competence_is_the_plain_order():
    samples = [asked(i, length=i) for i in range(100)]
    assert drawn(CurriculumLength(start=1.0), samples) == Order(samples, 0).epoch(0)


def test_the_curriculum_proof_is_read_from_what_was_drawn():
    rising, flat = CurriculumLength(), CurriculumLength()
    for step in range(40):
        progress = Progress(step=step, fraction=step / 40)
        rising.observe(progress, {"batch_mean_length": 10.0 + step})
        flat.observe(progress, {"batch_mean_length": 30.0 - step % 2})
    assert rising.effect().passed and rising.effect().value == pytest.approx(1.0)
    assert flat.effect().value < 0.3
    again = CurriculumLength()
    again.load_state(rising.state())
    assert again.effect() == rising.effect()


def test_length_counts_characters():
    assert length_of(Sample("a", Origin("f", 1), text="abc")) == 3
    assert length_of(asked(1, length=4)) == len("question 1 xxxx") + len("yes")


# -- early stopping ----------------------------------------------------------------------------------------------------
def stops_at(values: list[float], errors: list[float] | None = None, **options) -> tuple[int | None, list[int], EarlyStopping]:
    technique, kept = EarlyStopping(**options), []
    for index, value in enumerate(values):
        metrics = {technique.metric: value, "loss": 1.0}
        if errors:
            metrics[f"{technique.metric}_se"] = errors[index]
        kinds = {signal.kind for signal in technique.observe(Progress(step=10 * index), metrics)}
        if "keep_best" in kinds:
            kept.append(index)
        if "stop" in kinds:
            return index, kept, technique
    return None, kept, technique


def test_a_falling_curve_never_stops():
    stopped, kept, technique = stops_at([1 / (1 + i) for i in range(200)], patience=1)
    assert stopped is None and kept == list(range(200)) and technique.effect().passed


@pytest.mark.parametrize("patience", [1, 3, 7])
def test_a_constant_curve_stops_after_exactly_patience_evaluations(patience):
    stopped, kept, technique = stops_at([2.0] * 50, patience=patience)
    assert stopped == patience and kept == [0] and technique.effect().passed


def test_scores_rise_and_losses_fall():
    assert stops_at([0.5, 0.6, 0.7, 0.8], metric="validation_accuracy", patience=1)[0] is None
    assert stops_at([0.5, 0.6, 0.7, 0.8], metric="validation_loss", patience=2)[0] == 2
    assert stops_at([0.5, 0.6, 0.7, 0.8], metric="validation_loss", mode="max", patience=2)[0] is None


def test_small_or_noisy_improvements_do_not_count():
    values = [1.0, 0.99, 0.98, 0.97, 0.96]
    assert stops_at(values, patience=2)[0] is None
    assert stops_at(values, patience=2, min_delta=0.05)[0] == 2
    assert stops_at(values, errors=[0.05] * 5, patience=2, noise=1.0)[0] == 2
    assert stops_at(values, errors=[0.001] * 5, patience=2, noise=1.0)[0] is None


def test_other_metrics_are_not_evaluations_and_without_restore_nothing_is_kept():
    technique = EarlyStopping(restore=False)
    assert technique.observe(Progress(step=1), {"loss": 3.0}) == []
    assert technique.observe(Progress(step=2), {"validation_loss": 3.0}) == []
    assert not technique.effect().passed  # one evaluation proves nothing


def test_counters_survive_a_restart():
    values = [1.0, 0.9, 0.95, 0.96, 0.97]
    _, _, first = stops_at(values[:3], patience=3)
    second = EarlyStopping(patience=3)
    second.load_state(first.state())
    assert second.observe(Progress(step=30), {"validation_loss": values[3]}) == []
    assert [s.kind for s in second.observe(Progress(step=40), {"validation_loss": values[4]})] == ["stop"]
    assert second.effect().passed and "stopped at step 40" in second.effect().detail


# -- few-shot ----------------------------------------------------------------------------------------------------------
def test_demonstrations_are_balanced_different_and_the_same_for_the_same_seed():
    samples = [asked(i, label=0 if i < 90 else 1) for i in range(100)]
    chosen = choose(samples, 6, seed=3)
    assert len({sample.id for sample in chosen}) == 6 and sum(sample.label for sample in chosen) == 3
    assert [s.id for s in chosen] == [s.id for s in choose(samples, 6, seed=3)] != [s.id for s in choose(samples, 6, seed=4)]
    assert len(choose(samples[:3], 10, seed=0)) == 3


def test_every_prompt_shows_the_same_examples_after_the_system_turn():
    train = Corpus([asked(i, system=True) for i in range(40)], "train")
    test = Corpus([asked(100 + i, system=True) for i in range(5)], "test", train)
    technique = FewShot(k=3)
    prompts = [sample.messages for sample in technique.samples(test)]
    assert all(len(messages) == 1 + 3 * 2 + 2 for messages in prompts)
    assert all([m.role for m in messages] == ["system", *["user", "assistant"] * 4] for messages in prompts)
    assert len({messages[:7] for messages in prompts}) == 1
    assert [m.learn for m in prompts[0]] == [False] * 8 + [True]
    assert technique.effect().passed and technique.effect().value == 3.0
    assert technique.samples(train) is train


def test_a_sample_never_sees_itself():
    rows = [asked(i) for i in range(6)]
    train = Corpus(rows, "train")
    technique = FewShot(k=5)
    for sample in technique.samples(Corpus(rows, "test", train)):
        questions = [m.content for m in sample.messages if m.role == "user"]
        assert len(questions) == 6 == len(set(questions))
    assert technique.effect().passed


def test_nothing_shown_fails_the_proof():
    test = Corpus([asked(1)], "test", Corpus([], "train"))
    technique = FewShot(k=2)
    assert list(technique.samples(test))[0].messages == asked(1).messages
    assert not technique.effect().passed
    assert FewShot(k=0).samples(test) is test


# -- placebo -----------------------------------------------------------------------------------------------------------
def test_labels_are_permuted_in_training_only():
    rows = [asked(i) for i in range(200)]
    technique = ShuffledLabels()
    shuffled = technique.samples(Corpus(rows, "train"))
    test = Corpus(rows, "test")
    assert technique.samples(test) is test
    assert sorted(s.label for s in shuffled) == sorted(s.label for s in rows)
    for old, new in zip(rows, shuffled, strict=True):
        assert new.id == old.id and new.messages[0] == old.messages[0]
        assert new.messages[1].content == ("no", "yes")[new.label] and new.messages[1].learn
    effect = technique.effect()
    assert effect.passed and 0.35 < effect.value < 0.65
    again = [s.label for s in ShuffledLabels().samples(Corpus(rows, "train"))]
    assert again == [s.label for s in shuffled] != [s.label for s in ShuffledLabels(seed=1).samples(Corpus(rows, "train"))]


def test_a_share_of_the_labels():
    moved = sum(giver != taker for taker, giver in enumerate(partners(1000, 0.2, 0)))
    assert 150 < moved <= 200 and sorted(partners(1000, 0.2, 0)) == list(range(1000))
    rows = Corpus([asked(i) for i in range(10)], "train")
    technique = ShuffledLabels(share=0.0)
    assert technique.samples(rows) is rows and not technique.effect().passed
