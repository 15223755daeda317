"""A comparison's conclusion in the form of its report: arms with their runs, tests, recommendation, placebo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from uplift.core import report
from uplift.core.recipe import Comparison
from uplift.evaluate.outcomes import higher_is_better, score_interval
from uplift.evaluate.statistics import Interval
from uplift.evaluate.tasks import class_rows, confusion_table, to_interval
from uplift.study.compare import ArmResult, Conclusion, PairTest, RankedArm


@dataclass
class ArmRecord:
    """What is kept of an arm besides its outcomes: the reports of its runs by seed, and the folder of the first."""

    summary: str = ""
    reports: dict[int, report.Report] = field(default_factory=dict)
    folder: str = ""

    @property
    def first(self) -> report.Report | None:
        """The report of the first seed that finished."""
        return next(iter(self.reports.values()), None)


def comparison_report(
    comparison: Comparison,
    conclusion: Conclusion,
    records: Mapping[str, ArmRecord],
    data: report.DataReport | None,
    **common: object,
) -> report.ComparisonReport:
    """The report. ``records`` by arm name; ``common`` goes through (hash, command, started, finished, environment)."""
    arms = [_ranked(entry, conclusion, records) for entry in conclusion.ranking]
    arms += [_failed(arm, records) for arm in conclusion.failed]
    chosen = records.get(conclusion.recommended or "", ArmRecord()).first
    recommended = next((entry for entry in conclusion.ranking if entry.arm.name == conclusion.recommended), None)
    return report.ComparisonReport(
        name=comparison.name,
        status="finished" if conclusion.ranking else "failed",
        reason="" if conclusion.ranking else "no arm finished",
        evaluation=chosen.evaluation if chosen else _evaluation(recommended, conclusion),
        cost=_total(conclusion),
        effects=tuple(effect for arm in arms for effect in arm.effects),
        data=data,
        recipe=comparison.model_dump(mode="json"),
        warnings=conclusion.warnings,
        metric=conclusion.metric or "accuracy",
        higher_is_better=higher_is_better(conclusion.metric),
        items=conclusion.items,
        arms=tuple(arms),
        tests=tuple(_test(test) for test in conclusion.tests),
        recommendation=report.Recommendation(
            arm=conclusion.recommended, text=conclusion.recommendation, reasons=conclusion.reasons[1:]
        ),
        baseline=conclusion.reference,
        placebo=_placebo(conclusion),
        budget=report.BudgetReport(**comparison.budget.model_dump()),
        seeds=conclusion.seeds,
        **common,  # type: ignore[arg-type]
    )


def _ranked(entry: RankedArm, conclusion: Conclusion, records: Mapping[str, ArmRecord]) -> report.Arm:
    record = records.get(entry.arm.name, ArmRecord())
    first, outcomes = record.first, next(iter(entry.arm.outcomes.values()))
    labelled = outcomes.truth is not None
    shown = entry.arm.seeds(conclusion.seeds)
    if first is not None and first.evaluation is not None:
        metrics = dict(first.evaluation.metrics)
    else:
        metrics = {conclusion.metric: to_interval(score_interval(outcomes))}
    return report.Arm(
        name=entry.arm.name,
        kind=entry.arm.kind,
        rank=entry.rank,
        reason="; ".join(f"seed {seed}: {why}" for seed, why in entry.arm.failures.items()),
        summary=record.summary,
        score=to_interval(entry.score),
        seeds=tuple(report.SeedScore(seed=s, value=v) for s, v in zip(shown, entry.per_seed, strict=True)),
        cost=_cost(entry.arm),
        metrics=metrics,
        classes=class_rows(outcomes) if labelled else (),
        confusion=confusion_table(outcomes) if labelled else None,
        curves=first.curves if first else (),
        effects=first.effects if first else (),
        run=record.folder,
    )


def _failed(arm: ArmResult, records: Mapping[str, ArmRecord]) -> report.Arm:
    reasons = sorted(set(arm.failures.values()))
    summary = records.get(arm.name, ArmRecord()).summary
    return report.Arm(name=arm.name, kind=arm.kind, status="failed", reason="; ".join(reasons), summary=summary)


def _cost(arm: ArmResult) -> report.Cost:
    cost = arm.cost
    return report.Cost(
        seconds=cost.seconds,
        tokens=round(cost.tokens),
        peak_memory_bytes=round(cost.peak_memory_bytes),
        evaluation_seconds=cost.evaluation_seconds,
        trainable_parameters=cost.trainable_parameters,
        model_bytes=cost.size_bytes,
    )


def _total(conclusion: Conclusion) -> report.Cost:
    """Seconds and tokens of all arms and seeds together; memory of the largest."""
    runs = [(entry.arm, 1 if entry.arm.repeats else len(entry.arm.outcomes)) for entry in conclusion.ranking]
    return report.Cost(
        seconds=sum(arm.cost.seconds * count for arm, count in runs),
        tokens=round(sum(arm.cost.tokens * count for arm, count in runs)),
        peak_memory_bytes=round(max((arm.cost.peak_memory_bytes for arm, _ in runs), default=0)),
        evaluation_seconds=sum(arm.cost.evaluation_seconds * count for arm, count in runs),
    )


def _evaluation(entry: RankedArm | None, conclusion: Conclusion) -> report.Evaluation | None:
    """Of a recommended arm that has no run of its own (the TF-IDF baseline)."""
    if entry is None:
        return None
    outcomes = next(iter(entry.arm.outcomes.values()))
    return report.Evaluation(
        metric=conclusion.metric,
        value=entry.score.value,
        low=entry.score.low,
        high=entry.score.high,
        higher_is_better=higher_is_better(conclusion.metric),
        items=len(outcomes),
        metrics={conclusion.metric: to_interval(entry.score)},
        classes=class_rows(outcomes) if outcomes.truth is not None else (),
        confusion=confusion_table(outcomes) if outcomes.truth is not None else None,
    )


def _test(test: PairTest) -> report.PairedTest:
    gap: Interval = test.contrast.difference
    return report.PairedTest(
        arms=(test.first, test.second),
        difference=gap.value,
        low=gap.low,
        high=gap.high,
        p=test.contrast.p,
        p_holm=test.adjusted_p,
        method=test.contrast.test,
    )


def _placebo(conclusion: Conclusion) -> report.Placebo | None:
    found = conclusion.placebo
    if found is None:
        return None
    return report.Placebo(
        arm=found.of, score=to_interval(found.score), chance=found.chance, at_chance=found.at_chance, text=found.text
    )


def summarise(change: Mapping[str, object], techniques: Sequence[str], kind: str) -> str:
    """A few words on what an arm does."""
    if kind == "prompted":
        return f"no training; {', '.join(techniques)}" if techniques else "no training, the question alone"
    model = change.get("model")
    named = f"{model.get('name') or model.get('id') or model.get('path')}: " if isinstance(model, Mapping) else ""
    return f"{named}{' + '.join(techniques) or 'all weights'}"
