"""From a recipe to everything training needs: rows, model, edited model, tokens, optimizer, engine. In that order."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from uplift.core.errors import RecipeError, RecipeErrors
from uplift.core.legality import clashes_of
from uplift.core.recipe import BlankModel, ClassifyTask, Recipe, Task, Train
from uplift.core.run import Run
from uplift.core.technique import Phase, Technique
from uplift.core.values import Corpus, Encoded, Part, Setting, derive_seed
from uplift.data.audit import Audit, audit
from uplift.data.chat import Encoder
from uplift.data.dataset import Parts, load_parts
from uplift.data.passages import passages
from uplift.learn.engine import Engine, Report
from uplift.learn.feed import Feed, fixed_batches
from uplift.learn.learner import Learner
from uplift.learn.optim import apply_groups, build_optimizer, peak_lr, resolve_groups, shares_of_muon
from uplift.learn.parallel import Parallel
from uplift.learn.quality import quality_step
from uplift.learn.schedule import Horizon
from uplift.model.blank import open_blank, tokenizer_folder
from uplift.model.language_model import LanguageModel
from uplift.model.matrices import active_size
from uplift.model.opening import model_kind, open_model
from uplift.model.prefix_cache import PrefixCache
from uplift.model.quantized import quantized_sizes

HeadKind = Literal["language", "class"]
PHASES: tuple[Phase, ...] = ("structure", "adapter", "precision")
CPU_MICRO_TOKENS, DEVICE_MICRO_TOKENS = 1024, 16_384
NARROW = 512
"""Hidden width up to which a CPU takes twice as many tokens at once: its matrix products are small."""
NO_PREFIX = frozenset({"embedding_gradient", "regroup", "random_layers", "layer_outputs"})
"""Techniques that give one of these need the frozen layers run anew at every step."""
VERSIONED = ("llm-uplift", "torch", "transformers", "peft")


@dataclass
class Assembly:
    """A recipe made concrete. ``corpora`` have the ``samples`` chain applied; ``plain`` are the untouched ones."""

    recipe: Recipe
    parts: Parts
    model: LanguageModel
    techniques: list[Technique]
    encoder: Encoder
    plain: dict[Part, Corpus]
    corpora: dict[Part, Corpus]
    warnings: list[str] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether the recipe trains at all (``steps: 0`` does not)."""
        return self.recipe.train.steps != 0

    @property
    def makes_model(self) -> bool:
        """Whether another model than the opened one comes out: it trained, or a technique finishes it without training."""
        return self.trains or any(type(each).finish is not Technique.finish for each in self.techniques)


def resolve_head(task: Task, kind: str) -> HeadKind:
    """Which head the task trains on this kind of model. Raises RecipeError when the model cannot have it."""
    wanted = task.head if isinstance(task, ClassifyTask) else "words"
    if wanted == "classifier" or (wanted == "auto" and kind == "encoder"):
        return "class"
    if kind == "encoder":
        where = "task.head" if isinstance(task, ClassifyTask) else "task.use"
        why = "an encoder has no language head to speak with"
        raise RecipeError(
            "this task needs a causal language model", where=where, why=why, fix="use a causal model or `head: classifier`"
        )
    return "language"


def assemble(recipe: Recipe, base_dir: Path, parallel: Parallel, parts: Parts | None = None) -> Assembly:
    """Read the data, open the model and apply the ``samples`` chain; the model is not edited yet."""
    head = resolve_head(recipe.task, model_kind(recipe.model, base_dir))
    _refuse_clashes(recipe, head)
    parts = parts or load_parts(recipe.data, recipe.task, base_dir, head, quality=quality_step)
    model = _open(recipe, base_dir, parallel, parts, head)
    techniques = [technique.fresh() for technique in recipe.techniques]
    for technique in techniques:
        technique.locate(base_dir, Path(recipe.output_dir))
    encoder = Encoder(model.tokenizer, recipe.train.max_length, model.kind)
    plain = corpora_of(parts, encoder)
    texts, pieces = len(parts.train), len(plain["train"])
    if pieces > texts:
        model.notes = (
            *model.notes,
            f"{texts} training texts are read as {pieces} passages of at most {encoder.max_length} tokens",
        )
    setting = Setting(model, encoder, recipe.task, plain)
    for technique in techniques:
        technique.meet(setting)
    corpora = {part: apply_samples(corpus, techniques) for part, corpus in plain.items()}
    return Assembly(recipe, parts, model, techniques, encoder, plain, corpora, _warnings(recipe, parts))


