"""A ladder of small runs for a scaling law: one recipe becomes sizes x tokens x seeds, each with a schedule of its own.

Pure functions: which runs, at which rate, and what they cost. ``verbs.scaling`` carries them out, ``scaling_law`` fits them.
A size is what the recipe's ``model.parameters`` is set to; N is the number of weights that multiply each token, counted on the
model that comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from uplift.core.errors import DataError, UsageError
from uplift.core.model_section import BlankModel, Count
from uplift.core.recipe import Budget, Recipe
from uplift.learn.optim import untrained_lr
from uplift.study.plan import Tokens
from uplift.study.scaling_law import LEAST_VALUES, Price, Runs, require_enough
from uplift.study.structure import Structure

SIZES, SIZE_STEP = 4, 3.0
"""Sizes of a ladder made for a budget, each so many times the next smaller one."""
LENGTHS, LENGTH_STEP = 3, 4.0
"""Numbers of tokens of such a ladder."""
TOKENS_PER_PARAMETER = 10
"""Most tokens over largest size of such a ladder: its corners lie on both sides of the 20 that are usual at the optimum."""
RATE_STEP = 3.0
MOST_RATES = 5
"""Learning rates that the search for one tries at most."""
FEW_STEPS = 50
"""Optimizer steps below which a run says little about its size."""
MOST_EPOCHS = 4
"""Passes over the text up to which repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023)."""
CLOSE = 0.02
"""Largest relative error of the held-out run's loss that counts as predicted."""


class Design(BaseModel):
    """Which runs to make, and for which budget to advise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sizes: Annotated[tuple[Count, ...], Field(max_length=20)] = ()
    """Values of ``model.parameters``; default: a ladder that fits ``budget``."""
    tokens: Annotated[tuple[Count, ...], Field(max_length=20)] = ()
    """Training tokens of the runs; default: likewise."""
    seeds: Annotated[int, Field(ge=1, le=20)] = 1
    """Repetitions of each run: other weights, other order, another draw of the text."""
    budget: Budget = Budget()
    """What all runs of the ladder may cost together, in seconds or FLOPs."""
    target: Budget = Budget()
    """What the final run may cost; default: the budget of the recipe, else ten times the largest run."""
    size: Count | None = None
    """Also advise for this size; default: the recipe's ``model.parameters``."""
    tune: bool = True
    """Search the learning rate on the smallest size first."""
    lr_power: Annotated[float, Field(ge=-1, le=2)] = 1 / 3
    """The rate falls with this power of the size (1/3: as 1 / width where depth grows with width, as in muP)."""

    @model_validator(mode="after")
    def _budgets_are_time_or_arithmetic(self) -> Self:
        for name in ("budget", "target"):
            asked: Budget = getattr(self, name)
            if asked.tokens is not None or (asked.seconds is not None and asked.flops is not None):
                raise ValueError(f"`{name}` is one of seconds and FLOPs")
        if bool(self.sizes) != bool(self.tokens):
            raise ValueError("give both sizes and tokens, or neither")
        if not self.sizes and self.budget == Budget():
            raise ValueError("give a budget, or sizes and tokens")
        return self


