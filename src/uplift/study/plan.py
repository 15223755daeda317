"""The honest plan: parameters, memory, FLOPs, tokens, time and disk of a run, before it starts.

Arithmetic on counted parameters, a sample of tokenised rows and this machine's measured speed; every assumption is
listed. With a probe (a few real steps) the speed is measured instead of assumed. Bytes, seconds and FLOPs throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, computed_field
from rich.console import Group
from rich.table import Table
from rich.text import Text

from uplift.core.recipe import ClassifyTask, Recipe
from uplift.core.report import Predicted
from uplift.core.storage import free_bytes
from uplift.data.chat import Encoder
from uplift.data.dataset import Parts, load_parts
from uplift.data.sampling import by_row, spread
from uplift.learn.assemble import apply_samples, corpora_of, micro_tokens, resolve_head
from uplift.learn.linear_loss import rows_at_once
from uplift.learn.quality import quality_step
from uplift.learn.scoring import shared_prefix
from uplift.model.language_model import LanguageModel
from uplift.model.opening import model_kind
from uplift.study import machine
from uplift.study.structure import Structure, examine, hollow_model
from uplift.study.wording import show_bytes, show_count, show_seconds

FLOAT = 4
ENCODED_SAMPLE = 400
"""Rows that are tokenised to estimate lengths."""
EFFICIENCY = {"cpu": 0.6, "cuda": 0.35}
"""Share of the measured matrix-product peak that training reaches; measured 0.6-0.75 on CPUs for packed rows."""
PROCESS_BYTES = 700 * 2**20
"""Python, torch and transformers themselves, on the CPU."""
STEP_SECONDS = 0.02
"""Fixed cost of an optimizer step: bookkeeping, metrics, progress."""


@dataclass(frozen=True)
class Tokens:
    """Lengths of the training rows, from a sample of them: mean and longest, and the share of tokens that is learned.

    ``shared``: leading tokens of all prompts, which an evaluation runs once.
    """

    rows: int
    mean: float
    longest: int
    learned: float
    test_rows: int
    shared: int = 0

    @property
    def per_epoch(self) -> float:
        """Tokens of one pass over the training rows."""
        return self.rows * self.mean


@dataclass(frozen=True)
class Memory:
    """Peak memory by cause, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    process: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head + self.process


@dataclass(frozen=True)
class Probe:
    """What a few real steps showed."""

    seconds_per_token: float
    peak_memory_bytes: int | None = None
    seconds_again: float | None = None


class Plan(BaseModel):
    """What a run will take. ``calibrated``: speed measured on real steps; ``problems``: reasons to think before starting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    structure: Structure
    tokens: Tokens
    memory: Memory
    machine: machine.Machine
    passes: int
    cost_multiplier: float
    training_flops_per_token: float
    forward_flops_per_token: float
    tokens_per_second: float
    steps: int
    training_tokens: float
    epochs: float
    seconds: float
    evaluation_seconds: float
    disk_bytes: int
    calibrated: bool
    peak_memory_bytes: int
    assumptions: tuple[str, ...]
    problems: tuple[str, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return self.training_flops_per_token * self.training_tokens

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, how much, how it comes about) for people."""
        found, memory, tokens = self.structure, self.memory, self.tokens
        parts = [(name, float(size)) for name, size in asdict(memory).items()]
        share = 100 * found.trainable / max(1, found.parameters)
        reach = f"{found.trained_layers} of {found.layers} layers are trained through"
        each = f"{self.training_flops_per_token / 1e6:,.0f} MFLOP a token, {self.passes} forward passes a step"
        pace = f"{self.tokens_per_second:,.0f} tokens/s" + (", measured" if self.calibrated else ", estimated")
        return [
            ("trainable parameters", f"{found.trainable:,}", f"{share:.2f} % of {found.parameters:,}; {reach}"),
            (
                "memory",
                show_bytes(self.peak_memory_bytes),
                ", ".join(f"{name} {show_bytes(round(size))}" for name, size in parts),
            ),
            ("arithmetic", f"{self.flops / 1e12:,.1f} TFLOP", f"{each}; {self.cost_multiplier:.2f} times a plain step"),
            (
                "tokens",
                show_count(self.training_tokens),
                f"{self.epochs:.2f} epochs of {show_count(tokens.per_epoch)}; {self.steps} steps",
            ),
            ("training time", show_seconds(self.seconds), pace),
            ("evaluation time", show_seconds(self.evaluation_seconds), f"{tokens.test_rows} test rows"),
            ("disk", show_bytes(self.disk_bytes), "checkpoints while it runs, and the model"),
        ]

    def __rich__(self) -> Group:
        """A table, then what was assumed and what may go wrong."""
        table = Table("plan", "", "", box=None, header_style="bold")
        for row in self.rows():
            table.add_row(*row)
        lines = [f"assumed: {line}" for line in self.assumptions] + [f"problem: {line}" for line in self.problems]
        return Group(table, *(Text(line) for line in lines))

    def as_predicted(self) -> Predicted:
        """The prediction that a report shows beside what was measured."""
        return Predicted(
            seconds=self.seconds,
            tokens=round(self.training_tokens),
            peak_memory_bytes=self.peak_memory_bytes,
            disk_bytes=self.disk_bytes,
        )


