"""What a scaling ladder came to, in numbers and words: a pure function of its outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uplift.core.errors import DataError
from uplift.core.recipe import Budget, Recipe
from uplift.core.report import Cost, Interval
from uplift.core.study_report import HeldOutRun, ScalingAdvice, ScalingLaw, ScalingReport, ScalingRun
from uplift.evaluate import statistics
from uplift.evaluate.tasks import to_interval
from uplift.study.scaling import (
    CLOSE,
    FEW_STEPS,
    MOST_EPOCHS,
    Design,
    Outcome,
    best_rate,
    fitted_runs,
    price_in_seconds,
)
from uplift.study.scaling_law import (
    RESAMPLES,
    UNKNOWNS,
    Fit,
    Price,
    Runs,
    Uncertainty,
    best_split,
    best_within,
    bootstrap,
    fit,
    interval,
    predict,
    tokens_for,
)
from uplift.study.wording import show_count, show_seconds

FAR = 10.0
"""FLOPs over those of the largest run from which advice is far beyond what was measured."""
VAGUE = 1000.0
"""High over low end of the best size's interval from which the runs do not say what it is."""
TEN_TIMES = 10.0
"""FLOPs to advise for when nobody says, over those of the largest run."""


@dataclass(frozen=True)
class Scene:
    """What the advice refers to: tokens of the training text, and N of the size asked about."""

    train_tokens: float
    size: int
    size_parameters: int


@dataclass(frozen=True)
class Findings:
    """The law of a ladder with all that follows from it."""

    runs: Runs
    fit: Fit
    sure: Uncertainty
    bits: float
    """Bits per byte over nats per token."""
    price: Price
    """Seconds a token took."""
    largest: float
    """FLOPs of the largest run."""


def find(outcomes: Sequence[Outcome], resamples: int = RESAMPLES) -> Findings:
    """Fit and bootstrap. Raises DataError when the runs that ended do not determine a law."""
    runs = fitted_runs(outcomes)
    found = fit(runs)
    ended = [one for one in outcomes if one.loss is not None]
    bits = [one.bits_per_byte / one.loss for one in ended if one.bits_per_byte is not None and one.loss]
    slow = [one.seconds / one.tokens for one in ended]
    return Findings(
        runs,
        found,
        bootstrap(runs, found, resamples),
        float(np.mean(bits)) if bits else math.nan,
        price_in_seconds([one.parameters for one in ended], slow),
        max(6.0 * one.parameters * one.tokens for one in ended),
    )


# -- the parts ---------------------------------------------------------------------------------------------------------
def law_part(found: Findings) -> ScalingLaw:
    """The law with its intervals."""
    law, drawn = found.fit.law, found.sure.laws
    values = {name: to_interval(interval(float(getattr(law, name)), getattr(drawn, name))) for name in UNKNOWNS}
    return ScalingLaw(
        **values,
        optimal_exponent=to_interval(interval(float(law.optimal_exponent), drawn.optimal_exponent)),
        runs=len(found.runs),
        deviation=float(np.sqrt(np.mean(found.fit.residuals**2))),
        edges=found.fit.edges,
    )


def held_out_part(found: Findings, outcomes: Sequence[Outcome]) -> HeldOutRun | None:
    """Prediction and measurement of the largest run; None when it did not end."""
    ended = [one for one in outcomes if one.rung.held_out and one.loss is not None]
    if not ended:
        return None
    parameters, tokens = ended[0].parameters, float(np.mean([one.tokens for one in ended]))
    measured = float(np.mean([one.loss for one in ended]))
    predicted = predict(found.fit.law, found.sure, parameters, tokens, len(ended))
    error = predicted.value / measured - 1
    return HeldOutRun(
        parameters=parameters,
        tokens=round(tokens),
        seeds=len(ended),
        measured=measured,
        predicted=to_interval(predicted),
        error=error,
        close=abs(error) <= CLOSE,
        covered=not predicted.excludes(measured),
    )


