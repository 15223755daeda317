"""Discriminator reward (experimental): the model is rewarded for answers that a small judge takes for the rows' own.

When: to find out whether adversarial training of a generator does anything for your data; always beside its placebo.
When not: to get a better model. At equal cost plain training with a tuned temperature was as good or better wherever it was
compared (Caccia et al. 2020, Language GANs Falling Short).
Paper: Yu et al. 2017, SeqGAN; the leave-one-out baseline: Ahmadian et al. 2024, Back to Basics (RLOO).
Cost: time of writing `answers` answers for a `share` of the samples and of training on them; memory of a judge of some 100,000
numbers. An answer's reward is compared with those of the other answers to the same prompt: a constant reward teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Batch, Effect, Encoded, Pass, Progress, Term, Terms, derive_seed
from uplift.data.chat import Encoder
from uplift.data.packing import pack
from uplift.learn.forward import ForwardPass
from uplift.learn.parallel import summed_over_processes
from uplift.model.backbone import evaluating
from uplift.model.language_model import LanguageModel
from uplift.techniques.on_policy import drawn, own_answers
from uplift.techniques.partial_training import seed_of_run

Reward = Literal["judge", "shuffled", "constant"]


def leave_one_out(rewards_NA: Tensor) -> Tensor:
    """(N, A) each reward less the mean of those of the other answers to the same prompt; sums to 0 over the answers."""
    others = rewards_NA.shape[1] - 1
    return rewards_NA - (rewards_NA.sum(1, keepdim=True) - rewards_NA) / others


class Judge(nn.Module):
    """Windows of one to three words over the model's own word vectors, the strongest match of each pattern, one number.

    After Kim 2014 (as in SeqGAN). The vectors are looked up in the model and are not trained from here.
    """

    WINDOWS = (1, 2, 3)

    def __init__(self, width: int, patterns: int = 64, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.look = nn.Linear(width, patterns)
            # Padded on both sides by as much as a window looks ahead; what begins before the first word is cut off again.
            self.windows = nn.ModuleList(nn.Conv1d(patterns, patterns, size, padding=size - 1) for size in self.WINDOWS)
            self.head = nn.Linear(patterns * len(self.WINDOWS), 1)

    def forward(self, answers: Sequence[Sequence[int]], vectors_VE: Tensor) -> Tensor:
        """(A,) logits that these answers are the rows' own."""
        tokens = [torch.tensor(answer, device=vectors_VE.device) for answer in answers]
        seen_AL = pad_sequence([torch.ones_like(each, dtype=torch.bool) for each in tokens], batch_first=True)
        words = F.embedding(pad_sequence(tokens, batch_first=True), vectors_VE.detach()).float()
        states_APL = (F.layer_norm(self.look(words), (self.look.out_features,)) * seen_AL[..., None]).transpose(1, 2)
        found = []
        for size, window in zip(self.WINDOWS, self.windows, strict=True):
            matches = F.relu(window(states_APL))[..., size - 1 :]
            found.append((matches * seen_AL[:, None]).amax(-1))
        return self.head(torch.cat(found, 1))[:, 0]  # type: ignore[no-any-return]


