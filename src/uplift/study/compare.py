"""What a comparison concludes: ranking, paired tests and a recommendation, as a pure function of the arms' outcomes.

No file and no model is touched here; ``verbs.compare`` produces the outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from uplift.core.errors import DataError
from uplift.evaluate.outcomes import (
    Contrast,
    Outcomes,
    chance_level,
    contrast,
    higher_is_better,
    replicates,
    require_same_items,
    score,
    score_interval,
)
from uplift.evaluate.statistics import (
    Interval,
    detectable_difference,
    holm,
    percentile_interval,
)
from uplift.study.wording import show_metric_name, show_p, show_score, show_seconds

SIGNIFICANT = 0.05
RESAMPLES = 2000
PLACEBO_LEVEL = 0.99
"""A placebo is called out only when a 99 % interval leaves chance out: a false alarm in one of 100 comparisons."""


@dataclass(frozen=True)
class Cost:
    """Means over seeds. seconds: training; evaluation_seconds: on the test part; size_bytes: what must be kept to use it."""

    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    tokens: float = 0.0
    peak_memory_bytes: float = 0.0
    trainable_parameters: int = 0
    size_bytes: int = 0

    @property
    def total_seconds(self) -> float:
        """Training and evaluation together: what the arms are compared by when scores do not differ."""
        return self.seconds + self.evaluation_seconds


@dataclass(frozen=True)
class ArmResult:
    """One arm: outcomes by seed (empty when every seed failed), its cost, and why seeds failed.

    ``kind``: ``trained``, ``prompted`` (no weight changed) or ``baseline`` (no language model). ``repeats``: the one outcome
    does not depend on the seed and stands for every seed.
    """

    name: str
    kind: str
    outcomes: dict[int, Outcomes]
    cost: Cost = Cost()
    failures: dict[int, str] = field(default_factory=dict)
    repeats: bool = False

    def on(self, seeds: Sequence[int]) -> list[Outcomes]:
        """Outcomes for these seeds, in order."""
        only = next(iter(self.outcomes.values())) if self.repeats and self.outcomes else None
        return [only if only is not None else self.outcomes[seed] for seed in seeds]

    def seeds(self, wanted: Sequence[int]) -> list[int]:
        """Which of the wanted seeds have an outcome."""
        return list(wanted) if self.repeats and self.outcomes else [seed for seed in wanted if seed in self.outcomes]


@dataclass(frozen=True)
class RankedArm:
    """An arm with its mean score over seeds, the interval over seeds and items, and the score of each seed."""

    rank: int
    arm: ArmResult
    score: Interval
    per_seed: tuple[float, ...]


@dataclass(frozen=True)
class PairTest:
    """``first`` minus ``second``; ``adjusted_p`` is Holm's over all tests of the comparison."""

    first: str
    second: str
    contrast: Contrast
    adjusted_p: float

    @property
    def differs(self) -> bool:
        """Whether the data show a difference, corrected for the number of tests."""
        return self.adjusted_p < SIGNIFICANT


@dataclass(frozen=True)
class Placebo:
    """The recommended (or best trained) arm on shuffled labels: its score, what blind guessing scores, and if they agree."""

    of: str
    score: Interval
    chance: float
    at_chance: bool
    text: str


@dataclass(frozen=True)
class Conclusion:
    """Everything a comparison says. ``recommended`` is an arm's name, ``reasons`` plain sentences, ``warnings`` likewise."""

    metric: str
    items: int
    seeds: tuple[int, ...]
    ranking: tuple[RankedArm, ...]
    failed: tuple[ArmResult, ...]
    tests: tuple[PairTest, ...]
    reference: str | None
    recommended: str | None
    recommendation: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    placebo: Placebo | None = None


def check_same_items(arms: Sequence[ArmResult]) -> None:
    """Raise DataError when any two outcomes were measured on different items."""
    everything = [(arm.name, seed, one) for arm in arms for seed, one in arm.outcomes.items()]
    for name, seed, one in everything[1:]:
        try:
            require_same_items(everything[0][2], one)
        except DataError as error:
            raise DataError(
                f"arms `{everything[0][0]}` and `{name}` (seed {seed}) saw different test items",
                why=error.why,
                fix=error.fix,
            ) from error