def target_of(design: Design, base: Recipe, largest: float) -> Budget:
    """The budget to advise for: the one asked, that of the recipe, or ten times the FLOPs of the largest run."""
    own = base.train.budget
    for asked in (design.target, Budget(seconds=own.seconds), Budget(flops=own.flops)):
        if asked != Budget():
            return asked
    return Budget(flops=TEN_TIMES * largest)


def best_use(found: Findings, target: Budget) -> tuple[statistics.Interval, statistics.Interval]:
    """N and D at which the budget gives the least loss."""
    law, drawn = found.fit.law, found.sure.laws
    if target.flops is not None:
        chosen, replicates = best_split(law, target.flops), best_split(drawn, target.flops)
    else:
        seconds = target.seconds or 0.0
        chosen, replicates = best_within(law, seconds, found.price), best_within(drawn, seconds, found.price)
    N, D = (interval(float(value), many) for value, many in zip(chosen, replicates, strict=True))
    return N, D


def advice_parts(
    found: Findings, target: Budget, scene: Scene, N: statistics.Interval, D: statistics.Interval
) -> list[ScalingAdvice]:
    """The best use of the budget, N and D; what the size asked about makes of it; and the best use of that size."""
    size, spent, name = scene.size_parameters, show_budget(target), show_count(scene.size)
    if target.flops is not None:
        affordable = target.flops / (6 * size)
    else:
        affordable = (target.seconds or 0.0) / float(found.price.per_token(size))
    enough = interval(float(tokens_for(found.fit.law, size)), tokens_for(found.sure.laws, size))
    return [
        _advice(found, f"best use of {spent}", N, D, scene),
        _advice(found, f"{name} parameters within {spent}", _exact(size), _exact(affordable), scene),
        _advice(found, f"best number of tokens for {name} parameters", _exact(size), enough, scene),
    ]


def _exact(value: float) -> statistics.Interval:
    return statistics.Interval(float(value), float(value), float(value))


def _advice(found: Findings, question: str, N: statistics.Interval, D: statistics.Interval, scene: Scene) -> ScalingAdvice:
    loss = to_interval(predict(found.fit.law, found.sure, N.value, D.value))
    flops = 6 * N.value * D.value
    return ScalingAdvice(
        question=question,
        parameters=to_interval(N),
        tokens=to_interval(D),
        loss=loss,
        bits_per_byte=_times(loss, found.bits) if math.isfinite(found.bits) else None,
        flops=flops,
        seconds=float(found.price.per_token(N.value)) * D.value,
        epochs=D.value / scene.train_tokens,
        beyond=flops / found.largest,
    )


def _times(given: Interval, factor: float) -> Interval:
    value, low, high = (None if end is None else end * factor for end in (given.value, given.low, given.high))
    return Interval(value=value, low=low, high=high)


def run_parts(outcomes: Sequence[Outcome], found: Findings | None) -> list[ScalingRun]:
    """Every run, with what the law says of it."""
    return [
        ScalingRun(
            size=one.rung.size,
            parameters=one.parameters,
            tokens=one.tokens,
            seed=one.rung.seed,
            lr=one.rung.lr,
            loss=one.loss,
            fitted=float(found.fit.law.loss(one.parameters, one.tokens)) if found and one.loss is not None else None,
            seconds=one.seconds,
            steps=one.steps,
            held_out=one.rung.held_out,
            search=one.rung.search,
            failure=one.failure,
        )
        for one in outcomes
    ]


def undecided(found: Findings, N: statistics.Interval) -> str:
    """Why the runs name no best use of a budget, as a clause; empty where they do. ``N``: the best size that came out."""
    parts = {"A": "the size", "alpha": "the size", "B": "the number of tokens", "beta": "the number of tokens"}
    unseen = list(dict.fromkeys(parts[name] for name in found.fit.edges if name in parts))
    if unseen:
        return f"they do not show how the loss falls with {' and '.join(unseen)}"
    if not N.high <= VAGUE * N.low:
        return "the loss depends so little, or so unevenly, on the size that the best one could be nearly any"
    return ""


