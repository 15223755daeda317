"""The protocol of every experiment: arms that share seeds, paired differences with intervals, one stored result.

An arm is a function of a seed. Whatever the seed decides (initial weights, rows, their order) is the same in all arms, so arms
are compared seed by seed. A measurement that was made is kept in ``acceptance/runs`` and not made again: an experiment that
was interrupted goes on, and one with more seeds adds only those.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from scipy.stats import t as student

from uplift.core.storage import write_atomically
from uplift.study.machine import measure

HERE = Path(__file__).parent
RUNS = HERE / "runs"
RESULTS = HERE.parent / "src" / "uplift" / "techniques" / "accepted"

Metrics = dict[str, float]
Arm = Callable[[int, Path], Metrics]


@dataclass(frozen=True)
class Claim:
    """``metric`` of ``arm`` minus that of ``against`` is at least ``least``, or at most ``most``. Bounds in the metric's unit.

    ``shown``: its interval must exclude zero as well (a difference is claimed), not only its mean keep the bound.
    """

    arm: str
    against: str
    metric: str
    least: float | None = None
    most: float | None = None
    shown: bool = False


@dataclass(frozen=True)
class Experiment:
    """A question with its arms. ``budget`` says in words what is equal between them; ``placebo`` names the arm that is one."""

    name: str
    techniques: tuple[str, ...]
    question: str
    budget: str
    arms: Mapping[str, Arm]
    claims: Sequence[Claim]
    seeds: int = 5
    placebo: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A claim with what came out: mean paired difference and its 95 % interval (Student's t over seeds)."""

    arm: str
    against: str
    metric: str
    mean: float
    low: float
    high: float
    per_seed: list[float]
    wanted: str
    holds: bool


@dataclass(frozen=True)
class Result:
    """Everything of an experiment that documents quote."""

    name: str
    techniques: tuple[str, ...]
    question: str
    budget: str
    seeds: int
    placebo: str | None
    arms: dict[str, dict[str, list[float]]]
    comparisons: list[Comparison]
    command: str
    date: str
    machine: str

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(comparison.holds for comparison in self.comparisons)


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the differences and its 95 % interval; without a spread to speak of (one seed) the interval is unbounded."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    half = float(student.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def judge(claim: Claim, arms: Mapping[str, Mapping[str, list[float]]]) -> Comparison:
    """The claim beside the measurements."""
    first, second = arms[claim.arm][claim.metric], arms[claim.against][claim.metric]
    mean, low, high = paired(first, second)
    keeps = (claim.least is None or mean >= claim.least) and (claim.most is None or mean <= claim.most)
    shown = low > 0 or high < 0 or not claim.shown
    bounds = [f"at least {claim.least:g}"] if claim.least is not None else []
    bounds += [f"at most {claim.most:g}"] if claim.most is not None else []
    wanted = " and ".join(bounds) + (", interval without 0" if claim.shown else "")
    per_seed = [a - b for a, b in zip(first, second, strict=True)]
    return Comparison(claim.arm, claim.against, claim.metric, mean, low, high, per_seed, wanted, keeps and shown)


def carry_out(experiment: Experiment, seeds: int | None, say: Callable[[str], None]) -> Result:
    """Run what has not been run, judge the claims and store the result."""
    count = experiment.seeds if seeds is None else seeds
    arms: dict[str, dict[str, list[float]]] = {}
    for seed in range(count):  # seed by seed, so that an interrupted experiment has whole pairs
        for name, arm in experiment.arms.items():
            found = _measured(experiment.name, name, seed, arm)
            say(f"{experiment.name}: {name}, seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
            for metric, value in found.items():
                arms.setdefault(name, {}).setdefault(metric, []).append(value)
    result = Result(
        experiment.name,
        experiment.techniques,
        experiment.question,
        experiment.budget,
        count,
        experiment.placebo,
        arms,
        [judge(claim, arms) for claim in experiment.claims],
        f"python -m acceptance {experiment.name}" + (f" --seeds {count}" if count != experiment.seeds else ""),
        datetime.now(UTC).date().isoformat(),
        measure("cpu").describe(),
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS / f"{experiment.name}.json", json.dumps(asdict(result) | {"holds": result.holds}, indent=1) + "\n")
    return result


def _measured(experiment: str, arm: str, seed: int, run: Arm) -> Metrics:
    folder = RUNS / experiment
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{arm}-{seed}.json"
    if kept.exists():
        found: Metrics = json.loads(kept.read_text(encoding="utf-8"))
        return found
    found = run(seed, folder / "work")
    write_atomically(kept, json.dumps(found))
    return found
