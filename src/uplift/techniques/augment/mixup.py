"""Mixup: trains a classifier on blends of two texts, with a label that is as blended as they are.

When: few labelled rows; a classifier that is too sure of itself and whose probabilities are used.
When not: with a language head (a blend of texts is no text); where the order or the exact words decide.
Paper: Zhang et al. 2018, mixup; Guo et al. 2019, Augmenting Data with Mixup for Sentence Classification.
Cost: memory of the tokens of the training rows; time almost none (`level: embedding`), or 2 of a plain step (`level: hidden`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.nn.functional import cross_entropy

from uplift.core.capability import Capabilities
from uplift.core.errors import DataError
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Batch, Corpus, Effect, Encoded, Pass, Sample, Setting, Term, Terms, derive_seed
from uplift.data.packing import NO_TARGET, pack
from uplift.learn.forward import ForwardPass
from uplift.techniques.perturbation import SCORED_EXACTLY

ONE_LABEL = (
    "it learns the one label of a row, and a blend has two",
    "remove one of the two",
)


def share_drawn(batch: Batch, index: int, alpha: float) -> float:
    """The share of a row in its own blend: the larger part of a draw from Beta(alpha, alpha), so that its length fits."""
    drawn = random.Random(derive_seed(batch.seed, "mixup", batch.progress.step, batch.sample_ids[index]))
    share = drawn.betavariate(alpha, alpha)
    return max(share, 1.0 - share)


def blended(own_LD: Tensor, other_MD: Tensor, share: float, at_end: bool) -> Tensor:
    """``share`` of one sequence and the rest of the other, laid beside each other from the start, or with both ends together.

    Where the other one has no token it counts as zero.
    """
    length = min(len(own_LD), len(other_MD))
    missing = other_MD.new_zeros(len(own_LD) - length, other_MD.shape[1])
    parts = [missing, other_MD[len(other_MD) - length :]] if at_end else [other_MD[:length], missing]
    return share * own_LD + (1.0 - share) * torch.cat(parts)


class Mixup(Technique):
    """Blends each row with another training row: embeddings by a share that is drawn anew at every step, labels by the same.

    Partners are drawn from all training rows, not from the batch: how a step is cut does not change what is learned.
    """

    use: Literal["mixup"] = "mixup"
    alpha: Annotated[float, Field(ge=0, le=100)] = 0.4
    """Both parameters of the Beta distribution of the shares (0: off; small: mostly one text; 1: all shares alike)."""
    level: Literal["embedding", "hidden"] = "embedding"
    """What is blended: `embedding`, the words before the first layer; `hidden`, what comes out of the last one."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "class_head"}),
        mutates=frozenset({"embeddings", "targets"}),
        conflicts={
            **SCORED_EXACTLY,
            "targets": ("a blend's label is soft already", "remove one of the two"),
            "task_share": ("a teacher's answer to a text is none to its blend with another", "remove one of the two"),
            "consistency": ONE_LABEL,
            "embedding_gradient": (
                "it searches near a text for what misleads, and a blend of two is none",
                "remove one of the two",
            ),
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}

    _pool: list[Sample] = PrivateAttr(default_factory=list)
    _encoder: Any = PrivateAttr(None)
    _model: Any = PrivateAttr(None)
    _tokens: dict[int, Encoded] = PrivateAttr(default_factory=dict)
    _blends: int = PrivateAttr(0)
    _foreign: int = PrivateAttr(0)
    _given_away: float = PrivateAttr(0.0)

    def declare(self) -> Capabilities:
        """A second pass for `hidden`."""
        return replace(self.capabilities, passes=1, cost=3.0) if self.level == "hidden" else self.capabilities

    def meet(self, setting: Setting) -> None:
        """Remember how samples become tokens."""
        self._encoder = setting.encoder

    def samples(self, corpus: Corpus) -> Corpus:
        """Remember the training rows, which partners are drawn from."""
        if corpus.part == "train" and self.alpha > 0:
            self._pool = [sample for sample in corpus if sample.label is not None]
            if not self._pool:
                raise DataError("`mixup` blends labels, and no training row has one", where="techniques.mixup")
        return corpus

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Remember the model: partners' words go through its embeddings."""
        self._model = model

    def _partners(self, batch: Batch) -> list[Encoded]:
        """The partner of each sample: a function of (seed, step, sample id)."""
        seeds = [derive_seed(batch.seed, "mixup partner", batch.progress.step, identity) for identity in batch.sample_ids]
        return [self._encoded(seed % len(self._pool)) for seed in seeds]

    def _encoded(self, index: int) -> Encoded:
        if index not in self._tokens:
            self._tokens[index] = self._encoder.encode(self._pool[index])
        return self._tokens[index]

    def _blend(self, own_1TD: Tensor, other_1UD: Tensor, batch: Batch, others: list[Encoded]) -> Tensor:
        """(1, T, D) every sample with its partner."""
        shares = [share_drawn(batch, index, self.alpha) for index in range(len(batch.lengths))]
        pairs = zip(own_1TD[0].split(list(batch.lengths)), other_1UD[0].split([len(each) for each in others]), strict=True)
        at_end = self._model.kind == "causal"
        rows = [blended(own, other, share, at_end) for (own, other), share in zip(pairs, shares, strict=True)]
        return torch.cat(rows)[None]

    def embed(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Embeddings (1, T, D) with a share of the partners'."""
        if self.alpha == 0 or self.level == "hidden":
            return embeddings
        others = self._partners(batch)
        ids = torch.tensor([[token for each in others for token in each.ids]], device=batch.ids.device)
        return self._blend(embeddings, self._model.embed(ids), batch, others)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """What turns the loss of the one label into the blend's: the share that goes to the partner's label."""
        if self.alpha == 0:
            return {}
        others = self._partners(batch)
        own_K = batch.labels != NO_TARGET
        logits_NC = self._logits(forward, batch, others)
        own_N = batch.labels[own_K]
        other_N = torch.tensor([each.label for each in others], device=own_N.device)[own_K]
        away = [1.0 - share_drawn(batch, index, self.alpha) for index in range(len(batch.lengths))]
        away_N = torch.tensor(away, device=own_N.device)[own_K]
        losses = [cross_entropy(logits_NC, labels_N, reduction="none") for labels_N in (own_N, other_N)]
        added = (away_N * (losses[1] - losses[0])).sum()
        if self.level == "hidden":  # the task's own term looked at the texts as they are
            added = added + (losses[0].sum() - forward.losses.cross_entropy)
        self._blends += len(own_N)
        self._foreign += int(((own_N != other_N) & (away_N > 0)).sum())
        self._given_away += float(away_N.double().sum())
        return {self.use: Term(added, forward.count, forward.unit)}

    def _logits(self, forward: Pass, batch: Batch, others: list[Encoded]) -> Tensor:
        """(K, C) of the labelled samples' blends."""
        if self.level == "embedding":
            scores: Tensor = forward.predictions.scores(slice(None))
            return scores
        row = pack(others, device=batch.ids.device, progress=batch.progress, seed=batch.seed)
        second = ForwardPass(self._model, row, self._model.embed(row.ids))
        hidden = self._blend(forward.hidden, second.hidden, batch, others)
        logits: Tensor = self._model.class_logits(hidden, batch.lengths)[batch.labels != NO_TARGET]
        return logits.float()

    def finish(self, model: Any) -> Any:
        """Let the rows go."""
        self._model, self._tokens = None, {}
        return model

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        return {"blends": self._blends, "foreign": self._foreign, "given_away": self._given_away}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._blends, self._foreign, self._given_away = state["blends"], state["foreign"], state["given_away"]

    def effect(self) -> Effect:
        """Mean share that went to the partner; holds when labels were blended with other labels."""
        value = self._given_away / max(1, self._blends)
        detail = f"{self._foreign:,} of {self._blends:,} blends have two labels"
        return Effect(self.use, "rows and labels were blended", value, self._foreign > 0, detail)