def _open(recipe: Recipe, base_dir: Path, parallel: Parallel, parts: Parts, head: HeadKind) -> LanguageModel:
    """The recipe's model, or a new one with a tokenizer that may be trained on the training rows."""
    labels = parts.labels if isinstance(recipe.task, ClassifyTask) else ()
    asked: dict[str, Any] = {"head": head, "labels": labels, "base_dir": base_dir, "seed": recipe.seed}
    if not isinstance(recipe.model, BlankModel):
        return open_model(recipe.model, device=parallel.device, **asked)
    if parallel.first:
        tokenizer_folder(recipe.model, parts.train, base_dir)  # trained once; the other processes find it
    parallel.barrier()
    model = open_blank(recipe.model, device=parallel.device, samples=parts.train, **asked)
    own = model.identity["tokenizer_sha256"]
    if parallel.any(parallel.share_text(own) != own):
        fix = "set UPLIFT_CACHE to a folder that all of them share, or use `kind: bpe`"
        raise RecipeError("the processes trained different tokenizers", where="model.tokenizer", fix=fix)
    return model


def _warnings(recipe: Recipe, parts: Parts) -> list[str]:
    """What a reader of the report should know about the data."""
    found = []
    overlap = parts.leakage.ngram
    if overlap:
        found.append(f"{overlap} of {len(parts.test)} test rows overlap with rows the model was trained or tuned on")
    if recipe.train.steps != 0 and not parts.validation:
        found.append("there is no validation part: nothing shows whether training went on too long")
    return found


def _refuse_clashes(recipe: Recipe, head: HeadKind) -> None:
    """Now that the head is known: what does not fit it is refused before the model is loaded."""
    clashes = clashes_of(recipe, "classifier" if head == "class" else "words")
    if clashes:
        raise RecipeErrors([RecipeError(clash.what, where=clash.key, why=clash.why, fix=clash.fix) for clash in clashes])


def corpora_of(parts: Parts, encoder: Encoder) -> dict[Part, Corpus]:
    """The three parts as corpora, long plain texts as passages; validation and test refer to the training corpus."""
    train = Corpus(passages(parts.train, encoder), "train")
    return {
        "train": train,
        "validation": Corpus(passages(parts.validation, encoder), "validation", train),
        "test": Corpus(passages(parts.test, encoder), "test", train),
    }


def apply_samples(corpus: Corpus, techniques: list[Technique]) -> Corpus:
    """The ``samples`` chain, in the order of the recipe."""
    for technique in techniques:
        corpus = technique.samples(corpus)
    return corpus


def edit_model(model: LanguageModel, techniques: list[Technique], seed: int = 0) -> LanguageModel:
    """The ``edit`` chain in its phases; what it initialises is drawn from ``seed``."""
    torch.manual_seed(derive_seed(seed, "edit"))
    for phase in PHASES:
        for technique in techniques:
            if technique.phase == phase:
                model = technique.edit(model)
    return model


def finish_model(model: LanguageModel, techniques: list[Technique]) -> LanguageModel:
    """The ``finish`` chain, in the order of the recipe; those that edited the model come last, the last edit first.

    They take out what they put in (an adapter is merged), and the others must still find the parameters that trained. Weights
    are rounded when everybody else is done with them.
    """
    editing = [type(technique).edit is not Technique.edit for technique in techniques]
    plain = [technique for technique, edits in zip(techniques, editing, strict=True) if not edits]
    undone = [technique for technique, edits in zip(techniques, editing, strict=True) if edits]
    undone.sort(key=lambda technique: PHASES.index(technique.phase))
    chain = [*plain, *reversed(undone)]
    chain.sort(key=lambda technique: "rounded_weights" in technique.declare().gives)
    for technique in chain:
        model = technique.finish(model)
    return model


def horizon_of(recipe: Recipe, samples: int, flops_per_token: float) -> Horizon:
    """Where training ends by samples (so many an epoch), steps, and token or FLOP budget; seconds are fitted in preflight."""
    train, limits = recipe.train, []
    if train.budget.tokens is not None:
        limits.append(train.budget.tokens)
    if train.budget.flops is not None:
        limits.append(max(1, int(train.budget.flops / flops_per_token)))
    epochs = None if train.steps is not None else max(1, math.ceil(train.epochs * samples))
    return Horizon(epochs, train.steps, min(limits) if limits else None)