def rank_arms(arms: Sequence[ArmResult], metric: str, seeds: Sequence[int], resamples: int = 2000) -> list[RankedArm]:
    """Arms with outcomes, best mean over seeds first; intervals resample seeds and items."""
    scored = []
    for arm in arms:
        runs = arm.on(arm.seeds(seeds))
        if not runs:
            continue
        values = tuple(score(run, metric) for run in runs)
        scored.append((arm, _interval(arm, runs, values, metric, resamples), values))
    sign = -1 if higher_is_better(metric) else 1
    scored.sort(
        key=lambda entry: (
            sign * entry[1].value,
            entry[0].cost.total_seconds,
            entry[0].name,
        )
    )
    return [RankedArm(rank, *entry) for rank, entry in enumerate(scored, start=1)]


def _interval(arm: ArmResult, runs: Sequence[Outcomes], values: Sequence[float], metric: str, resamples: int) -> Interval:
    """Over seeds and items; over items alone (as in the run's own report) when there is one run."""
    if arm.repeats or len(runs) == 1:
        return score_interval(runs[0], metric, resamples=resamples)
    return percentile_interval(float(np.mean(values)), replicates(runs, metric, resamples=resamples))


def pair_tests(
    ranking: Sequence[RankedArm],
    reference: str | None,
    metric: str,
    seeds: Sequence[int],
    resamples: int = 2000,
) -> list[PairTest]:
    """The best arm against every other, and every other against the reference arm; p-values adjusted together (Holm)."""
    by_name = {entry.arm.name: entry.arm for entry in ranking}
    order = [entry.arm.name for entry in ranking]
    pairs = [(order[0], other) for other in order[1:]] if order else []
    pairs += [(name, reference) for name in order[1:] if reference in by_name and name != reference and reference != order[0]]
    contrasts = []
    for first, second in pairs:
        common = [s for s in by_name[first].seeds(seeds) if s in by_name[second].seeds(seeds)]
        if not common:  # different seeds failed: there is nothing paired to compare
            contrasts.append(
                Contrast(
                    Interval(float("nan"), float("nan"), float("nan")),
                    1.0,
                    "no common seed",
                )
            )
            continue
        contrasts.append(
            contrast(
                by_name[first].on(common),
                by_name[second].on(common),
                metric,
                resamples=resamples,
            )
        )
    adjusted = holm([one.p for one in contrasts])
    return [PairTest(*pair, one, p) for pair, one, p in zip(pairs, contrasts, adjusted, strict=True)]


def choose_reference(arms: Sequence[ArmResult]) -> str | None:
    """The arm the others are held against: the first one that changes no weight and no prompt, else the first prompted one."""
    prompted = [arm.name for arm in arms if arm.kind == "prompted" and arm.outcomes]
    plain = [arm.name for arm in arms if arm.kind == "prompted" and arm.repeats and arm.outcomes]
    return next(iter(plain or prompted or [arm.name for arm in arms if arm.outcomes]), None)