def plan(
    recipe: Recipe,
    base_dir: Path,
    *,
    probe: Callable[[], Probe] | None = None,
    parts: Parts | None = None,
) -> Plan:
    """Foretell what ``recipe`` takes on this machine; nothing is trained unless ``probe`` is given.

    ``probe`` runs a few real steps and says how fast they were; ``parts`` saves reading the data again. Raises what opening
    the data and the model's configuration raises.
    """
    head = resolve_head(recipe.task, model_kind(recipe.model, base_dir))
    parts = parts or load_parts(recipe.data, recipe.task, base_dir, head, quality=quality_step)
    labels = parts.labels if isinstance(recipe.task, ClassifyTask) else ()
    model = hollow_model(recipe, base_dir, labels, parts.train)
    tokens = training_tokens(recipe, parts, model, min(recipe.evaluate.limit or len(parts.test), len(parts.test)))
    structure = examine(model, recipe.techniques, recipe.train.steps != 0)
    return foretell(recipe, structure, tokens, measured_machine(recipe), probe() if probe and structure.trainable else None)


def training_tokens(recipe: Recipe, parts: Parts, model: LanguageModel, test_rows: int) -> Tokens:
    """Length statistics of the training rows as the techniques leave them, from at most ``ENCODED_SAMPLE`` of them.

    ``model`` may be hollow. Copies of a row that take turns are one row of an epoch.
    """
    encoder = Encoder(model.tokenizer, recipe.train.max_length, model.kind)
    corpus = list(apply_samples(corpora_of(parts, encoder)["train"], [technique.fresh() for technique in recipe.techniques]))
    rows = len(by_row(corpus)[1]) - 1
    encoded = encoder.encode_all([corpus[i] for i in spread(len(corpus), ENCODED_SAMPLE)])
    lengths = [len(item) for item in encoded] or [1]
    learned = sum(sum(weight > 0 for weight in item.weights) for item in encoded)
    shared = shared_prefix([tuple(item.ids) for item in encoded]) if encoder.kind == "causal" and learned else 0
    return Tokens(rows, sum(lengths) / len(lengths), max(lengths), learned / max(1, sum(lengths)), test_rows, shared)


def measured_machine(recipe: Recipe) -> machine.Machine:
    """This machine for the recipe's device and threads."""
    asked = recipe.hardware.device
    device = asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    threads = None if recipe.hardware.threads == "auto" else recipe.hardware.threads
    return machine.measure(device, threads)


# -- the arithmetic ----------------------------------------------------------------------------------------------------
def forward_flops(structure: Structure, tokens: Tokens) -> float:
    """Of one token: 2 per weight of the layers, attention over half (decoder) or all (encoder) of the row, the head's share."""
    context = tokens.mean / 2 if structure.kind == "causal" else tokens.mean
    per_token = structure.forward_flops + structure.attention_flops * context
    return per_token + structure.head_flops * head_share(structure, tokens)


def head_share(structure: Structure, tokens: Tokens) -> float:
    """How many positions reach the head, per token: the learned ones, or one a sample for a class head."""
    return tokens.learned if structure.head == "language" else 1 / max(1.0, tokens.mean)


def training_flops(structure: Structure, tokens: Tokens) -> float:
    """Of one trained token: forward; 2 per weight back through layers from the lowest trained one; 2 per trained weight.

    Attention costs twice its forward again where the backward pass goes; the head 2 per weight for its input (always, when
    anything below it trains) and 2 for its own weights when they train.
    """
    context = tokens.mean / 2 if structure.kind == "causal" else tokens.mean
    attention = 2 * structure.attention_flops * context * structure.backward_share
    head = structure.head_flops * head_share(structure, tokens) * ((structure.trained_layers > 0) + structure.head_trains)
    return forward_flops(structure, tokens) + structure.backward_flops + attention + head


