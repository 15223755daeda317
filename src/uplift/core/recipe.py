"""The recipe: the frozen, strict, hashable description of one run; the only input of every verb.

YAML is one spelling of these objects (see ``recipe_file``). Every number has a range and a unit; unknown keys are errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from uplift.core.export_section import Export as Export
from uplift.core.model_section import (
    AnyModel as AnyModel,
    BlankModel as BlankModel,
    GgufModel as GgufModel,
    HfModel as HfModel,
    Model as Model,
    PackageModel as PackageModel,
    StageModel as StageModel,
)
from uplift.core.prepare_section import AnyStep
from uplift.core.registry import technique_class
from uplift.core.section import Name as Name, Path as Path, Section as Section, Seed as Seed
from uplift.core.source_section import (
    AnySource as AnySource,
    FileSource as FileSource,
    PackageSource as PackageSource,
    Source as Source,
)
from uplift.core.technique import Technique


# -- data --------------------------------------------------------------------------------------------------------------
class Split(Section):
    """Shares cut from ``train`` so that equal texts never straddle: ``by: content`` and ``by: group`` by a hash.

    ``near`` keeps near duplicates together too; ``time`` makes the latest rows the test part, those before them validation.
    """

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    by: Literal["content", "group", "time", "near"] = "content"
    group: str | None = None
    """Column whose equal values stay together."""
    time: str | None = None
    """Column with ISO 8601 dates or times, or with numbers."""
    stratify: str | None = None
    """Column, usually the label: every part has the same share of each of its values."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_train_rows_remain(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1, or nothing is left to train on")
        for key in ("group", "time"):
            if self.by == key and not getattr(self, key):
                raise ValueError(f"`by: {key}` needs `{key}:`, the column that names the {key}")
            if self.by != key and getattr(self, key) is not None:
                raise ValueError(f"`{key}:` is used with `by: {key}` alone")
        if self.stratify is not None and self.by in ("group", "time"):
            raise ValueError(f"`stratify:` goes with `by: content` or `by: near`: `by: {self.by}` leaves it no choice")
        return self


class Data(Section):
    """Where rows come from and how they are divided."""

    train: AnySource
    validation: AnySource | None = None
    test: AnySource | None = None
    prepare: list[AnyStep] = []
    """Steps between reading and splitting, in order. Other parts than `train` are changed by them, but lose no row."""
    split: Split = Split()
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of quarantined rows before the run refuses to start."""


# -- task --------------------------------------------------------------------------------------------------------------
class ChatTask(Section):
    """Supervised fine-tuning on conversations, instructions or prompt/completion pairs; answers are learned."""

    use: Literal["chat"] = "chat"
    system: str | None = None


class TextTask(Section):
    """Language modelling on plain text: every token is learned."""

    use: Literal["text"] = "text"
    text: str = "text"


def _with_text(value: str) -> str:
    if "{text}" not in value:
        raise ValueError("it needs a `{text}` slot")
    return value


Question = Annotated[str, AfterValidator(_with_text)]
"""What is asked about a text, with a slot ``{text}`` and others, mostly ``{labels}``."""
QUESTION = "{text}\n\nWhich label fits: {labels}? Answer with the label only."


class ClassifyTask(Section):
    """Text classification by label words (language head) or by a classification head.

    ``text`` and ``label`` name columns; ``labels`` gives label value -> word (default: the values themselves);
    ``prompt`` is the question asked in ``words`` mode, with ``{text}`` and ``{labels}`` slots.
    """

    use: Literal["classify"] = "classify"
    text: str = "text"
    label: str = "label"
    labels: Mapping[str, str] = Field(default_factory=dict)
    head: Literal["auto", "words", "classifier"] = "auto"
    system: Annotated[str, Field(min_length=1)] | None = None
    """System message in `words` mode; default: the chat template's own."""
    prompt: Question = QUESTION


Task = Annotated[ChatTask | TextTask | ClassifyTask, Field(discriminator="use")]


