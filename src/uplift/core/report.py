"""Reports: what a run or a comparison is worth. Frozen objects that terminal, HTML, JSON and web render alike.

Every float is finite: a number that came out as NaN or infinite is kept as null, so the files are plain JSON.
Intervals are 95 % unless a field says otherwise. Rates (accuracy, F1) are shares from 0 to 1. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from uplift.core.report_part import (
    Count as Count,
    Difference as Difference,
    Interval as Interval,
    Number as Number,
    ReportPart as ReportPart,
)
from uplift.core.values import Effect

Status = Literal["running", "finished", "stopped", "failed"]
MOST_POINTS = 240


# -- measured quality --------------------------------------------------------------------------------------------------
class ClassScores(ReportPart):
    """Scores of one class (shares); ``support`` is its number of test rows."""

    label: str
    precision: Number
    recall: Number
    f1: Number
    support: Count


class Confusion(ReportPart):
    """Counts of test rows: ``counts[true][predicted]`` in the order of ``labels``."""

    labels: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]

    @model_validator(mode="after")
    def _square(self) -> Self:
        if {len(row) for row in self.counts} | {len(self.counts)} != {len(self.labels)}:
            raise ValueError("a confusion matrix needs one row and one column per label")
        return self


class CalibrationBin(ReportPart):
    """Test rows whose stated confidence fell in one bin: how many, how confident, how often right (shares)."""

    count: Count
    confidence: Number
    accuracy: Number


class AttackScores(ReportPart):
    """What one attack does to one model."""

    robust: Interval
    """Share of the attacked rows that are right before and under the attack."""
    success: Interval
    """Share of the rows that were right that the attack made wrong."""
    queries: Number = None
    """Mean number of texts (or forwards) that it took for a row that was right."""
    changed: Number = None
    """Mean share of words changed in the texts that made the model wrong."""
    similarity: Number = None
    """Smallest similarity of such a text to the original."""
    transfer: Interval | None = None
    """Share of the other model's misleading texts that this one gets right, of rows that it got right before."""
    transfer_rows: Count = 0
    """How many such texts there are."""


class AttackExample(ReportPart):
    """A text before and after an attack that made the model wrong."""

    label: str
    """The true label."""
    predicted: str
    """What the model says of the attacked text."""
    clean: str
    attacked: str


class Attack(ReportPart):
    """One kind of attack."""

    attack: str
    """``typo``, ``swap``, ``drop``, ``synonym``, ``gradient`` (texts); ``pgd``, ``noise`` (embeddings)."""
    eps: Number = None
    """Embeddings: norm of the attack as a share of theirs."""
    result: AttackScores
    base: AttackScores | None = None
    """The same attack on the untouched model."""
    examples: tuple[AttackExample, ...] = ()


class Robustness(ReportPart):
    """Right answers under attack, on the same test rows for the model and its base."""

    rows: Count
    """Rows attacked."""
    queries: Count
    """Most texts asked about a row in one attack."""
    similarity: Number
    """Least similarity of an attacked text."""
    clean: Interval
    """Accuracy on these rows without attack."""
    base_clean: Interval | None = None
    attacks: tuple[Attack, ...]
    seconds: Number = None
    """Time the attacks on this model took."""


class Evaluation(ReportPart):
    """Quality on held-out rows. ``value, low, high`` are those of the main metric, ``base`` the same of the model before."""

    metric: str = "accuracy"
    """Name of the main metric."""
    value: Number
    low: Number = None
    high: Number = None
    base: Interval | None = None
    """Main metric of the untouched model on the same rows; null when it was not measured."""
    difference: Difference | None = None
    """Main metric, this model minus the base."""
    higher_is_better: bool = True
    items: Count = 0
    """Test rows measured."""
    metrics: Mapping[str, Interval] = Field(default_factory=dict)
    """Every metric by name, the main one included."""
    base_metrics: Mapping[str, Interval] = Field(default_factory=dict)
    """The same of the untouched model."""
    classes: tuple[ClassScores, ...] = ()
    confusion: Confusion | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    robustness: Robustness | None = None
    """What is left of it under attack, where the recipe asks (`evaluate.robustness`)."""

    @property
    def score(self) -> Interval:
        """The main metric as one object."""
        return Interval(value=self.value, low=self.low, high=self.high)


# -- cost, proof, data -------------------------------------------------------------------------------------------------
class Predicted(ReportPart):
    """What the plan foretold before the run; null where it made no prediction."""

    seconds: Number = None
    tokens: Count | None = None
    peak_memory_bytes: Count | None = None
    disk_bytes: Count | None = None


class Cost(ReportPart):
    """What the result cost, beside what the plan predicted."""

    seconds: Number
    """Training time; evaluation is not part of it."""
    tokens: Count
    """Training tokens seen, repetitions counted."""
    peak_memory_bytes: Count
    """Most memory held at once: of the accelerator, or of the process on a CPU."""
    predicted: Predicted | None = None
    evaluation_seconds: Number = None
    disk_bytes: Count | None = None
    """Largest size of the run folder."""
    steps: Count | None = None
    trainable_parameters: Count | None = None
    model_bytes: Count | None = None
    """What must be kept to use the result: the adapter alone where there is one."""
    optimizer_bytes: Count | None = None
    """What the optimizer remembered of the weights (its moments) after the last step."""