def conclude(
    arms: Sequence[ArmResult],
    seeds: Sequence[int],
    *,
    placebo: ArmResult | None = None,
    resamples: int = 2000,
) -> Conclusion:
    """Rank, test and recommend. Raises DataError when arms saw different items.

    At least ``RESAMPLES`` resamples are drawn: fewer could not give a p-value that survives the correction for many tests.
    """
    resamples = max(resamples, RESAMPLES)
    check_same_items([*arms, *([placebo] if placebo else [])])
    failed = tuple(arm for arm in arms if not arm.outcomes)
    working = [arm for arm in arms if arm.outcomes]
    if not working:
        text = "No arm finished, so nothing can be recommended."
        return Conclusion("", 0, tuple(seeds), (), failed, (), None, None, text, (text,), ())
    first = next(iter(working[0].outcomes.values()))
    metric, reference = first.metric, choose_reference(working)
    ranking = rank_arms(working, metric, seeds, resamples)
    tests = pair_tests(ranking, reference, metric, seeds, resamples)
    chosen, reasons = recommend(ranking, tests, reference, metric)
    judged = judge_placebo(placebo, metric, seeds, resamples) if placebo is not None and placebo.outcomes else None
    warnings = _warnings(ranking, tests, failed, judged, seeds)
    if placebo is not None and judged is None:
        warnings += tuple(f"The placebo of `{placebo.name}` (seed {s}) failed: {why}" for s, why in placebo.failures.items())
    return Conclusion(
        metric,
        len(first),
        tuple(seeds),
        tuple(ranking),
        failed,
        tuple(tests),
        reference,
        chosen,
        reasons[0],
        tuple(reasons),
        warnings,
        judged,
    )


# -- in plain words ----------------------------------------------------------------------------------------------------
def _find(tests: Sequence[PairTest], first: str, second: str) -> PairTest | None:
    return next((test for test in tests if {test.first, test.second} == {first, second}), None)


def _shown(metric: str, interval: Interval) -> str:
    """``accuracy 81.2 % (95 % interval 78.0 % to 84.1 %)``."""
    ends = f"{show_score(metric, interval.low)} to {show_score(metric, interval.high)}"
    return f"{show_metric_name(metric)} {show_score(metric, interval.value)} (95 % interval {ends})"


def _p(test: PairTest) -> str:
    """``p = 0.03 after Holm``."""
    shown = show_p(test.adjusted_p)
    return f"p {shown if shown.startswith('<') else '= ' + shown} after Holm"


def _amount(metric: str, value: float) -> str:
    """The size of a difference, without a sign: ``3.2 points``."""
    return show_score(metric, abs(value), signed=True).lstrip("+")


def recommend(
    ranking: Sequence[RankedArm], tests: Sequence[PairTest], reference: str | None, metric: str
) -> tuple[str, list[str]]:
    """The cheapest arm that the data cannot tell from the best one, with the reasons (the first is the verdict)."""
    best = ranking[0]
    told_apart = {test.second for test in tests if test.first == best.arm.name and test.differs}
    tied = [entry for entry in ranking if entry.arm.name not in told_apart]
    chosen = min(tied, key=lambda entry: (entry.arm.cost.total_seconds, entry.rank))
    name, shown = chosen.arm.name, _shown(metric, chosen.score)
    if len(tied) == len(ranking) > 1:
        head = f"No difference that this data can show: take `{name}`, the cheapest, with {shown}."
    elif chosen is best:
        head = f"Take `{name}`: {shown}, the best of {len(ranking)}."
    else:
        head = f"Take `{name}`: {shown}; the leader `{best.arm.name}` costs more and is not shown to be better."
    reasons = [head, *_against_ties(chosen, best, tied, tests, metric), *_against_beaten(best, tests, metric)]
    versus = _find(tests, name, reference) if reference else None
    if versus is not None:
        reasons.append(_against_reference(versus, name, reference or "", metric))
    return name, reasons


def _against_ties(
    chosen: RankedArm, best: RankedArm, tied: Sequence[RankedArm], tests: Sequence[PairTest], metric: str
) -> list[str]:
    """Why a cheaper arm is preferred to the leader, and what difference could have been seen."""
    if chosen is best:
        return []
    ours, theirs = (show_seconds(entry.arm.cost.total_seconds) for entry in (chosen, best))
    cheaper = f"It took {ours} of training and evaluation, `{best.arm.name}` {theirs}"
    reasons = [f"{cheaper}; {len(tied)} arms cannot be told apart from the leader."]
    test = _find(tests, best.arm.name, chosen.arm.name)
    if test is not None:
        lead = f"`{best.arm.name}` leads it by {_amount(metric, test.contrast.difference.value)}"
        chance = f"({_p(test)}), which chance alone can explain"
        reasons.append(f"{lead} {chance}; {_resolution(chosen, best)}")
    return reasons


