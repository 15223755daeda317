"""Attention matching: which tokens the model's attention holds to belong together comes to resemble a teacher's view of it.

When: a student that is smaller than its teacher in every way (narrower, fewer heads and blocks), before or beside `distill`:
one layer is enough, and widths and numbers of heads may differ.
When not: another tokenizer; a student whose predictions can be taught directly and that has enough rows for it.
Paper: Wang et al. 2020, MiniLM, and 2021, MiniLMv2 (relations of queries, keys and values); Jiao et al. 2020, TinyBERT.
Cost: memory of the teacher, and of heads times length squared for each document of a batch; time of one forward of the teacher.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters
from uplift.core.values import Batch, Pass, Term, Terms
from uplift.model.attention import Attended, Rule, scores_of
from uplift.model.backbone import evaluating
from uplift.techniques.matching import LayerPair, Matched, token_weights

Relation = Literal["queries", "keys", "values", "attention"]
HIDDEN = -1e9
"""A score that leaves no chance; finite, so that its difference to another one is a number."""


def log_chances(queries_HKd: Tensor, keys_GLd: Tensor, places_K: Tensor, rule: Rule) -> Tensor:
    """(H, K, L): log of the chance with which the tokens at these places of a document look at each of its L tokens."""
    scores_HKL = scores_of(queries_HKd.float(), keys_GLd.float(), rule)
    if rule.causal:
        back_KL = places_K[:, None] - torch.arange(keys_GLd.shape[-2], device=places_K.device)
        seen_KL = (back_KL >= 0) & (back_KL < rule.window) if rule.window else back_KL >= 0
        scores_HKL = scores_HKL.masked_fill(~seen_KL, HIDDEN)
    return scores_HKL.log_softmax(-1)


def in_heads(states_HTd: Tensor, heads: int) -> Tensor:
    """(heads, T, H d / heads): all heads side by side, divided anew."""
    wide = states_HTd.transpose(0, 1).flatten(1)
    return wide.reshape(len(wide), heads, -1).transpose(0, 1)


class MatchAttention(Matched):
    """Adds ``strength`` times KL(teacher || model) between attention relations, the mean over heads, relations and layers, at
    every trained place.

    The relation of the values, say, is what attention would be if values were compared with values: a softmax over the tokens
    that the token may see. It is taken between heads that are divided anew, equally many in both models.
    """

    use: Literal["match_attention"] = "match_attention"
    layers: list[LayerPair] = []
    """Pairs [layer of the model, layer of the teacher], counted from 1; default: the last with the last. Of a teacher with 24
    layers or more, one somewhat below the last teaches better."""
    relations: Annotated[list[Relation], Field(min_length=1)] = ["queries", "keys", "values"]
    """What is compared: queries with queries, keys with keys, values with values, or `attention` itself (queries with keys),
    for which both models need the same number of heads."""
    heads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """Into how many heads queries, keys and values are divided anew; `auto`: as many as go into all widths, at most those that
    the model's attention has."""

    watched: ClassVar[str] = "attention_states"
    claim: ClassVar[str] = "attention was pulled towards the teacher's"
    otherwise: ClassVar[str] = "match predictions instead, with `distill: {align: spans}`"

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if len(set(self.relations)) != len(self.relations):
            raise ValueError("each of `relations` is named once")
        return self

    def pairs_of(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Those that were named, or the last layers."""
        return [(mine, its) for mine, its in self.layers] or [(student, teacher)]

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Watch the attention of both. Raises RecipeError for heads that do not fit, ModelError where there is none to see."""
        if not self.active:
            return
        super().begin(model, parameters)
        model.tap_attention(mine for mine, _ in self._pairs)
        self._models[0].tap_attention(its for _, its in self._pairs)
        own, taught = _tried(model), _tried(self._models[0])
        for mine, its in self._pairs:
            self._check(own[mine], taught[its])

    def _check(self, own: Attended, its: Attended) -> None:
        heads = [each.queries.shape[1] for each in (own, its)]
        if "attention" in self.relations and heads[0] != heads[1]:
            why = f"the model's attention has {heads[0]} heads, the teacher's {heads[1]}"
            fix = "leave `attention` out: the other relations divide their heads anew"
            raise RecipeError("`match_attention.relations` cannot compare `attention`", why=why, fix=fix)
        widths = self._widths(own, its)
        odd = [width for width in widths if self.heads != "auto" and width % self.heads]
        if odd:
            why = f"a state of {odd[0]} numbers does not divide into {self.heads} heads"
            fix = f"use a divisor of {math.gcd(*widths)}, or `auto`"
            raise RecipeError("`match_attention.heads` does not fit", why=why, fix=fix)

    def _widths(self, *both: Attended) -> list[int]:
        """How many numbers a token's queries, keys and values have together, of those that are compared."""
        states = [getattr(each, kind) for each in both for kind in self.relations if kind != "attention"]
        return [state.shape[1] * state.shape[3] for state in states]

    def _heads(self, own: Attended, its: Attended) -> int:
        if self.heads != "auto":
            return self.heads
        common = math.gcd(*self._widths(own, its))
        return max(heads for heads in range(1, own.queries.shape[1] + 1) if common % heads == 0)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The divergence of this batch's relations."""
        if not self.active:
            return {}
        taught, weights_T = forward.under(self._models[0]), token_weights(forward, batch)
        sums, begin = [], 0
        for length in batch.lengths:
            part, begin = slice(begin, begin + length), begin + length
            places_K = torch.nonzero(weights_T[part], as_tuple=True)[0]
            if len(places_K):
                found = [
                    self._between(forward.attended[mine], taught.attended[its], part, places_K) for mine, its in self._pairs
                ]
                sums.append((torch.stack(found).mean(0) * weights_T[part][places_K]).sum())
        total = torch.stack(sums).sum() if sums else forward.hidden.sum() * 0.0
        return {self.use: Term(self.strength * total, forward.count, forward.unit)}

    def _between(self, own: Attended, its: Attended, part: slice, places_K: Tensor) -> Tensor:
        """(K,) divergence at these places of the document that is this part of the row, mean over heads and relations."""
        heads = self._heads(own, its)
        both = [self._relations(each, part, places_K, heads) for each in (own, its)]
        pairs = zip(*both, strict=True)
        return torch.stack([F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean(0) for q, p in pairs]).mean(0)

    def _relations(self, seen: Attended, part: slice, places_K: Tensor, heads: int) -> list[Tensor]:
        """(heads, K, L) for each relation."""
        found = []
        for kind in self.relations:
            if kind == "attention":
                queries, keys, rule = seen.queries[0, :, part], seen.keys[0, :, part], seen.rule
            else:
                queries = keys = in_heads(getattr(seen, kind)[0, :, part], heads)
                rule = Rule(seen.rule.causal, seen.rule.window)
            found.append(log_chances(queries[:, places_K], keys, places_K, rule))
        return found

    def finish(self, model: Any) -> Any:
        """Watch no more, and look whether the teacher stayed as it was."""
        if self.active and self._models:
            model.tap_attention([])
            self._models[0].tap_attention([])
        return super().finish(model)


@torch.no_grad()
def _tried(model: Any) -> dict[int, Attended]:
    """What the watched layers compare for one token."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with evaluating(model.pretrained):
        model.hidden(model.embed(ids), ids, (1,))
    return model.attention_taps.take()  # type: ignore[no-any-return]