# -- in words ----------------------------------------------------------------------------------------------------------
def show_budget(budget: Budget) -> str:
    """``1.0e+15 FLOPs`` or ``20 min``."""
    return f"{budget.flops:.2g} FLOPs" if budget.flops is not None else show_seconds(budget.seconds)


def show_ends(part: Interval, shown: str = ".3f") -> str:
    """``2.41 to 2.47``; empty without ends."""
    return "" if part.low is None or part.high is None else f"{part.low:{shown}} to {part.high:{shown}}"


def show_point(size: float, tokens: float) -> str:
    """``1.0 M parameters, 5.0 M tokens``."""
    return f"{show_count(size)} parameters, {show_count(tokens)} tokens"


def verdict(advice: Sequence[ScalingAdvice], held_out: HeldOutRun | None, target: Budget, vague: str) -> str:
    """The one sentence to take away. ``vague``: why there is no advice."""
    if not advice:
        text = (
            f"These runs name no best use of {show_budget(target)}: {vague}. Where size makes no difference yet, runs are too "
        )
        return (
            text
            + "short: take more tokens per parameter (`--tokens`), smaller sizes (`--sizes`) or smaller steps (`batch_tokens`)."
        )
    best = advice[0]
    bits = f", {best.bits_per_byte.value:.3f} bits per byte" if best.bits_per_byte and best.bits_per_byte.value else ""
    text = f"For this text, {show_budget(target)} are best spent on {show_count(best.parameters.value)} parameters and "
    text += f"{show_count(best.tokens.value)} tokens: loss {best.loss.value or 0:.3f} "
    text += f"(90 % interval {show_ends(best.loss)}){bits}."
    if held_out is not None and not held_out.close:
        text += f" Do not rely on it: the law missed the largest run by {100 * abs(held_out.error or 0):.1f} %."
    return text


def reasons(law: ScalingLaw, held_out: HeldOutRun | None, advice: Sequence[ScalingAdvice]) -> list[str]:
    """What stands behind the verdict, most important first."""
    lines = []
    if held_out is not None:
        lines.append(
            f"The largest run ({show_point(held_out.parameters, held_out.tokens)}) was held out: "
            f"predicted {held_out.predicted.value or 0:.3f} (90 % band {show_ends(held_out.predicted)}), measured "
            f"{held_out.measured or 0:.3f}, error {100 * (held_out.error or 0):+.1f} %. "
            f"Within 2 %: {_yes(held_out.close)}. Inside the band: {_yes(held_out.covered)}."
        )
    if len(advice) == 3:
        power = law.optimal_exponent
        ends = show_ends(power, ".2f")
        lines.append(f"The best size grows with the FLOPs to the power {power.value or 0:.2f} (90 % interval {ends}).")
        lines.append(
            f"For {advice[2].question.rpartition('for ')[2]}, {show_count(advice[2].tokens.value)} tokens "
            f"({_counts(advice[2].tokens)}) are the best use: loss {advice[2].loss.value or 0:.3f}."
        )
    return lines


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _counts(part: Interval) -> str:
    return f"{show_count(part.low)} to {show_count(part.high)}"