class DiscriminatorReward(Technique):
    """Adds ``strength`` times the policy gradient (REINFORCE) of a judge's rewards to the loss, at a share of the samples.

    The judge learns, once a step, to tell the rows' answers from the model's; its reward is its probability that an answer is
    the row's own. Answers of both are compared up to ``max_new_tokens``.
    """

    use: Literal["discriminator_reward"] = "discriminator_reward"
    strength: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the reward beside the usual loss (0: off)."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the samples, drawn anew at every step, that the model answers itself."""
    answers: Annotated[int, Field(ge=2, le=64)] = 4
    """Answers to each of them, whose rewards are compared."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2**16)] = 64
    """Longest answer."""
    judge_lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Rate at which the judge learns (Adam)."""
    reward: Reward = "judge"
    """`judge`; or a placebo: `constant` gives every answer the same, `shuffled` gives each the reward of another answer to the
    same prompt: equal effort, equal noise, nothing to learn from."""

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    _seed: int = PrivateAttr(0)
    _model: Any = PrivateAttr(None)
    _ends: frozenset[int] = PrivateAttr(frozenset())
    _judge: Judge | None = PrivateAttr(None)
    _optimizer: torch.optim.Adam | None = PrivateAttr(None)
    _seen: dict[str, tuple[list[int], list[list[int]]]] = PrivateAttr(default_factory=dict)
    _counts: dict[str, float] = PrivateAttr(
        default_factory=lambda: {"written": 0.0, "judged": 0.0, "right": 0.0, "spread": 0.0}
    )

    def declare(self) -> Capabilities:
        """What it needs and costs; nothing when it is off."""
        if self.strength == 0:
            return Capabilities(needs=frozenset({"training"}))
        return Capabilities(
            needs=frozenset({"training", "prompt", "language_head"}),
            gives=frozenset({"on_policy"}),
            exclusive=frozenset({"reward"}),
            passes=self.answers,
            cost=12.0 * self.answers * self.share,
        )

    def edit(self, model: Any) -> Any:
        """Remember the run's seed; the model is not changed."""
        self._seed = derive_seed(seed_of_run(), self.use)
        return model

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Make the judge."""
        if self.strength == 0:
            return
        self._model = model
        self._ends = Encoder(model.tokenizer, self.max_new_tokens, model.kind).end_ids
        width = model.pretrained.get_input_embeddings().weight.shape[1]
        self._judge = Judge(width, seed=self._seed).to(model.device)
        self._optimizer = torch.optim.Adam(self._judge.parameters(), lr=self.judge_lr, betas=(0.9, 0.99))

    # -- training -------------------------------------------------------------------------------------------------
    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The rewarded answers' part of the loss; the judge is as it was before this step."""
        places = [] if self.strength == 0 else self._answered(forward, batch)
        if not places:
            return {}
        written = own_answers(self._model, batch, places, self._ends, self.max_new_tokens, self.answers)
        answers = [list(each.ids)[each.weights.index(1.0) :] for each in written]
        rewards_NA = self._rewards(answers, batch, places)
        for row, place in enumerate(places):
            own = answers[row * self.answers : (row + 1) * self.answers]
            self._seen[batch.sample_ids[place]] = (self._row_answer(batch, place), own)
        loss = rewarded(self._model, written, leave_one_out(rewards_NA).flatten(), batch)
        return {self.use: Term(self.strength * loss, forward.count, forward.unit)}

    def _answered(self, forward: Pass, batch: Batch) -> list[int]:
        trained = set(forward.owners.tolist())
        return [place for place in drawn(batch, self.share) if place in trained]

    def _row_answer(self, batch: Batch, place: int) -> list[int]:
        """The row's own first answer, as long as an answer of the model may be."""
        begin = sum(batch.lengths[:place])
        weights = batch.weights[0, begin : begin + batch.lengths[place]].tolist()
        first = next(index for index, weight in enumerate(weights) if weight > 0)
        stop = next((index for index in range(first, len(weights)) if weights[index] == 0), len(weights))
        return batch.targets[0, begin + first : begin + min(stop, first + self.max_new_tokens)].tolist()  # type: ignore[no-any-return]

    @torch.no_grad()
    def _rewards(self, answers: Sequence[Sequence[int]], batch: Batch, places: Sequence[int]) -> Tensor:
        """(N, A) what each answer is given."""
        assert self._judge is not None
        judged_NA = self._judge(answers, self._vectors).sigmoid().reshape(len(places), self.answers)
        if self.reward == "constant":
            return torch.full_like(judged_NA, 0.5)
        if self.reward == "judge":
            return judged_NA  # type: ignore[no-any-return]
        orders = []
        for place in places:
            seed = derive_seed(batch.seed, self.use, "shuffled", batch.progress.step, batch.sample_ids[place])
            orders.append(torch.randperm(self.answers, generator=torch.Generator().manual_seed(seed)))
        return judged_NA.gather(1, torch.stack(orders).to(judged_NA.device))

    @property
    def _vectors(self) -> Tensor:
        vectors: Tensor = self._model.pretrained.get_input_embeddings().weight
        return vectors

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Any]:
        """After each step the judge learns from its samples: one update, the same in every process."""
        if self._judge is None or "loss" not in metrics:
            return []
        assert self._optimizer is not None
        parameters = list(self._judge.parameters())
        self._optimizer.zero_grad()
        count = torch.zeros(1, device=parameters[0].device)
        if self._seen:
            rows, own = zip(*(self._seen[identity] for identity in sorted(self._seen)), strict=True)
            scores = [self._judge(answers, self._vectors) for answers in (rows, [answer for each in own for answer in each])]
            # Both sides weigh the same, however many answers there are to each row.
            losses = F.softplus(-scores[0]).sum(), F.softplus(scores[1]).sum() / self.answers
            sum(losses).backward()  # type: ignore[union-attr]
            count += 2 * len(rows)
            self._count(scores)
        self._seen = {}
        parts = [p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten() for p in parameters]
        total = summed_over_processes(torch.cat([*parts, count]))
        if total[-1] > 0:
            for parameter, gradient in zip(
                parameters, (total[:-1] / total[-1]).split([p.numel() for p in parameters]), strict=True
            ):
                parameter.grad = gradient.view_as(parameter)
            self._optimizer.step()
        return []

    def _count(self, scores: Sequence[Tensor]) -> None:
        rows, own = (each.detach() for each in scores)
        found = {"written": len(own), "judged": len(rows) + len(own), "right": int((rows > 0).sum() + (own < 0).sum())}
        spread = own.sigmoid().reshape(-1, self.answers).std(1).sum()
        self._counts = {name: value + found.get(name, float(spread)) for name, value in self._counts.items()}

    # -- memory and proof -----------------------------------------------------------------------------------------
    def finish(self, model: Any) -> Any:
        """Let the model go; the judge stays for the proof."""
        self._model = None
        return model

    def state(self) -> dict[str, Any]:
        """The judge with its optimizer, and the counts behind the proof."""
        if self._judge is None or self._optimizer is None:
            return {}
        memory = {str(place): kept for place, kept in self._optimizer.state_dict()["state"].items()}
        return {"judge": self._judge.state_dict(), "adam": memory, "counts": self._counts}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        if self._judge is None or self._optimizer is None:
            return
        self._judge.load_state_dict(state["judge"])
        memory = {int(place): dict(kept) for place, kept in state["adam"].items()}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": memory})
        self._counts = dict(state["counts"])

    def effect(self) -> Effect:
        """Share of answers that the judge told apart; holds when there were answers, and rewards that differed."""
        counts = self._counts
        right = counts["right"] / max(1.0, counts["judged"])
        told = f"{counts['written']:.0f} answers written; reward: {self.reward}"
        return Effect(self.use, "answers were written, judged and rewarded", right, counts["spread"] > 0, told)


def rewarded(model: LanguageModel, written: Sequence[Encoded], advantages_A: Tensor, batch: Batch) -> Tensor:
    """Sum over answers of advantage times -log p(answer | prompt); dropout is off, as when they were drawn."""
    weighted = [
        replace(each, weights=[weight * advantage for weight in each.weights])
        for each, advantage in zip(written, advantages_A.tolist(), strict=True)
    ]
    own = pack(weighted, device=batch.ids.device, progress=batch.progress, seed=batch.seed)
    with evaluating(model.pretrained):
        return ForwardPass(model, own, model.embed(own.ids)).losses.cross_entropy
