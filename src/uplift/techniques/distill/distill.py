"""Distillation: the model learns all that a teacher would say at every place, not only the one right answer.

When: a small model for the work of a large one; few rows (a teacher says more about each); healing a pruned model with the
unpruned one as teacher; a fast classifier from a language model that is asked in words.
When not: enough text and a student that still gets better (more steps are cheaper than a teacher); a teacher that has never
seen such text (fine-tune it first).
Paper: Hinton et al. 2015, Distilling the Knowledge in a Neural Network; Agarwal et al. 2024, On-Policy Distillation (the
generalised Jensen-Shannon divergence); Muralidharan et al. 2024, Minitron (what to choose).
Cost: memory of the teacher (weights only); time of one forward of the teacher per step, or of none from the second epoch on
with `cache: true`, which keeps `keep` answers per token on disk (8 bytes each). A classifier's teacher is asked once, before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.errors import DataError, RecipeError
from uplift.core.recipe import QUESTION, Question
from uplift.core.technique import Parameters
from uplift.core.values import Batch, Corpus, Effect, Pass, Progress, Sample, Term, Terms, derive_seed
from uplift.data.chat import Encoder
from uplift.data.formats import content_text
from uplift.learn.distillation import Kept, Live, Objective, Teacher, distil, keep
from uplift.learn.distributions import Predictions
from uplift.model.language_model import LanguageModel
from uplift.techniques import on_policy
from uplift.techniques.answer_cache import AnswerCache, folder_name, keys_of
from uplift.techniques.foreign_teacher import ForeignTeacher
from uplift.techniques.label_teacher import label_log_probabilities
from uplift.techniques.teacher import Head, Taught, name_of, speaks_words

VERSION = 1
"""Part of a cache's name; raise it when the same question would be answered differently."""
CACHE_CLASH = ("the teacher's kept answers are to tokens that come again in every epoch", "set `cache: false`")