def step_cost(recipe: Recipe) -> tuple[int, float]:
    """Forward passes of a step, and its cost over a plain step (which is 3 forwards' worth)."""
    declared = [technique.declare() for technique in recipe.techniques]
    return 1 + sum(one.passes for one in declared), 1 + sum(one.cost for one in declared) / 3


@dataclass(frozen=True)
class Pace:
    """Seconds per token: when a row is seen for the first time, and again (frozen lower layers come from the cache then)."""

    first: float
    again: float
    epoch: float
    """Tokens of an epoch."""

    def seconds(self, tokens: float) -> float:
        """Time for so many training tokens."""
        return min(tokens, self.epoch) * self.first + max(0.0, tokens - self.epoch) * self.again

    def tokens(self, seconds: float) -> float:
        """Training tokens in so much time."""
        whole = self.epoch * self.first
        return seconds / self.first if seconds <= whole else self.epoch + (seconds - whole) / self.again


def pace_of(recipe: Recipe, structure: Structure, tokens: Tokens, speed: float, probe: Probe | None) -> Pace:
    """The pace at ``speed`` FLOP/s, or the probe's."""
    overhead = STEP_SECONDS / step_size(recipe, tokens)
    if probe is not None:
        return Pace(
            probe.seconds_per_token + overhead, (probe.seconds_again or probe.seconds_per_token) + overhead, tokens.per_epoch
        )
    forward, multiplier = forward_flops(structure, tokens), step_cost(recipe)[1]
    work = training_flops(structure, tokens) * multiplier if structure.trainable else forward
    perturbed = any("embeddings" in technique.declare().mutates for technique in recipe.techniques)
    cached = recipe.hardware.prefix_cache and structure.trainable > 0 and not perturbed
    saved = (1 - structure.backward_share) * forward if cached else 0.0
    return Pace(work / speed + overhead, max(work - saved, 0.01 * work) / speed + overhead, tokens.per_epoch)


def horizon(recipe: Recipe, tokens: Tokens, flops_per_token: float, pace: Pace) -> tuple[float, int]:
    """(training tokens, steps): epochs or steps, cut by the first budget met."""
    train = recipe.train
    if train.steps == 0 or not tokens.rows:
        return 0.0, 0
    step_tokens = step_size(recipe, tokens)
    total = train.epochs * tokens.per_epoch if train.steps is None else train.steps * step_tokens
    budget = train.budget
    limits = [total]
    limits += [float(budget.tokens)] if budget.tokens is not None else []
    limits += [budget.flops / flops_per_token] if budget.flops is not None else []
    limits += [pace.tokens(budget.seconds)] if budget.seconds is not None else []
    return min(limits), max(1, math.ceil(min(limits) / step_tokens))


def step_size(recipe: Recipe, tokens: Tokens) -> float:
    """Tokens of one step: whole samples fill ``batch_tokens`` up to half a sample on average, never beyond an epoch."""
    filled = max(tokens.mean, recipe.train.batch_tokens - tokens.mean / 2)
    return max(1.0, min(filled, tokens.per_epoch))


def memory_of(recipe: Recipe, structure: Structure, tokens: Tokens, device: str) -> Memory:
    """Weights, gradients and two Adam moments in fp32; activations of one micro-batch; the head's chunk of logits."""
    row = max(min(micro_tokens(recipe.train, device, structure.width), tokens.per_epoch), tokens.longest)
    trains = structure.trainable > 0
    layers = structure.trained_layers if trains else 0
    activations = row * structure.activation_floats * max(layers, 1) * FLOAT
    chunk = rows_at_once(max(1, structure.vocabulary), device)
    # Logits and their gradient for one chunk; the head's weight gradient is kept beside the parameter's own until it is added.
    head = 2.0 * min(chunk, row) * structure.vocabulary * FLOAT
    head += structure.vocabulary * structure.width * FLOAT if structure.head_trains else 0.0
    return Memory(
        weights=structure.parameters * FLOAT,
        gradients=structure.trainable * FLOAT,
        optimizer=2 * structure.trainable * FLOAT,
        activations=activations,
        head=head,
        process=PROCESS_BYTES if device == "cpu" else 0.0,
    )