class EffectReport(ReportPart):
    """A technique's proof that it did something in this run."""

    technique: str
    claim: str
    """What the technique promised to change."""
    value: Number
    """The number that was measured for it."""
    passed: bool
    detail: str = ""

    @classmethod
    def of(cls, effect: Effect) -> Self:
        """The report of an ``Effect``."""
        return cls(
            technique=effect.technique, claim=effect.claim, value=effect.value, passed=effect.passed, detail=effect.detail
        )


class StepReport(ReportPart):
    """What one step of `data.prepare` did: ``rows_in = rows_out + dropped + failed``, always."""

    use: str
    rows_in: Count
    rows_out: Count
    failed: Count = 0
    """Rows that the step could not judge, or made unusable; they are quarantined."""
    changed: Count = 0
    """Rows that go on with another text."""
    dropped: Mapping[str, Count] = Field(default_factory=dict)
    """Rows that went, by rule."""
    changes: Mapping[str, Count] = Field(default_factory=dict)
    """How often each rule struck in rows that go on."""
    spans_cut: Count = 0
    """Labelled spans that a change cut through; they are gone."""
    characters_in: Count = 0
    characters_out: Count = 0

    @property
    def rows_dropped(self) -> int:
        """Rows that went, by whatever rule."""
        return sum(self.dropped.values())

    @model_validator(mode="after")
    def _no_row_is_lost(self) -> Self:
        if self.rows_in != self.rows_out + self.rows_dropped + self.failed:
            raise ValueError(
                f"`{self.use}`: rows in ({self.rows_in}) is not rows out ({self.rows_out}) + dropped ({self.rows_dropped})"
                f" + failed ({self.failed})"
            )
        return self


class DataReport(ReportPart):
    """Where every row went: ``rows_in = rows_kept + rows_dropped + rows_quarantined``, always."""

    rows_in: Count
    rows_kept: Count
    rows_dropped: Count = 0
    """Training rows that steps of `data.prepare` dropped."""
    rows_quarantined: Count
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    labels: tuple[str, ...] = ()
    reasons: Mapping[str, Count] = Field(default_factory=dict)
    """Quarantined rows by the rule they broke."""
    prepared: tuple[StepReport, ...] = ()
    """What each step of `data.prepare` did to the training rows."""
    leaked: Count | None = None
    """Test rows that overlap with training or validation rows: the same words, or 13 words in a row."""
    fingerprint: str = ""

    @model_validator(mode="after")
    def _no_row_is_lost(self) -> Self:
        if self.rows_in != self.rows_kept + self.rows_dropped + self.rows_quarantined:
            raise ValueError(
                f"rows in ({self.rows_in}) is not rows kept ({self.rows_kept}) + dropped ({self.rows_dropped})"
                f" + quarantined ({self.rows_quarantined})"
            )
        return self


