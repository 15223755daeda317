"""The small values that flow through the seams. Torch appears in annotations only.

Shape legend: B rows of a batch (1 when packed), T tokens of a row, D hidden width, V vocabulary,
N sequences (samples) of a batch, C classes, K trained positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["system", "user", "assistant", "tool"]
Part = Literal["train", "validation", "test"]
Unit = Literal["tokens", "samples"]


@dataclass(frozen=True)
class Origin:
    """Where a row came from. ``line`` counts from 1 (for Parquet: the row number)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Message:
    """One turn. ``learn`` says whether its tokens are trained on (assistant turns by default)."""

    role: Role
    content: str
    learn: bool = False


@dataclass(frozen=True)
class Sample:
    """One training or test example as text, before tokens.

    ``id`` is a hash of the content (equal content, equal id). Exactly one of ``messages`` (chat,
    prompt/completion), ``text`` (plain text) is set. ``label`` is a class index for classification.
    ``group`` keeps related samples on one side of a split.
    """

    id: str
    origin: Origin
    messages: tuple[Message, ...] = ()
    text: str | None = None
    label: int | None = None
    group: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def with_messages(self, messages: Sequence[Message]) -> Sample:
        """The same sample (same id) with other turns."""
        return replace(self, messages=tuple(messages))


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens. ``weights[i]`` is the loss weight of *predicting* ``ids[i]`` (0 = not trained on)."""

    id: str
    ids: Sequence[int]
    weights: Sequence[float]
    label: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Corpus:
    """An ordered, lazily mapped collection of samples of one part.

    ``reference`` is the training corpus: techniques that show or mix training rows
    (few-shot demonstrations, replay) read it. A corpus is a value: ``map`` returns another corpus.
    """

    def __init__(self, samples: Sequence[Sample], part: Part, reference: Corpus | None = None) -> None:
        self._samples, self.part, self.reference = samples, part, reference
        self._maps: tuple[Callable[[Sample], Sample], ...] = ()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        for function in self._maps:
            sample = function(sample)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def map(self, function: Callable[[Sample], Sample]) -> Corpus:
        """This corpus with ``function`` applied to each sample when it is read."""
        result = Corpus(self._samples, self.part, self.reference)
        result._maps = (*self._maps, function)
        return result


@dataclass(frozen=True)
class Setting:
    """What a recipe works with, before ``samples``: the ``LanguageModel`` as it was opened, the ``Encoder`` that makes tokens
    of samples, the task's section, and every part as it was read. To be looked at, not changed.
    """

    model: Any
    encoder: Any
    task: Any
    corpora: Mapping[Part, Corpus]


@dataclass(frozen=True)
class Generation:
    """One answer. ``finished``: the model ended it (or a stop text did), or the length limit cut it."""

    text: str
    tokens: int
    prompt_tokens: int
    finished: Literal["stop", "length"]


@dataclass(frozen=True)
class Progress:
    """Where a run is. ``fraction`` goes from 0 to 1 over the planned training."""

    step: int = 0
    epoch: int = 0
    tokens: int = 0
    fraction: float = 0.0
    total_steps: int = 0


@dataclass(frozen=True)
class Term:
    """One part of the loss: a weighted ``sum`` (scalar tensor) over ``count`` units.

    Never a mean: the engine divides the sum by the *global* count of its unit over all
    micro-batches and processes, so accumulation, packing and uneven ranks give one number.
    """

    sum: Tensor
    count: float
    unit: Unit


Terms = dict[str, Term]


@dataclass
class Batch:
    """One packed micro-batch: the samples laid end to end in one row, attention within each only.

    ids, positions, targets: (1, T) int64; ``targets[0, i]`` is the token after ``ids[0, i]`` in the same
    sample (-100 at the last one); ``weights``: (1, T) float32, loss weight of each target. ``lengths``: tokens of each
    of the N samples, summing to T. ``labels``: (N,) int64 class indices (-100 = none).
    ``counts`` maps a unit to this micro-batch's count: sum of weights, labelled samples.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    lengths: tuple[int, ...]
    labels: Tensor
    sample_ids: tuple[str, ...]
    counts: dict[Unit, float]
    progress: Progress = Progress()
    seed: int = 0
    cached_hidden: Tensor | None = None


class HeadLosses(Protocol):
    """What the head says of one pass; sums over trained units, weighted by the batch's weights."""

    @property
    def cross_entropy(self) -> Tensor:
        """Scalar: sum of weighted negative log-likelihoods."""

    @property
    def uniform(self) -> Tensor:
        """Scalar: sum of weighted mean(-log p) over the vocabulary or classes (label smoothing's second part)."""

    @property
    def per_unit(self) -> Tensor:
        """(K,) or (N,) detached, unweighted negative log-likelihood of each trained unit."""