def warnings(
    outcomes: Sequence[Outcome], law: ScalingLaw | None, held_out: HeldOutRun | None, advice: Sequence[ScalingAdvice]
) -> list[str]:
    """What the reader should be careful about."""
    found = []
    if law is not None and held_out is None:
        found.append("The largest run did not end: nothing shows whether the law predicts.")
    if law is not None and law.edges:
        found.append(f"The runs do not determine {', '.join(f'`{name}`' for name in law.edges)}: more spread is needed.")
    if advice and (advice[0].beyond or 0) > FAR:
        times = f"{advice[0].beyond or 0:.0f} times the FLOPs of the largest run"
        found.append(f"The budget is {times}: the intervals say nothing of a law that changes on the way.")
    if advice and (advice[0].epochs or 0) > MOST_EPOCHS:
        need, passes = show_count(advice[0].tokens.value), advice[0].epochs or 0
        found.append(f"{need} tokens are {passes:.1f} passes over this text; the law is about new text. Find more of it.")
    rates = tried_rates(outcomes)
    if rates and best_rate(rates) in (min(rates), max(rates)):
        found.append(f"The best learning rate, {best_rate(rates):.2g}, is the last one tried: begin the search nearer to it.")
    short = [one for one in outcomes if one.loss is not None and one.steps < FEW_STEPS and not one.rung.search]
    if short:
        found.append(
            f"{len(short)} runs took fewer than {FEW_STEPS} steps: lower `train.batch_tokens`, or ask for more tokens."
        )
    return found + [
        f"{show_point(one.rung.size, one.rung.tokens)} (seed {one.rung.seed}) failed: {one.failure}"
        for one in outcomes
        if one.failure
    ]


def tried_rates(outcomes: Sequence[Outcome]) -> Mapping[float, float]:
    """Loss by learning rate of the search; infinite where it diverged."""
    return {one.rung.lr: math.inf if one.loss is None else one.loss for one in outcomes if one.rung.search}


def notes(design: Design, base: Recipe, outcomes: Sequence[Outcome]) -> list[str]:
    """How the numbers were made."""
    lines = [
        "N counts the weights that multiply each token: the layers and the head (a tied table is the head, a table that is "
        "only looked up is not counted). FLOPs are 6 N D: the head is in it, attention's products of tokens are not.",
        f"Every run has a whole `{base.train.schedule.use}` schedule of its own; no loss is read in the middle of one. "
        "All runs see the same held-out text.",
    ]
    sizes = [one.rung.size for one in outcomes]
    if len(set(sizes)) > 1 and design.lr_power:
        lines.append(f"The learning rate falls with the size to the power {design.lr_power:.2f}, from that of the smallest.")
    lines.append(
        "The law minimises the Huber loss (1e-3) of log L from many starts. Intervals are 90 %: the runs' deviations from the "
        "law are redrawn and the law is refitted; those of a run to come include such a deviation."
    )
    return lines


# -- the report --------------------------------------------------------------------------------------------------------
def scaling_report(
    design: Design, base: Recipe, outcomes: Sequence[Outcome], scene: Scene, resamples: int = RESAMPLES, **common: object
) -> ScalingReport:
    """The report; ``common`` goes through (hash, command, started, finished, environment, data)."""
    reason, found, law, held_out = "", None, None, None
    advice: list[ScalingAdvice] = []
    try:
        found = find(outcomes, resamples)
    except DataError as error:
        reason = f"{error.what}: {error.why}" if error.why else error.what
    text = "No law could be fitted: the reason stands below."
    if found is not None:
        target = target_of(design, base, found.largest)
        law, held_out = law_part(found), held_out_part(found, outcomes)
        N, D = best_use(found, target)
        vague = undecided(found, N)
        advice = [] if vague else advice_parts(found, target, scene, N, D)
        text = verdict(advice, held_out, target, vague)
    return ScalingReport(
        name=base.name,
        status="finished" if found else "failed",
        reason=reason,
        cost=_cost(outcomes),
        recipe=base.model_dump(mode="json"),
        warnings=tuple(warnings(outcomes, law, held_out, advice)),
        notes=tuple(notes(design, base, outcomes)),
        verdict=text,
        reasons=tuple(reasons(law, held_out, advice)) if law else (),
        runs=tuple(run_parts(outcomes, found)),
        law=law,
        held_out=held_out,
        advice=tuple(advice),
        **common,  # type: ignore[arg-type]
    )


def _cost(outcomes: Sequence[Outcome]) -> Cost:
    """Time and tokens of all runs together."""
    return Cost(
        seconds=sum(one.seconds for one in outcomes),
        tokens=sum(one.tokens for one in outcomes),
        peak_memory_bytes=max((one.memory for one in outcomes), default=0),
        steps=sum(one.steps for one in outcomes),
    )