class Distill(Taught):
    """Replaces the share ``weight`` of the loss by the divergence between the teacher's predictions and the model's.

    Of several teachers, the mean of their probabilities is the teacher. A model with a classification head learns the teacher's
    probabilities of the labels, whatever tokenizer the teacher has; for all others the tokens are the same, or `align` is set.
    """

    use: Literal["distill"] = "distill"
    objective: Literal["forward", "reverse", "jsd"] = "forward"
    """`forward`: KL(teacher || model), covers all that the teacher would say; `reverse`: KL(model || teacher), says only what
    the teacher would; `jsd`: between the two."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """jsd: weight of the teacher in the mixture that both are compared with."""
    temperature: Annotated[float, Field(ge=0.05, le=100)] = 1.0
    """Divides the logits of both, so that unlikely words count more; the loss is multiplied by its square."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the loss that the teacher decides (0: off; 1: the data's answers count for nothing)."""
    cache: bool = False
    """Keep the teacher's answers on disk, beside the run folders, and use them in later epochs and runs."""
    keep: Annotated[int, Field(ge=1, le=2**20)] = 64
    """cache: likeliest words that are kept of each answer; all others count together as one."""
    ask: Literal["auto", "classes", "words"] = "auto"
    """How a classifier's teacher is asked: by its own classification head, or in words as a language model; `auto`: as its
    files say."""
    question: Question = QUESTION
    """What a teacher is asked in words, with slots `{text}` and `{labels}`."""
    max_length: Annotated[int, Field(ge=8, le=2**20)] = 1024
    """Longest text in tokens that a classifier's teacher, or one with another tokenizer, reads."""
    align: Literal["none", "uld", "spans"] = "none"
    """For a teacher with another tokenizer: the L1 distance between sorted probabilities (Universal Logit Distillation), `uld`:
    token by token; `spans`: where tokens of both end at the same place of the text, probabilities multiplied within."""
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the samples, drawn anew at every step, at which the teacher judges an answer of the model's own."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2**16)] = 128
    """on_policy: longest answer."""
    shuffle: bool = False
    """Placebo: give each place the teacher's answer to another one; a gain that stays was not the teacher's."""

    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0}

    _corpus: Corpus | None = PrivateAttr(None)
    _table: Tensor | None = PrivateAttr(None)
    _rows: dict[str, int] = PrivateAttr(default_factory=dict)
    _cache: AnswerCache | None = PrivateAttr(None)
    _foreign: ForeignTeacher | None = PrivateAttr(None)
    _size: int = PrivateAttr(0)
    _student: Any = PrivateAttr(None)
    _ends: frozenset[int] = PrivateAttr(frozenset())
    _written: int = PrivateAttr(0)
    _seen: tuple[int, int] | None = PrivateAttr(None)
    _steps: int = PrivateAttr(0)
    _first: float = PrivateAttr(0.0)
    _last: float = PrivateAttr(0.0)
    _total: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _aligned_alone(self) -> Self:
        if self.align == "none":
            return self
        if len(self.teacher) != 1:
            raise ValueError("`align` compares with one named teacher: give `teacher`")
        odd = [name for name in ("cache", "shuffle", "on_policy") if getattr(self, name)]
        odd += ["objective"] if self.objective != "forward" else []
        if odd:
            raise ValueError(f"`align` has a distance of its own, for which there is no `{odd[0]}`: leave it out")
        return self

    @property
    def active(self) -> bool:
        """Whether the teacher has any share."""
        return self.weight > 0

    def declare(self) -> Capabilities:
        """What it owns and costs; nothing when it is off."""
        if not self.active:
            return Capabilities(needs=frozenset({"training"}))
        teachers = max(1, len(self.teacher))
        conflicts = {
            "targets": ("a teacher's answers are smooth already", "remove one of the two"),
            "vocabulary": (
                "a teacher knows nothing of tokens that came later",
                "train the new tokens first, and use `distill` in a second run from there",
            ),
        }
        own = self.on_policy > 0
        return Capabilities(
            needs=frozenset({"training", "prompt", "language_head"} if own else {"training"}),
            gives=frozenset({"task_loss", "on_policy"} if own else {"task_loss"}),
            mutates=frozenset({"task_share"}),
            exclusive=frozenset({"teacher"}),
            conflicts=conflicts | ({"tokens": CACHE_CLASH, "augmentation": CACHE_CLASH} if self.cache else {}),
            passes=(0 if self.cache else teachers) + own,
            cost=(0.1 if self.cache else 1.1 * teachers) + 8.0 * self.on_policy,
        )

    # -- getting ready --------------------------------------------------------------------------------------------
    def samples(self, corpus: Corpus) -> Corpus:
        """Remember the training samples: a classifier's teacher reads their text."""
        if corpus.part == "train":
            self._corpus = corpus
        return corpus

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Open the teachers; ask for all labels, or open the kept answers. Raises RecipeError for teachers that do not fit."""
        if not self.active:
            return
        if model.head_kind == "class" and self.align != "none":
            why = "a classifier learns the probabilities of labels, whatever the teacher's tokens are"
            raise RecipeError("`distill.align` has nothing to align", why=why, fix="leave `align` out")
        if model.head_kind == "class" and self.teacher:
            self._ask_for_labels(model, parameters)
            return
        self.open_all(["language"] * len(self.teacher), model.device)
        if self.align != "none":
            self._foreign = self._aligned(model)
        elif model.head_kind == "language":
            self.require_same_tokens(model, "set `align: spans`, or use a teacher of the same family")
        super().begin(model, parameters)
        if self.on_policy > 0:
            self._student, self._ends = model, Encoder(model.tokenizer, self.max_length, model.kind).end_ids
        if self.cache:
            self._open_cache(model)

    def _aligned(self, model: Any) -> ForeignTeacher:
        assert self._corpus is not None
        return ForeignTeacher(self._models[0], model.tokenizer, self._corpus, self.max_length, self.align == "spans")

    def _ask_for_labels(self, model: Any, parameters: Parameters) -> None:
        """The teachers' probabilities of the labels of every training sample; then the teachers are closed."""
        assert self._corpus is not None
        samples = {sample.id: sample for sample in self._corpus}
        self._rows = {identity: row for row, identity in enumerate(samples)}
        words = [self.ask == "words" or (self.ask == "auto" and speaks_words(spec, self._base_dir)) for spec in self.teacher]
        heads: list[Head] = ["language" if in_words else "class" for in_words in words]
        self.open_all(heads, model.device)
        super().begin(model, parameters)
        said = []
        for teacher in self._models:
            facts = {"teacher": name_of(teacher), "labels": model.labels, "question": self.question, "length": self.max_length}
            kept = self._opened({**facts, "head": teacher.head_kind})
            said.append(self._labels_of(teacher, list(samples.values()), model.labels, kept))
        self._table = torch.stack(said)
        super().finish(model)

    def _labels_of(
        self, teacher: LanguageModel, samples: Sequence[Sample], labels: Sequence[str], kept: AnswerCache | None
    ) -> Tensor:
        """(R, C) what one teacher says of these samples; only what is not kept is asked."""
        texts = [content_text(sample).encode() for sample in samples]
        found = [kept.get(text) if kept is not None else None for text in texts]
        missing = [sample for sample, answer in zip(samples, found, strict=True) if answer is None]
        asked = iter(label_log_probabilities(teacher, missing, labels, self.question, self.max_length) if missing else ())
        rows = [next(asked) if answer is None else answer[0][0] for answer in found]
        if kept is not None:
            for text, row in zip(texts, rows, strict=True):
                kept.put(text, (row[None], None))
            kept.flush()
        return torch.stack(rows)

    def _open_cache(self, model: Any) -> None:
        class_head = model.head_kind == "class"
        sizes = [len(each.labels) if class_head else each.head_weight.shape[0] for each in (model, *self._models)]
        facts = {"teachers": [name_of(teacher) for teacher in self._models], "temperature": self.temperature}
        self._size = min(sizes)
        self._cache = self._opened({**facts, "keep": min(self.keep, self._size), "size": self._size})

    def _opened(self, facts: Mapping[str, object]) -> AnswerCache | None:
        """The kept answers that these facts name; None when none are kept."""
        return AnswerCache(self._output_dir / ".teachers" / folder_name({**facts, "version": VERSION})) if self.cache else None

    # -- training -------------------------------------------------------------------------------------------------
    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """What turns a share of the cross-entropy into the divergence from the teacher."""
        if not self.active:
            return {}
        if self._foreign is not None:
            between = self._foreign.distance(forward, batch, self.temperature)
            added = self.weight * (between - forward.losses.cross_entropy)
            return {self.use: Term(added, forward.count, forward.unit)}
        teacher = self._answers(forward, batch)
        if self.shuffle:
            teacher = teacher.rearranged(_elsewhere(len(teacher), batch))
        beta = {"forward": 0.0, "reverse": 1.0, "jsd": self.beta}[self.objective]
        objective = Objective(beta, self.temperature)
        places = on_policy.drawn(batch, self.on_policy)
        if places:
            between = self._with_own_answers(forward, batch, teacher, objective, places)
            added = self.weight * (between - forward.losses.cross_entropy)
        else:
            added, _ = forward.distilled(teacher, objective, self.weight)
        return {self.use: Term(added, forward.count, forward.unit)}

    def _with_own_answers(
        self, forward: Pass, batch: Batch, teacher: Teacher, objective: Objective, places: list[int]
    ) -> Tensor:
        """The divergence on the rows' answers, and at ``places`` on the model's own, which count as much as those would."""
        own_K = torch.isin(forward.owners, torch.tensor(places, device=forward.owners.device))
        sums_N = torch.zeros(len(batch.lengths), device=own_K.device).index_add(0, forward.owners, forward.unit_weights)
        asked = [place for place in places if sums_N[place] > 0]
        rest_K = torch.nonzero(~own_K, as_tuple=True)[0]
        rows = forward.predictions.rearranged(rest_K), teacher.rearranged(rest_K)
        total = distil(*rows, forward.unit_weights[rest_K], objective).mixed
        if asked:
            written = on_policy.own_answers(self._student, batch, asked, self._ends, self.max_new_tokens)
            weights = [float(sums_N[place]) for place in asked]
            total = total + on_policy.divergence(self._student, self._models, batch, written, weights, objective)
            self._written += sum(int(sum(each.weights)) for each in written)
        return total

    def _answers(self, forward: Pass, batch: Batch) -> Teacher:
        """What the teacher says of the batch's trained units."""
        if self._table is not None:
            asked = [batch.sample_ids[place] for place in forward.owners.tolist()]
            unknown = [identity for identity in asked if identity not in self._rows]
            if unknown:
                fix = "put what makes new samples before `distill` in the list of techniques"
                raise DataError("the teacher has not seen a training sample", why=f"sample {unknown[0]}", fix=fix)
            rows = torch.tensor([self._rows[identity] for identity in asked], dtype=torch.int64)
            return Live([Predictions(logits=each[rows].to(batch.ids.device)) for each in self._table])
        return self._live(forward) if self._cache is None else self._kept(forward, batch, self._cache)

    def _live(self, forward: Pass) -> Live:
        return Live([forward.under(teacher).predictions for teacher in self._models])

    def _kept(self, forward: Pass, batch: Batch, cache: AnswerCache) -> Kept:
        """The kept answers to the batch's samples; the teacher is asked when one is missing."""
        counts = torch.bincount(forward.owners, minlength=len(batch.lengths)).tolist()
        keys = [key if count else None for key, count in zip(keys_of(batch), counts, strict=True)]
        found = [None if key is None else cache.get(key) for key in keys]
        if any(key is not None and answer is None for key, answer in zip(keys, found, strict=True)):
            asked = keep(self._live(forward), self.keep, self.temperature, self._size)
            log_p = asked.log_p.split(counts)
            words = [None] * len(counts) if asked.words is None else asked.words.split(counts)
            for place, key in enumerate(keys):
                if key is not None and found[place] is None:
                    answer = found[place] = (log_p[place], words[place])
                    cache.put(key, answer)
        answers = [answer for answer in found if answer is not None]
        device = batch.ids.device
        if not answers:  # nothing in this batch is trained
            return Kept(torch.zeros(0, self._size, device=device), None, self.temperature)
        log_p_K = torch.cat([log_p.to(device) for log_p, _ in answers])
        words_K = [each.to(device) for _, each in answers if each is not None]
        return Kept(log_p_K, torch.cat(words_K) if words_K else None, self.temperature)

    # -- proof ----------------------------------------------------------------------------------------------------
    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Any]:
        """Follow the divergence."""
        if self.active and f"loss_{self.use}" in metrics:
            self._last = metrics[f"loss_{self.use}"] / self.weight + metrics["loss_task"]
            self._first = self._last if self._steps == 0 else self._first
            self._steps, self._total = self._steps + 1, self._total + self._last
        return []

    def finish(self, model: Any) -> Any:
        """Write the answers that still wait, and look whether the teachers stayed as they were."""
        if self._cache is not None:
            self._cache.flush()
        if self._foreign is not None:
            self._seen = (self._foreign.compared, self._foreign.units)
            self._foreign = None
        self._student = None
        return super().finish(model)

    def state(self) -> dict[str, Any]:
        """The sums behind the proof; kept answers are on disk from here on."""
        if self._cache is not None:
            self._cache.flush()
        seen = {"written": self._written}
        if self._foreign is not None:
            seen |= {"compared": self._foreign.compared, "units": self._foreign.units}
        return {"steps": self._steps, "first": self._first, "last": self._last, "total": self._total, **seen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._steps, self._total, self._written = state["steps"], state["total"], state["written"]
        self._first, self._last = state["first"], state["last"]
        if self._foreign is not None:
            self._foreign.compared, self._foreign.units = state["compared"], state["units"]

    def effect(self) -> Effect:
        """Mean divergence per unit in nats (times the temperature squared); holds when there was one and the teacher stayed."""
        value = self._total / max(1, self._steps)
        passed = self._steps >= 2 and value > 0 and self.unchanged
        kept = f"; {self._cache.hits} of {self._cache.hits + self._cache.misses} answers were kept ones" if self._cache else ""
        if self.on_policy > 0:
            passed = passed and self._written > 0
            kept += f"; {self._written} tokens were the model's own"
        if self._seen is not None:
            passed = passed and self._seen[0] > 0
            kept = f"; {self._seen[0]} of {self._seen[1]} tokens were inside of common spans"
        detail = f"{self._first:.3g} at first, {self._last:.3g} at the end; {self.told()}{kept}"
        return Effect(self.use, "the teacher's predictions were part of every step's loss", value, passed, detail)


def _elsewhere(count: int, batch: Batch) -> Tensor:
    """(K,) for every unit another one (itself only when it is alone)."""
    offset = 1 + derive_seed(batch.seed, "shuffle", batch.progress.step, *batch.sample_ids) % max(1, count - 1)
    return (torch.arange(count, device=batch.ids.device) + offset) % max(1, count)