class Pass(Protocol):
    """One forward. What several terms want is computed once: ``losses`` and everything under ``shared``."""

    batch: Batch
    embeddings: Tensor
    """(1, T, D) output of the embedding layer after the ``embed`` chain."""
    hidden: Tensor
    """(1, T, D) output of the backbone."""
    layers: Mapping[int, Tensor]
    """Layer (from 1) -> its output (1, T, D), of the layers that the model's ``tap`` names."""
    attended: Mapping[int, Any]
    """Layer (from 1) -> what its attention compared, of the layers that the model's ``tap_attention`` names."""
    unit: Unit
    """What the head's losses count: ``tokens`` (language head) or ``samples`` (class head)."""

    @property
    def count(self) -> float:
        """Number of trained units in this micro-batch."""

    @property
    def losses(self) -> HeadLosses:
        """Losses of this pass under the task's own head."""

    @property
    def predictions(self) -> Any:
        """What the head says of the trained units, for ``divergence`` and ``entropy``; opaque to techniques."""

    @property
    def owners(self) -> Tensor:
        """(K,) index in the batch of the sample each trained unit belongs to."""

    @property
    def unit_weights(self) -> Tensor:
        """(K,) loss weight of each trained unit."""

    @property
    def embedding_gradient(self) -> Tensor:
        """(1, T, D) gradient of the loss with respect to ``embeddings``.

        The same backward pass finds the trained weights' gradients, and ``losses.cross_entropy`` carries them from then on: the
        step need not go through this pass a second time.
        """

    def frozen(self) -> AbstractContextManager[None]:
        """While it is open the weights are constants: gradients reach embeddings alone, and cost less."""

    def rerun(self, embeddings: Tensor) -> Pass:
        """Another forward of the same batch from other embeddings (1, T, D); dropout draws anew."""

    def under(self, model: Any) -> Pass:
        """The same batch through another ``LanguageModel`` (a frozen copy, a teacher) from its own embeddings, no gradient.

        Made once for all who ask.
        """

    def distilled(self, teacher: Any, objective: Any, share: float) -> tuple[Tensor, Tensor]:
        """What to add to the cross-entropy so that ``share`` of it becomes the divergence from a teacher; and that divergence.

        Both come from one pass over the head, for which the technique declares ``gives={"task_loss"}``. Once per pass.
        """

    def divergence(self, other: Pass, *, symmetric: bool = False, fixed: bool = False) -> Tensor:
        """Scalar, nats: weighted sum of KL(self || other) over the trained units, or of both directions.

        ``fixed``: self is a constant.
        """

    def entropy(self) -> Tensor:
        """Scalar, nats: weighted sum of the predictions' entropies over the trained units."""

    def squared_log_normaliser(self) -> Tensor:
        """Scalar: weighted sum of (log Z)^2 over the trained units, Z the sum of the exponentials of a unit's logits."""

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """``make()``, computed once for this pass under ``key``."""


@dataclass(frozen=True)
class Group:
    """A rule about parameters: those whose name matches get these settings; None leaves one alone.

    ``lr_multiplier`` of several rules multiply; a later ``weight_decay`` refines an earlier one; two techniques that
    disagree on ``trainable`` for one parameter are refused.
    """

    names: frozenset[str]
    trainable: bool | None = None
    lr_multiplier: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Signal:
    """What an observer asks of the engine. ``stop`` wins over everything.

    keep_best: keep these weights for the end; regroup: ask ``groups`` again, what trains has changed; decay: begin the last
    phase of the schedule now (``wsd``), training ends with it; grow: call ``grow`` of the technique that asks.
    """

    kind: Literal["stop", "keep_best", "regroup", "decay", "grow"]
    reason: str


@dataclass(frozen=True)
class Heir:
    """Where a parameter of a grown model comes from; without sources it is new.

    ``carry(kept, power)`` turns what an optimizer kept of each source, element by element, into the like for this parameter:
    gradients change when weights are divided among copies, first moments (power 1) with them, second ones with their square.
    """

    sources: tuple[str, ...] = ()
    carry: Callable[[Sequence[Tensor], int], Tensor] | None = None


@dataclass(frozen=True)
class Growth:
    """What a change of the model's structure inside a run did.

    ``heirs``: every parameter that is not as it was under its name; ``record``: JSON values for the lineage of the checkpoint;
    ``told``: the same in words; ``rewarm``: steps over which the rate climbs back to the schedule's.
    """

    heirs: Mapping[str, Heir]
    record: Mapping[str, Any]
    told: str
    rewarm: int = 0


@dataclass(frozen=True)
class Effect:
    """A technique's measured proof that it did something in this run."""

    technique: str
    claim: str
    value: float
    passed: bool
    detail: str = ""


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