# -- training ----------------------------------------------------------------------------------------------------------
class Schedule(Section):
    """Learning rate over the run: warmup, then constant, linear, cosine, or warmup-stable-decay (wsd); or `decay` alone.

    decay: from `lr` to the floor over the whole run. It is the last phase of a model that was trained at a constant rate so
    far: give that run's `model` folder, and its rate as `lr`.
    """

    use: Literal["constant", "linear", "cosine", "wsd", "decay"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the run spent warming up (`decay`: none)."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.2
    """wsd only: share of the run spent decaying at the end."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Final rate as a share of `lr`."""
    shape: Literal["linear", "sqrt"] = "linear"
    """wsd and decay: how the rate falls; `sqrt`: by the root of the share done, so fast at first (Haegele et al. 2024)."""

    @model_validator(mode="before")
    @classmethod
    def _decay_has_no_warmup(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("use") == "decay" and "warmup" not in value:
            return {**value, "warmup": 0.0}
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.use == "decay" and self.warmup > 0:
            raise ValueError("`decay` begins at the full rate: leave `warmup` out")
        if self.shape != "linear" and self.use not in ("wsd", "decay"):
            raise ValueError(f"`shape` is how `wsd` and `decay` fall; `{self.use}` has its own: leave it out")
        return self


Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
Eps = Annotated[float, Field(gt=0, le=1e-2)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]


class AdamW(Section):
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019)."""

    use: Literal["adamw"] = "adamw"
    betas: Betas = [0.9, 0.999]
    eps: Eps = 1e-8
    weight_decay: WeightDecay = 0.0


class Muon(Section):
    """Muon for the matrices inside the blocks (Jordan et al. 2024), AdamW for embeddings, heads, norms and biases.

    Its steps are scaled to the usual size of AdamW's, so `lr` and `weight_decay` mean the same for both (Liu et al. 2025).
    """

    use: Literal["muon"] = "muon"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Share of the past in Muon's (Nesterov) momentum."""
    betas: Betas = [0.9, 0.999]
    """Of AdamW."""
    eps: Eps = 1e-8
    """Of AdamW."""
    weight_decay: WeightDecay = 0.0
    """Decoupled, of both."""


class ScheduleFree(Section):
    """Schedule-free AdamW (Defazio et al. 2024): an average of the weights in place of a falling rate.

    Needs `train.schedule: {use: constant}`. The average is what is evaluated and saved.
    """

    use: Literal["schedule_free"] = "schedule_free"
    betas: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """How near to the average gradients are taken, and the memory of their squares."""
    eps: Eps = 1e-8
    weight_decay: WeightDecay = 0.0


def _optimizer_with_use(value: Any) -> Any:
    return {"use": "adamw", **value} if isinstance(value, Mapping) and "use" not in value else value


Optimizer = Annotated[AdamW | Muon | ScheduleFree, Field(discriminator="use"), BeforeValidator(_optimizer_with_use)]


class Budget(Section):
    """The most a run may spend on training; the first limit met ends it, with the schedule fitted to it."""

    seconds: Annotated[float, Field(gt=0, le=1e8)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    flops: Annotated[float, Field(gt=0)] | None = None


class Train(Section):
    """How to train. ``steps: 0`` trains nothing (prompting only)."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    steps: Annotated[int, Field(ge=0, le=10**9)] | None = None
    budget: Budget = Budget()
    batch_tokens: Annotated[int, Field(ge=8, le=2**26)] = 4096
    """Tokens per optimizer step over all processes (whole samples, packed without padding)."""
    micro_tokens: Annotated[int, Field(ge=8, le=2**26)] | None = None
    """Tokens per forward; default: what fits."""
    max_length: Annotated[int, Field(ge=4, le=2**20)] = 1024
    """Longest sample in tokens; longer ones are cut and counted."""
    lr: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = "auto"
    """Peak learning rate; `auto`: 2e-5 for all weights, 2e-4 for adapters, 1e-3 for a head alone or a new model of 10M."""
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Schedule()
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = 1.0
    """Largest gradient norm; null: no clipping."""
    bad_steps: Annotated[int, Field(ge=0, le=1000)] = 2
    """Steps with a non-finite loss or gradient that are skipped in a row before the run stops."""
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between validations; default: ten times per run."""
    validation_tokens: Annotated[int, Field(ge=8)] = 16_384
    """Most tokens of the validation part that are looked at each time (the same ones)."""
    save_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints; default: once a minute, or less often where saving is dear."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Newest checkpoints kept (the best one is kept besides)."""


class Hardware(Section):
    """What to run on; the defaults fit the machine. Device counts are the launcher's affair (torchrun)."""

    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each block with torch.compile; `auto`: on CUDA only (on a CPU it costs more than it gives)."""
    prefix_cache: bool = True
    """Keep the hidden states of frozen lower layers between epochs."""


Attack = Literal["typo", "swap", "drop", "synonym", "gradient", "embedding"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)


class Robustness(Section):
    """Attacks on test rows of a classification: how many right answers survive small changes of the text.

    typo: a letter becomes its neighbour on the keyboard; swap: two letters change places; drop: a word goes; synonym: a word
    becomes one that the model embeds alike, or one of `wordnet`; gradient: a word becomes one that the model embeds alike, and
    the model's gradient says which; embedding: gradient steps on the embeddings (PGD), beside noise of the same norm.
    """

    attacks: Annotated[list[Attack], Field(min_length=1, max_length=len(ATTACKS))] = list(ATTACKS)
    """What is tried, each on its own."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Most test rows to attack (the same ones every time)."""
    queries: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Most texts that the model is asked about a row in one attack; a gradient counts as one."""
    similarity: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Least share of words, and of letters, that an attacked text keeps, and least cosine of its mean embedding."""
    eps: Annotated[list[Annotated[float, Field(ge=0, le=1000)]], Field(min_length=1, max_length=20)] = [0.02, 0.05, 0.1]
    """embedding: sizes of the attack on a text, its L2 norm as a share of the embeddings' norm."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """embedding: gradient steps."""
    wordnet: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """synonym: folder with the database files of WordNet (`index.noun`, ...), for English; default: the model's embeddings, in
    which opposites can be near each other, too."""
    transfer_from: Model | None = None
    """Another model that is attacked first; the texts that mislead it are then shown to this one."""

    @field_validator("attacks", "eps")
    @classmethod
    def _named_once(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) != len(values):
            raise ValueError("an entry stands twice")
        return values

    @model_validator(mode="after")
    def _something_is_for_it(self) -> Self:
        if self.wordnet is not None and "synonym" not in self.attacks:
            raise ValueError("`wordnet` is for the `synonym` attack: add it, or leave `wordnet` out")
        if self.transfer_from is not None and set(self.attacks) == {"embedding"}:
            raise ValueError("`transfer_from` shows texts, and the `embedding` attack makes none: add another attack")
        return self


class Evaluation(Section):
    """How to measure on the test part; what is measured follows from the task."""

    base: bool = True
    """Measure the base model too, on the same rows."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Most test rows to use (the same ones every time)."""
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Bootstrap resamples behind each 95 % interval."""
    robustness: Robustness | None = None
    """Attack the model, and the base; null: no attack."""
    samples: Annotated[int, Field(ge=0, le=100)] = 0
    """Test texts (or chats) that the finished model continues, shown in the report; sampled at temperature 0.8."""


def _technique(value: Any) -> Technique:
    if isinstance(value, Technique):
        return value
    if isinstance(value, str):
        value = {"use": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("use"), str):
        raise ValueError("a technique is a mapping with `use:`, for example {use: lora, rank: 8}")
    return technique_class(value["use"]).model_validate(dict(value))


AnyTechnique = Annotated[SerializeAsAny[Technique], BeforeValidator(_technique)]


class Recipe(Section):
    """One run, from data to a better model with evidence."""

    name: Name = "run"
    model: AnyModel
    data: Data
    task: Task = ChatTask()
    techniques: list[AnyTechnique] = []
    train: Train = Train()
    evaluate: Evaluation = Evaluation()
    export: list[Export] = []
    """Files for other runtimes, made from the finished model."""
    hardware: Hardware = Hardware()
    seed: Seed = 0
    output_dir: Path = "runs"

    @field_validator("export")
    @classmethod
    def _each_file_once(cls, value: list[Export]) -> list[Export]:
        names = [each.name for each in value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"`{twice[0]}` is asked for twice")
        return value

    def hash(self) -> str:
        """12 hex digits that identify everything that shapes the model (not ``name``, ``output_dir`` and ``export``)."""
        content = self.model_dump(mode="json", exclude={"name", "output_dir", "export"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


# -- comparison --------------------------------------------------------------------------------------------------------
class RecipeArm(Section):
    """A small change of the base recipe: mappings merge, lists replace, a section with another ``use`` replaces."""

    use: Literal["recipe"] = "recipe"
    name: Name
    change: Mapping[str, Any] = Field(default_factory=dict)


class TfidfArm(Section):
    """TF-IDF of word 1-2 grams and logistic regression: shows when no language model is needed."""

    use: Literal["tfidf"] = "tfidf"
    name: Name = "tfidf"


def _arm_with_use(value: Any) -> Any:
    return {"use": "recipe", **value} if isinstance(value, Mapping) and "use" not in value else value


Arm = Annotated[RecipeArm | TfidfArm, Field(discriminator="use"), BeforeValidator(_arm_with_use)]


class Comparison(Section):
    """Several ways to the goal, measured side by side on the same split under the same budget."""

    name: Name = "comparison"
    base: Recipe
    arms: Annotated[list[Arm], Field(min_length=1, max_length=100)]
    budget: Budget = Budget()
    """Training budget per arm and seed."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=100)] = [0]
    placebo: bool = False
    """Add a copy of the recommended arm with shuffled training labels; it must stay at chance."""
    output_dir: Path = "runs"

    @model_validator(mode="after")
    def _arm_names_differ(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError("two arms have the same name")
        return self


# -- stages ------------------------------------------------------------------------------------------------------------
class Stages(Section):
    """Several runs, one after the other: the model flows from one to the next."""

    name: Name = "stages"
    stages: Annotated[list[Recipe], Field(min_length=1, max_length=100)]
    output_dir: Path = "runs"

    def hash(self) -> str:
        """12 hex digits that identify everything that shapes the results."""
        content = [stage.hash() for stage in self.stages]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    @model_validator(mode="after")
    def _stages_refer_to_earlier_ones(self) -> Self:
        before: list[str] = []
        for stage in self.stages:
            if stage.name in before:
                raise ValueError(f"two stages have the name `{stage.name}`")
            if unknown := [name for name in stages_in(stage.model_dump()) if name not in before]:
                raise ValueError(f"stage `{stage.name}` asks for `{unknown[0]}`, which is no stage before it")
            before.append(stage.name)
        return self


def stages_in(content: Any) -> list[str]:
    """Names of all stages that plain values refer to."""
    if isinstance(content, Mapping):
        if content.get("use") == "stage":
            return [str(content.get("name"))]
        return [name for value in content.values() for name in stages_in(value)]
    return [name for value in content for name in stages_in(value)] if isinstance(content, list | tuple) else []


def with_stages(recipe: Recipe, folders: Mapping[str, str]) -> Recipe:
    """The recipe with every reference to a stage replaced by the folder of the model that it made."""

    def replaced(content: Any) -> Any:
        if isinstance(content, Mapping):
            if content.get("use") == "stage":
                return {"use": "hf", "id": folders[content["name"]]}
            return {key: replaced(value) for key, value in content.items()}
        return [replaced(value) for value in content] if isinstance(content, list | tuple) else content

    return Recipe.model_validate(replaced(recipe.model_dump()))