@dataclass(frozen=True)
class Ladder:
    """Sizes and numbers of tokens, each in rising order."""

    sizes: tuple[int, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], tokens: Sequence[int]) -> Ladder:
        """Each value once, in order."""
        return cls(tuple(sorted(set(sizes))), tuple(sorted(set(tokens))))

    @property
    def middle(self) -> int:
        """The number of tokens at which the rate is searched."""
        return self.tokens[(len(self.tokens) - 1) // 2]

    def cost(self, price: Price, seeds: int, rates: int) -> float:
        """What all runs cost together, ``rates`` runs of the smallest size for the search included."""
        runs = sum(self.tokens) * sum(float(price.per_token(size)) for size in self.sizes) * seeds
        return runs + rates * self.middle * float(price.per_token(self.sizes[0]))


@dataclass(frozen=True)
class Rung:
    """One run. ``held_out``: the law is not fitted to it; ``search``: it only helps to find the rate."""

    size: int
    tokens: int
    seed: int
    lr: float
    held_out: bool = False
    search: bool = False


@dataclass
class Outcome:
    """What a rung came to: N as counted, tokens as trained, held-out loss (nats per token) and bits per byte."""

    rung: Rung
    parameters: int = 0
    tokens: int = 0
    loss: float | None = None
    bits_per_byte: float | None = None
    seconds: float = 0.0
    steps: int = 0
    memory: int = 0
    failure: str = ""


# -- which runs --------------------------------------------------------------------------------------------------------
def check_design(design: Design, base: Recipe) -> None:
    """Raise UsageError when no ladder can be made of this recipe."""
    _require_new_model(base)
    if base.task.use == "classify":
        fix = "use `task: {use: text}`"
        raise UsageError("a scaling law is about language modelling, not about labels", where="task.use", fix=fix)
    if base.train.steps == 0:
        raise UsageError("the recipe trains nothing", where="train.steps", fix="remove `steps: 0`")
    if base.train.schedule.use in ("constant", "decay"):
        why = "the loss must be that of a whole run, from warmup to the end of its decay"
        what = f"`{base.train.schedule.use}` is only a part of a schedule"
        raise UsageError(what, where="train.schedule", why=why, fix="use `wsd`, `cosine` or `linear`")
    if design.sizes:
        check_ladder(Ladder.of(design.sizes, design.tokens))


def check_text(design: Design, train_tokens: float) -> None:
    """Raise DataError when the tokens asked for are many times the ``train_tokens`` that the text has."""
    if design.tokens and max(design.tokens) > MOST_EPOCHS * train_tokens:
        what = f"{max(design.tokens):,} tokens are asked for, and the text has {train_tokens:,.0f}"
        why = f"the law is about new text; more than {MOST_EPOCHS} passes tell of repetition instead"
        raise DataError(what, where="--tokens", why=why, fix="ask for fewer, or give more text")


def _require_new_model(base: Recipe) -> None:
    """Raise UsageError unless ``model.parameters`` alone decides the size of a new, dense model."""
    if not isinstance(base.model, BlankModel):
        fix = "for example `model: {use: blank, shape: llama, parameters: 1M}`"
        raise UsageError("a scaling ladder is made of new models", where="model.use", fix=fix)
    fixed = [name for name in ("width", "layers", "heads", "kv_heads", "feed_forward") if getattr(base.model, name)]
    if fixed or base.model.parameters is None:
        why = "the sizes of the ladder follow from `parameters` alone"
        fix = "give `parameters` and leave the other dimensions out"
        raise UsageError("the model's dimensions are fixed", where=f"model.{(fixed or ['parameters'])[0]}", why=why, fix=fix)
    if base.model.shape == "qwen3_moe":
        why = "with experts, the weights that a token meets are not the weights that hold what is learned"
        raise UsageError(
            "the law has one size, a mixture of experts has two", where="model.shape", why=why, fix="use a dense shape"
        )


def check_ladder(ladder: Ladder) -> None:
    """Raise UsageError when the runs but the largest would not determine a law."""
    points = [(size, tokens) for size in ladder.sizes for tokens in ladder.tokens][:-1]
    columns = np.array(points, dtype=np.float64).reshape(-1, 2)
    if not len(columns):
        raise UsageError("one run makes no ladder", where="--sizes", fix=f"give at least {LEAST_VALUES} sizes")
    try:
        require_enough(Runs(columns[:, 0], columns[:, 1], np.ones(len(columns))))
    except DataError as error:
        raise UsageError(error.what, where="--sizes", why=error.why, fix=error.fix) from None


def ladder_for(budget: float, price: Price, train_tokens: float, seeds: int, rates: int) -> Ladder:
    """The largest ladder whose runs cost ``budget`` together (in the unit of ``price``), on at most ``train_tokens`` tokens.

    Four sizes, each 3 times the next smaller, three numbers of tokens, each 4 times the next smaller, the largest run with 10
    tokens per parameter, or fewer where the text ends.
    """

    def ladder(largest: float) -> Ladder:
        longest = min(TOKENS_PER_PARAMETER * largest, train_tokens)
        return Ladder.of(
            [_two_digits(largest / SIZE_STEP**k) for k in range(SIZES)],
            [_two_digits(longest / LENGTH_STEP**k) for k in range(LENGTHS)],
        )

    low, high = 1e3, 1e13
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ladder(middle).cost(price, seeds, rates) <= budget else (low, middle)
    check_ladder(ladder(low))
    return ladder(low)


def _two_digits(value: float) -> int:
    """Rounded to two significant digits."""
    return int(float(f"{value:.1e}"))


def next_rate(tried: Mapping[float, float]) -> float | None:
    """The factor on the recipe's rate to try next, given the losses of those tried; None when the search is over.

    1, then 3 and 1/3; outwards while the best one lies at an edge, five in all.
    """
    for factor in (1.0, RATE_STEP, 1 / RATE_STEP):
        if factor not in tried:
            return factor
    best = best_rate(tried)
    if len(tried) >= MOST_RATES or best not in (min(tried), max(tried)):
        return None
    return best * RATE_STEP if best == max(tried) else best / RATE_STEP


def best_rate(tried: Mapping[float, float]) -> float:
    """The factor with the lowest loss; one that diverged has an infinite one."""
    return min(tried, key=lambda factor: (tried[factor], factor))


def chosen_rate(tried: Mapping[float, float]) -> float:
    """The factor to train with: where the parabola through the best one and its neighbours has its lowest point.

    The parabola is one of the loss over the logarithm of the rate; three digits. The best one itself at an edge of what was
    tried or beside a rate that diverged.
    """
    best, factors = best_rate(tried), sorted(tried)
    at = factors.index(best)
    if at in (0, len(factors) - 1):
        return best
    below, above = (tried[factors[at + step]] - tried[best] for step in (-1, 1))
    if not 0 < below + above < math.inf:
        return best
    return float(f"{best * RATE_STEP ** ((below - above) / (below + above) / 2):.3g}")


def search_rung(ladder: Ladder, base: Recipe, factor: float) -> Rung:
    """A run of the search: the smallest size, the middle number of tokens."""
    return Rung(ladder.sizes[0], ladder.middle, base.seed, base_rate(ladder, base) * factor, search=True)


def rungs_of(design: Design, ladder: Ladder, base: Recipe, factor: float) -> list[Rung]:
    """Every run of the ladder, the cheap ones first, the largest one held out and last."""
    runs = [
        Rung(
            size,
            tokens,
            base.seed + offset,
            base_rate(ladder, base) * factor * (ladder.sizes[0] / size) ** design.lr_power,
            held_out=(size, tokens) == (ladder.sizes[-1], ladder.tokens[-1]),
        )
        for size in ladder.sizes
        for tokens in ladder.tokens
        for offset in range(design.seeds)
    ]
    return sorted(runs, key=lambda rung: (rung.size * rung.tokens, rung.size, rung.seed))


def base_rate(ladder: Ladder, base: Recipe) -> float:
    """The rate at which the search begins: the recipe's, or what `auto` means for a new model of the smallest size."""
    return base.train.lr if isinstance(base.train.lr, float) else untrained_lr(ladder.sizes[0])


def recipe_for(rung: Rung, base: Recipe, tokens: Tokens, output_dir: str) -> Recipe:
    """The base recipe at the rung's size, tokens and rate; the whole schedule fits the rung's tokens."""
    epochs = math.ceil(1.05 * rung.tokens / tokens.per_epoch) + 1  # the token budget ends the run, not the epochs
    train: dict[str, Any] = {"steps": None, "epochs": float(epochs), "budget": Budget(tokens=rung.tokens), "lr": rung.lr}
    return base.model_copy(
        update={
            "name": f"n{rung.size}-d{rung.tokens}",
            "model": base.model.model_copy(update={"parameters": rung.size}),
            "train": base.train.model_copy(update=train),
            "evaluate": base.evaluate.model_copy(update={"base": False, "robustness": None, "samples": 0}),
            "seed": rung.seed,
            "output_dir": output_dir,
        }
    )


# -- what was measured -------------------------------------------------------------------------------------------------
def multiplying_parameters(structure: Structure) -> int:
    """N: the weights that multiply each token, those of the layers and the head; a tied table is the head."""
    return round((structure.forward_flops + structure.head_flops) / 2)


def fitted_runs(outcomes: Sequence[Outcome]) -> Runs:
    """The runs that a law is fitted to: those that ended with a loss and are not held out."""
    chosen = [one for one in outcomes if one.loss is not None and not one.rung.held_out and not one.rung.search]
    columns = [(one.parameters, one.tokens, one.loss) for one in chosen]
    N, D, L = np.array(columns, dtype=np.float64).reshape(-1, 3).T
    return Runs(N, D, L)


def price_in_seconds(parameters: Sequence[float], seconds_per_token: Sequence[float]) -> Price:
    """Seconds a token as a line over N, fitted to relative errors; neither part is negative. At least one point."""
    cost = np.asarray(seconds_per_token, dtype=np.float64)
    slope = np.asarray(parameters, dtype=np.float64) / cost
    each, fixed = np.linalg.lstsq(np.stack([slope, 1 / cost], axis=1), np.ones_like(cost), rcond=None)[0]
    if len(set(parameters)) > 1 and each > 0 and fixed >= 0:
        return Price(float(each), float(fixed))
    return Price(float(slope.sum() / (slope @ slope)))