class Curve(ReportPart):
    """One metric over the run, by optimizer step; a gap (null) is a value that was not finite."""

    name: str
    """``loss``, ``validation_loss`` and so on."""
    steps: tuple[Count, ...]
    values: tuple[Number, ...]

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.steps) != len(self.values):
            raise ValueError("a curve needs one value per step")
        return self

    @classmethod
    def of(cls, name: str, points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> Self:
        """A curve of at most ``most`` points: means of equal stretches of the (step, value) ``points``, gaps kept."""
        stretch = max(1, math.ceil(len(points) / most))
        steps, values = [], []
        for start in range(0, len(points), stretch):
            part = points[start : start + stretch]
            steps.append(part[-1][0])
            mean = math.fsum(value for _, value in part) / len(part) if all(math.isfinite(value) for _, value in part) else None
            values.append(mean)
        return cls(name=name, steps=tuple(steps), values=tuple(values))


class EventSummary(ReportPart):
    """Things of one kind that happened: what they were (the last one in words) and how often."""

    code: str
    count: Count
    text: str


class WrittenSample(ReportPart):
    """What the model writes after the beginning of a test text."""

    prompt: str
    text: str


class ExportReport(ReportPart):
    """A file for another runtime beside the model it was made from."""

    name: str
    """Format and number type: ``gguf-q8_0``."""
    file: str
    """Relative to the run's folder; empty: it differs too much and was not kept."""
    runtime: str
    """What opened it."""
    size: Count
    """Bytes of the file."""
    agreement: Number
    """Share of the predictions (next tokens, classes) that are the model's."""
    divergence: Number
    """Mean KL(model || file) in nats per prediction."""
    metric: str = ""
    score: Interval | None = None
    """Main metric of the file on the test rows that both were compared on."""
    original: Interval | None = None
    """The model's on the same rows."""
    difference: Difference | None = None
    """File minus model."""
    items: Count = 0
    """Test rows compared on."""
    tokens_per_second: Number = None
    """One row at a time, as are the next ones."""
    original_tokens_per_second: Number = None
    memory_bytes: Count | None = None
    original_memory_bytes: Count | None = None
    load_seconds: Number = None
    problems: tuple[str, ...] = ()
    """What lies past the limits."""


# -- the two reports ---------------------------------------------------------------------------------------------------
class CommonReport(ReportPart):
    """What a run and a comparison have in common."""

    name: str
    hash: str = ""
    """Identifies everything that shapes the result."""
    status: Status
    reason: str = ""
    """Why it stopped or failed, in words."""
    evaluation: Evaluation | None = None
    cost: Cost
    effects: tuple[EffectReport, ...] = ()
    data: DataReport | None = None
    recipe: Mapping[str, Any] = Field(default_factory=dict)
    """The resolved recipe."""
    events: tuple[EventSummary, ...] = ()
    warnings: tuple[str, ...] = ()
    """What the reader should be careful about."""
    notes: tuple[str, ...] = ()
    """How the numbers were made."""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """Machine and library versions."""
    command: str = ""
    """The command that makes this report again."""
    started: str = ""
    """ISO 8601, UTC."""
    finished: str = ""


class Report(CommonReport):
    """What one run is worth."""

    kind: Literal["run"] = "run"
    seed: Count = 0
    curves: tuple[Curve, ...] = ()
    samples: tuple[WrittenSample, ...] = ()
    """What the finished model writes, where the recipe asks (`evaluate.samples`)."""
    exports: tuple[ExportReport, ...] = ()
    """Files for other runtimes, where the recipe asks (`export`)."""

    @property
    def proven(self) -> bool:
        """Whether every technique proved its effect."""
        return all(effect.passed for effect in self.effects)


class SeedScore(ReportPart):
    """Main metric of one repetition."""

    seed: Count
    value: Number


class Arm(ReportPart):
    """One way to the goal. ``score`` has an interval over seeds and test rows; costs are means over seeds."""

    name: str
    kind: str
    """``baseline`` (no language model), ``prompted`` (no weight changed), ``trained``."""
    rank: Count | None = None
    """1 is best; null when it failed."""
    status: Literal["ok", "failed"] = "ok"
    reason: str = ""
    """Why it failed."""
    summary: str = ""
    """What the arm does, in a few words."""
    score: Interval | None = None
    seeds: tuple[SeedScore, ...] = ()
    cost: Cost | None = None
    metrics: Mapping[str, Interval] = Field(default_factory=dict)
    classes: tuple[ClassScores, ...] = ()
    confusion: Confusion | None = None
    curves: tuple[Curve, ...] = ()
    effects: tuple[EffectReport, ...] = ()
    run: str = ""
    """Folder of its (first) run, relative to the comparison."""


class PairedTest(ReportPart):
    """Two arms on the same rows: first minus second."""

    arms: tuple[str, str]
    difference: Number
    low: Number = None
    high: Number = None
    p: Number = None
    p_holm: Number = None
    """p-value corrected for the number of tests in this report (Holm)."""
    method: str = ""

    @property
    def differs(self) -> bool:
        """Whether the data show a difference at 5 %, all tests of the report taken together."""
        return self.p_holm is not None and self.p_holm < 0.05


class Recommendation(ReportPart):
    """The verdict in plain words, and why."""

    arm: str | None
    text: str
    reasons: tuple[str, ...] = ()


class Placebo(ReportPart):
    """An arm trained on shuffled labels; it must score what blind guessing scores."""

    arm: str
    score: Interval
    chance: Number
    at_chance: bool
    text: str = ""


class BudgetReport(ReportPart):
    """The most each arm and seed could spend on training."""

    seconds: Number = None
    tokens: Count | None = None
    flops: Number = None


class ComparisonReport(CommonReport):
    """Several ways to the goal, side by side. ``evaluation`` is the recommended arm's, ``cost`` the sum over all arms."""

    kind: Literal["comparison"] = "comparison"
    metric: str = "accuracy"
    higher_is_better: bool = True
    items: Count = 0
    """Test rows measured."""
    arms: tuple[Arm, ...]
    """Ranked, best first; failed ones last."""
    tests: tuple[PairedTest, ...] = ()
    recommendation: Recommendation
    baseline: str | None = None
    """The arm the others are held against."""
    placebo: Placebo | None = None
    budget: BudgetReport = BudgetReport()
    seeds: tuple[Count, ...] = ()

    def arm(self, name: str | None) -> Arm | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @model_validator(mode="after")
    def _names_refer_to_arms(self) -> Self:
        names = {arm.name for arm in self.arms}
        unknown = (
            {self.recommendation.arm, self.baseline, *(name for test in self.tests for name in test.arms)} - names - {None}
        )
        if unknown:
            raise ValueError(f"not among the arms: {', '.join(sorted(map(str, unknown)))}")
        ranks = [arm.rank for arm in self.arms if arm.rank is not None]
        if ranks != sorted(ranks):
            raise ValueError("arms must be listed in order of rank")
        return self


AnyReport = Annotated[Report | ComparisonReport, Field(discriminator="kind")]