def _resolution(first: RankedArm, second: RankedArm) -> str:
    one, other = (next(iter(entry.arm.outcomes.values())) for entry in (first, second))
    if one.correct is None or other.correct is None:
        return "more test items would show smaller differences."
    seen = detectable_difference(len(one), float((one.correct != other.correct).mean()))
    return f"{len(one)} test items reliably show differences in accuracy of about {100 * seen:.1f} points or more."


def _against_beaten(best: RankedArm, tests: Sequence[PairTest], metric: str) -> list[str]:
    """The closest arm that the leader is shown to beat."""
    beaten = [test for test in tests if test.first == best.arm.name and test.differs]
    if not beaten:
        return []
    gap, others = beaten[0].contrast.difference, f"; it beats {len(beaten) - 1} more" if len(beaten) > 1 else ""
    ends = f"{show_score(metric, gap.low, signed=True, unit=False)} to {show_score(metric, gap.high, signed=True)}"
    size = f"by {_amount(metric, gap.value)} (95 % interval {ends}, {_p(beaten[0])})"
    return [f"`{best.arm.name}` beats `{beaten[0].second}` {size}{others}."]


def _against_reference(test: PairTest, name: str, reference: str, metric: str) -> str:
    sign = 1 if test.first == name else -1
    gap = show_score(metric, sign * test.contrast.difference.value, signed=True)
    size = f"{gap}, {_p(test)}"
    if not test.differs:
        return f"No difference from `{reference}` that this data can show ({size})."
    return f"Against `{reference}` it changes {show_metric_name(metric)} by {size}."


def _warnings(
    ranking: Sequence[RankedArm],
    tests: Sequence[PairTest],
    failed: Sequence[ArmResult],
    placebo: Placebo | None,
    seeds: Sequence[int],
) -> tuple[str, ...]:
    warnings = []
    baselines = [entry for entry in ranking if entry.arm.kind == "baseline"]
    if baselines and len(ranking) > 1:
        baseline, best = baselines[0].arm.name, ranking[0].arm.name
        test = _find(tests, best, baseline)
        if best == baseline or test is None or not test.differs:
            warnings.append(f"No arm is shown to beat `{baseline}`: nothing here shows that this task needs a language model.")
    for arm in [entry.arm for entry in ranking] + list(failed):
        for seed, why in arm.failures.items():
            warnings.append(f"`{arm.name}` (seed {seed}) failed: {why}")
    if placebo is not None and not placebo.at_chance:
        warnings.append(placebo.text)
    if len(seeds) == 1:
        warnings.append("One seed: the intervals cover the choice of test items, not the luck of training.")
    return tuple(warnings)


def judge_placebo(placebo: ArmResult, metric: str, seeds: Sequence[int], resamples: int = 2000) -> Placebo:
    """Whether an arm trained on shuffled labels scores what blind guessing scores (language tasks have no such level)."""
    runs = placebo.on(placebo.seeds(seeds))
    value = float(np.mean([score(run, metric) for run in runs]))
    draws = replicates(runs, metric, resamples=resamples)
    shown, wide = (
        percentile_interval(value, draws),
        percentile_interval(value, draws, PLACEBO_LEVEL),
    )
    if runs[0].truth is None:
        return Placebo(
            placebo.name,
            shown,
            float("nan"),
            True,
            "A placebo of a language task has no chance level.",
        )
    chance = float(np.mean([chance_level(run, metric) for run in runs]))
    fine = not wide.excludes(chance)
    text = f"placebo (shuffled labels): {show_score(metric, value)}, blind guessing {show_score(metric, chance)}"
    if fine:
        return Placebo(placebo.name, shown, chance, True, f"The {text}: at chance, as it must be.")
    direction = "above" if value > chance else "below"
    why = (
        "what the model knew before training survives, or labels leak" if value > chance else "the luck of the shuffled labels"
    )
    return Placebo(
        placebo.name,
        shown,
        chance,
        False,
        f"The {text}: {direction} chance ({why}); read gains with that in mind.",
    )