def disk_of(recipe: Recipe, structure: Structure) -> int:
    """Checkpoints kept besides the best (weights that train and two moments each) and one being written, and the model."""
    checkpoint = 3 * structure.trainable * FLOAT
    kept = recipe.train.keep + 1 if structure.trainable else 0
    return kept * checkpoint + structure.parameters * FLOAT


def foretell(recipe: Recipe, structure: Structure, tokens: Tokens, found: machine.Machine, probe: Probe | None = None) -> Plan:
    """The plan as a pure function of what was counted and measured."""
    passes, multiplier = step_cost(recipe)
    forward = forward_flops(structure, tokens)
    training = training_flops(structure, tokens) * multiplier if structure.trainable else 0.0
    peak = found.gemm_flops * (max(1.0, found.bf16_ratio) if found.device != "cpu" else 1.0)
    speed = peak * EFFICIENCY.get(found.device, EFFICIENCY["cpu"])
    pace = pace_of(recipe, structure, tokens, speed, probe)
    total, steps = horizon(recipe, tokens, training or forward, pace)
    seconds = pace.seconds(total)
    memory = memory_of(recipe, structure, tokens, found.device)
    peak_memory = probe.peak_memory_bytes if probe and probe.peak_memory_bytes else round(memory.total)
    evaluations = 1 + (recipe.evaluate.base and structure.trainable > 0)
    result = Plan(
        structure=structure,
        tokens=tokens,
        memory=memory,
        machine=found,
        passes=passes,
        cost_multiplier=multiplier,
        training_flops_per_token=training,
        forward_flops_per_token=forward,
        tokens_per_second=total / seconds if seconds else 1 / pace.first,
        steps=steps,
        training_tokens=total,
        epochs=total / tokens.per_epoch if tokens.rows else 0.0,
        seconds=seconds,
        evaluation_seconds=evaluations * evaluated_rows(recipe, tokens) * (tokens.mean - tokens.shared) * forward / speed,
        disk_bytes=disk_of(recipe, structure),
        calibrated=probe is not None,
        peak_memory_bytes=peak_memory,
        assumptions=_assumptions(found, tokens, probe),
        problems=(),
    )
    return _with_problems(recipe, result)


PUSH = 2
"""Forwards that a gradient step on embeddings takes: there and back, no weight gradients."""


def evaluated_rows(recipe: Recipe, tokens: Tokens) -> float:
    """Forwards of a row in one evaluation: the test rows, and what attacks on them may take at most."""
    attacks = recipe.evaluate.robustness
    if attacks is None:
        return tokens.test_rows
    pushes = len(attacks.eps) * (1 + attacks.steps) * PUSH if "embedding" in attacks.attacks else 0
    texts = attacks.queries * sum(attack != "embedding" for attack in attacks.attacks)
    return tokens.test_rows + min(attacks.rows, tokens.test_rows) * (texts + pushes)


def _assumptions(found: machine.Machine, tokens: Tokens, probe: Probe | None) -> tuple[str, ...]:
    efficiency = EFFICIENCY.get(found.device, EFFICIENCY["cpu"])
    speed = "speed measured on real steps" if probe else f"training reaches {100 * efficiency:.0f} % of the measured peak"
    lines = [
        f"{speed} ({found.describe()})",
        f"lengths of {min(ENCODED_SAMPLE, tokens.rows)} rows stand for all {tokens.rows}",
        "weights, gradients and two Adam moments in 32 bits; techniques that keep copies of weights are not counted",
        "no time for loading, saving and validation",
    ]
    if found.busy and found.device == "cpu":
        lines.append(f"other work holds {found.load:.1f} cores now; a quiet machine is faster")
    return tuple(lines)


def _with_problems(recipe: Recipe, found: Plan) -> Plan:
    problems = []
    if found.peak_memory_bytes > found.machine.memory_available:
        need, have = found.peak_memory_bytes / 2**30, found.machine.memory_available / 2**30
        problems.append(
            f"needs about {need:.1f} GiB of memory, {have:.1f} GiB are free: lower `train.micro_tokens` or use an adapter"
        )
    room = free_bytes(_existing(Path(recipe.output_dir)))
    if found.disk_bytes > room:
        problems.append(f"needs about {found.disk_bytes / 2**30:.1f} GiB of disk, {room / 2**30:.1f} GiB are free")
    if found.structure.trainable and found.epochs < 1:
        problems.append(f"the budget ends training after {100 * found.epochs:.0f} % of the training rows")
    return found.model_copy(update={"problems": tuple(problems)})


def _existing(path: Path) -> Path:
    """The nearest folder on the way up that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