def training_flops_per_token(model: LanguageModel, trainable: dict[str, nn.Parameter]) -> float:
    """About 2 per weight forward, 2 back through what lies above the lowest trained layer, 2 for trained weights."""
    own = {name: active_size(model, parameter) for name, parameter in model.parameters_by_name().items()}
    weights = own | quantized_sizes(model.pretrained)
    sizes = {name: size for name, size in weights.items() if model.depth(name) > 0}
    lowest = min(model.depth(name) for name in trainable)
    above = sum(size for name, size in sizes.items() if model.depth(name) >= lowest)
    return 2.0 * sum(sizes.values()) + 2.0 * above + 2.0 * sum(sizes.get(name, 0) for name in trainable)


def frozen_depth(model: LanguageModel, trainable: dict[str, nn.Parameter]) -> int:
    """How many lowest layers (embeddings included in the count's start) train nothing: 0 = none."""
    lowest = min(model.depth(name) for name in trainable)
    return max(0, min(lowest - 1, len(model.layers)))


def identity_of(assembly: Assembly, parallel: Parallel) -> dict[str, str]:
    """Everything that must be equal for a bit-identical continuation."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {
        "recipe": assembly.recipe.hash(),
        "data": assembly.parts.fingerprint,
        **assembly.model.identity,
        **versions,
        "device": parallel.device.type,
        "precision": str(parallel.precision),
        "threads": str(torch.get_num_threads()),
        "processes": str(parallel.world),
    }


def micro_tokens(train: Train, device: str, width: int) -> int:
    """Tokens of one forward of a model of this hidden width, whole samples, at most a step's."""
    default = DEVICE_MICRO_TOKENS if device != "cpu" else CPU_MICRO_TOKENS * (2 if width <= NARROW else 1)
    return min(train.micro_tokens or default, train.batch_tokens)


def encode(corpus: Corpus, encoder: Encoder) -> list[Encoded]:
    """All samples of a corpus as tokens."""
    return encoder.encode_all(corpus)


def build_engine(assembly: Assembly, run: Run, parallel: Parallel, report: Report, show: Callable[[Audit], None]) -> Engine:
    """Edit the model, audit the labels, choose what trains, and make the engine (fresh; ``resume`` comes after)."""
    recipe, techniques = assembly.recipe, assembly.techniques
    model = assembly.model = edit_model(assembly.model, techniques, recipe.seed)
    settings = resolve_groups(model, techniques)
    trainable = apply_groups(model, settings)
    model.notes = (*model.notes, *shares_of_muon(recipe.train.optimizer, trainable, settings, techniques))
    encoded = encode(assembly.corpora["train"], assembly.encoder)
    checked = audit(encoded, assembly.encoder, head="class" if model.head_kind == "class" else "language")
    show(checked)
    checked.raise_if_bad()
    lr = peak_lr(recipe.train.lr, model, trainable, techniques)
    optimizer = build_optimizer(trainable, settings, recipe.train.optimizer, lr)
    if recipe.hardware.compile == "on" or (recipe.hardware.compile == "auto" and parallel.device.type == "cuda"):
        for layer in model.layers:
            layer.compile(dynamic=True)
    learner = Learner(model, techniques, _prefix(recipe, model, trainable, techniques))
    feed = Feed(assembly.corpora["train"], encoded, techniques, recipe.seed, recipe.train.batch_tokens)
    micro = micro_tokens(recipe.train, parallel.device.type, model.pretrained.config.hidden_size)
    validation = encode(assembly.corpora["validation"], assembly.encoder)
    batches = fixed_batches(validation, micro, recipe.train.validation_tokens, parallel.device) if validation else []
    horizon = horizon_of(recipe, feed.size, training_flops_per_token(model, trainable))
    identity = identity_of(assembly, parallel)
    engine = Engine(
        recipe.train, learner, trainable, optimizer, lr, feed, horizon, batches, run, parallel, identity, recipe.seed, report
    )
    engine.state.micro_tokens = micro
    for technique in techniques:
        technique.begin(model, trainable)
    return engine


def _prefix(
    recipe: Recipe,
    model: LanguageModel,
    trainable: dict[str, nn.Parameter],
    techniques: list[Technique],
) -> PrefixCache | None:
    """A cache of the frozen lower layers, when nothing perturbs their inputs and samples are seen more than once."""
    depth = frozen_depth(model, trainable)
    perturbed = any(type(t).embed is not Technique.embed or NO_PREFIX & t.declare().gives for t in techniques)
    if not recipe.hardware.prefix_cache or depth == 0 or perturbed:
        return None
    return PrefixCache(model, depth)
