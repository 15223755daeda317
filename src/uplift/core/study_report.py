"""Reports of studies: several recipes made from one, and what their results say together. See ``report`` for the rules."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from uplift.core.report import (
    CommonReport,
    Cost,
    Count,
    Difference,
    EffectReport,
    Evaluation,
    ExportReport,
    Interval,
    Number,
    ReportPart,
    SeedScore,
)

Bound = Literal["", "at most", "at least"]


class CurvePoint(ReportPart):
    """One arm at one number of training rows."""

    rows: Count
    score: Interval | None = None
    """Main metric, over seeds and test rows; null when no seed finished."""
    seeds: tuple[SeedScore, ...] = ()
    steps: Count = 0
    """Optimizer steps, the same for every seed."""
    lr: Number = None
    """Peak learning rate; null: the default of what trains."""
    first_loss: Number = None
    """Training loss at the beginning, mean over seeds."""
    last_loss: Number = None
    """Training loss at the end."""
    seconds: Number = None
    """Training time, mean over seeds."""


class TransferArm(ReportPart):
    """One choice of what is kept of the pretrained weights, over all numbers of rows."""

    name: str
    summary: str
    """What is kept."""
    points: tuple[CurvePoint, ...]
    """In order of rows."""
    area: Interval | None = None
    """Mean score over the logarithm of the rows (area under the curve, divided by its width)."""
    gain: Difference | None = None
    """Area minus that of the arm from scratch, on the same seeds and test rows."""
    share: Number = None
    """Gain as a share of the gain of all pretrained weights."""
    failures: tuple[str, ...] = ()


class LabelsSaved(ReportPart):
    """How many rows training from scratch needs to score what the pretrained model scores with ``rows``."""

    rows: Count
    needed: Number
    """Rows from scratch, read off its curve (linear in the logarithm of the rows)."""
    ratio: Number
    """``needed`` over ``rows``."""
    bound: Bound = ""
    """``at least``: scratch never got there; ``at most``: it was there with its fewest rows."""
    low: Number = None
    high: Number = None
    """Ends of the 95 % interval of the ratio, cut at what the measured rows can show."""


class BlockLoss(ReportPart):
    """What is lost when one block alone is drawn anew before training; ``loss`` is in the metric, positive is worse."""

    block: Count
    rows: Count
    score: Interval
    loss: Difference
    p_holm: Number = None


class TransferPlacebo(ReportPart):
    """Shuffled weights against new ones: areas, first minus second. No structure, so no knowledge, so no gain."""

    gain: Difference
    about_zero: bool
    text: str


class TransferReport(CommonReport):
    """What a pretrained model brings to a task, by number of labelled rows."""

    kind: Literal["transfer"] = "transfer"
    metric: str = "accuracy"
    higher_is_better: bool = True
    items: Count = 0
    """Test rows measured."""
    rows: tuple[Count, ...]
    seeds: tuple[Count, ...]
    verdict: str
    reasons: tuple[str, ...] = ()
    arms: tuple[TransferArm, ...]
    labels_saved: tuple[LabelsSaved, ...] = ()
    placebo: TransferPlacebo | None = None
    blocks: tuple[BlockLoss, ...] = ()

    def arm(self, name: str) -> TransferArm | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @model_validator(mode="after")
    def _curves_cover_the_rows(self) -> Self:
        if any(tuple(point.rows for point in arm.points) != self.rows for arm in self.arms):
            raise ValueError("every arm needs one point for each number of rows, in order")
        return self


class StageResult(ReportPart):
    """One stage: what it did, what its model is worth, and what it cost."""

    name: str
    summary: str
    """Model and techniques, in words."""
    evaluation: Evaluation | None = None
    cost: Cost
    latency: Number = None
    """Seconds per test row, evaluation as it ran here."""
    effects: tuple[EffectReport, ...] = ()
    exports: tuple[ExportReport, ...] = ()
    run: str
    """The stage's folder, relative to this report's."""


class StagesReport(CommonReport):
    """Several runs in a row; ``evaluation`` is the last stage's, ``cost`` the sum."""

    kind: Literal["stages"] = "stages"
    stages: tuple[StageResult, ...]


# -- scaling -----------------------------------------------------------------------------------------------------------
class ScalingRun(ReportPart):
    """One run of a scaling ladder."""

    size: Count
    """What ``model.parameters`` was set to."""
    parameters: Count
    """Weights that multiply each token: layers and head."""
    tokens: Count
    """Training tokens."""
    seed: Count
    lr: Number
    loss: Number = None
    """Held-out loss at the end, nats per token."""
    fitted: Number = None
    """What the law says of it."""
    seconds: Number = None
    steps: Count = 0
    held_out: bool = False
    """The law was not fitted to it."""
    search: bool = False
    """It only helped to find the learning rate."""
    failure: str = ""


class ScalingLaw(ReportPart):
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token, with 90 % intervals."""

    E: Interval
    A: Interval
    B: Interval
    alpha: Interval
    beta: Interval
    optimal_exponent: Interval
    """a in N* ~ C^a: how the best size grows with the FLOPs C."""
    runs: Count
    """Runs it was fitted to."""
    deviation: Number
    """Root mean square deviation of their loss from it, as a share."""
    edges: tuple[str, ...] = ()
    """Values that the runs do not determine: they came out at the edge of what is possible."""


class HeldOutRun(ReportPart):
    """The largest run, which the law never saw: prediction beside measurement."""

    parameters: Count
    tokens: Count
    seeds: Count
    measured: Number
    """Mean over seeds."""
    predicted: Interval
    """With the 90 % band of such a measurement."""
    error: Number
    """Predicted over measured, minus 1."""
    close: bool
    """Within 2 %."""
    covered: bool
    """The measurement lies in the band."""


class ScalingAdvice(ReportPart):
    """What the law says of one budget or one size, with 90 % intervals."""

    question: str
    parameters: Interval
    tokens: Interval
    loss: Interval
    bits_per_byte: Interval | None = None
    flops: Number
    """6 times parameters times tokens."""
    seconds: Number = None
    """At the speed of the ladder."""
    epochs: Number = None
    """Passes over the training text."""
    beyond: Number = None
    """FLOPs over those of the largest run of the ladder."""


class ScalingReport(CommonReport):
    """A scaling law from a ladder of runs: how well it predicts, and what it advises. All its intervals are 90 %."""

    kind: Literal["scaling"] = "scaling"
    verdict: str
    reasons: tuple[str, ...] = ()
    runs: tuple[ScalingRun, ...]
    law: ScalingLaw | None = None
    held_out: HeldOutRun | None = None
    advice: tuple[ScalingAdvice, ...] = ()
    """The budget asked for first."""
