"""Reports of studies: several recipes made from one, and what their results say together. See ``report`` for the rules."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from uplift.core.report import CommonReport, Count, Difference, Interval, Number, ReportPart, SeedScore

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
