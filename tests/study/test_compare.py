"""What a comparison concludes, on outcomes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from uplift.core.errors import DataError
from uplift.evaluate.outcomes import Outcomes
from uplift.study import compare
from uplift.study.compare import ArmResult, Cost

ITEMS = 500
TRUTH = np.random.default_rng(0).integers(0, 2, ITEMS)


def outcome(accuracy: float, seed: int, truth: np.ndarray = TRUTH) -> Outcomes:
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.uniform(size=len(truth)) < accuracy, truth, 1 - truth)
    ids = tuple(map(str, range(len(truth))))
    return Outcomes(ids, np.ones(len(truth)), np.ones(len(truth)), "accuracy", truth, predicted, ("no", "yes"))


def arm(name: str, accuracy: float, seconds: float, kind: str = "trained", seeds: tuple[int, ...] = (0,)) -> ArmResult:
    base = sum(map(ord, name))
    return ArmResult(name, kind, {seed: outcome(accuracy, base + seed) for seed in seeds}, Cost(seconds=seconds))


def baseline(accuracy: float) -> ArmResult:
    return ArmResult("tfidf", "baseline", {0: outcome(accuracy, 77)}, Cost(seconds=0.5), repeats=True)


def zero_shot(accuracy: float) -> ArmResult:
    return ArmResult("zero-shot", "prompted", {0: outcome(accuracy, 78)}, Cost(seconds=2), repeats=True)


def test_a_clear_winner_is_recommended_with_reasons() -> None:
    arms = [baseline(0.76), zero_shot(0.6), arm("lora", 0.9, 90), arm("probe", 0.7, 10)]
    result = compare.conclude(arms, [0])
    assert [entry.arm.name for entry in result.ranking] == ["lora", "tfidf", "probe", "zero-shot"]
    assert result.recommended == "lora" and result.recommendation.startswith("Take `lora`")
    assert result.reference == "zero-shot"
    assert any("zero-shot" in reason and "points" in reason for reason in result.reasons)
    assert not any("not needed" in warning for warning in result.warnings)
    best = next(test for test in result.tests if {test.first, test.second} == {"lora", "tfidf"})
    assert best.differs and best.contrast.difference.low > 0
    assert all(test.adjusted_p >= test.contrast.p for test in result.tests)


def test_the_cheapest_of_equals_is_preferred() -> None:
    arms = [zero_shot(0.6), arm("full", 0.86, 300), arm("probe", 0.855, 20)]
    result = compare.conclude(arms, [0])
    assert result.recommended == "probe"
    assert any("cannot be told apart" in reason for reason in result.reasons)
    assert any("500 test items reliably show" in reason for reason in result.reasons)


def test_no_difference_is_said_plainly() -> None:
    arms = [arm("a", 0.8, 100), arm("b", 0.8, 50), arm("c", 0.8, 70)]
    result = compare.conclude(arms, [0])
    assert result.recommendation.startswith("No difference that this data can show") and result.recommended == "b"


def test_a_baseline_that_is_not_beaten_is_said() -> None:
    result = compare.conclude([baseline(0.8), zero_shot(0.55), arm("lora", 0.81, 90)], [0])
    assert result.recommended == "tfidf"
    assert any("`tfidf`" in warning and "nothing here shows" in warning for warning in result.warnings)


def test_failures_are_listed_and_stop_nothing() -> None:
    broken = ArmResult("huge", "trained", {}, failures={0: "out of memory"})
    result = compare.conclude([zero_shot(0.6), arm("lora", 0.9, 90), broken], [0])
    assert [one.name for one in result.failed] == ["huge"] and result.recommended == "lora"
    assert any("out of memory" in warning for warning in result.warnings)
    nothing = compare.conclude([broken], [0])
    assert nothing.recommended is None and "nothing can be recommended" in nothing.recommendation


def test_a_seed_that_failed_leaves_the_common_seeds_to_compare() -> None:
    good, bad = arm("good", 0.9, 10, seeds=(0, 1, 2)), arm("bad", 0.7, 10, seeds=(1, 2))
    result = compare.conclude([good, bad], [0, 1, 2])
    assert result.tests[0].differs and len(result.ranking[0].per_seed) == 3 and len(result.ranking[1].per_seed) == 2
    apart = compare.conclude([arm("a", 0.9, 1, seeds=(0,)), arm("b", 0.6, 1, seeds=(1,))], [0, 1])
    assert apart.tests[0].contrast.test == "no common seed" and not apart.tests[0].differs


def test_different_test_items_are_refused() -> None:
    other = ArmResult("b", "trained", {0: outcome(0.8, 1, 1 - TRUTH)})
    with pytest.raises(DataError, match="different test items"):
        compare.conclude([arm("a", 0.8, 1), other], [0])


def test_seed_free_arms_stand_for_every_seed() -> None:
    seeds = (0, 1, 2)
    result = compare.conclude([baseline(0.76), arm("lora", 0.9, 90, seeds=seeds)], seeds)
    assert len(result.ranking[1].per_seed) == 3 and "seeds" in result.tests[0].contrast.test


def test_placebo_at_chance_and_above() -> None:
    arms = [zero_shot(0.6), arm("lora", 0.9, 90)]
    fine = compare.conclude(arms, [0], placebo=arm("lora-placebo", 0.5, 90)).placebo
    assert fine is not None and fine.at_chance and fine.chance == pytest.approx(0.5, abs=0.02)
    result = compare.conclude(arms, [0], placebo=arm("lora-placebo", 0.7, 90))
    assert result.placebo is not None and not result.placebo.at_chance
    assert any("above chance" in warning for warning in result.warnings)


def test_lower_is_better_for_language() -> None:
    rng = np.random.default_rng(5)
    size = rng.integers(20, 60, 200).astype(float)
    ids = tuple(map(str, range(200)))

    def language(name: str, bits: float, seconds: float) -> ArmResult:
        nll = size * bits * np.log(2) * rng.normal(1, 0.1, 200)
        return ArmResult(name, "trained", {0: Outcomes(ids, nll, size, "bits_per_byte")}, Cost(seconds=seconds))

    result = compare.conclude([language("worse", 1.5, 1), language("better", 1.2, 9)], [0])
    assert result.ranking[0].arm.name == "better" and result.recommended == "better" and result.tests[0].differs
