"""Quantize: rounds the trained weights of the linear layers to 8, 4 or 3 bits, so that the saved model is a fraction as large.

When: the model is done and must be small on disk; 8 bits cost next to nothing, 4 bits little with `gptq` (or, on a pretrained
model, `awq`).
When not: 3 bits of a small model (train with `qat` instead); as a base for training (`quantized_base` keeps it small there).
Paper: Frantar et al. 2022, GPTQ; Lin et al. 2023, AWQ; Badri and Shaji 2023, Half-Quadratic Quantization.
Cost: memory of one more copy of the rounded weights, with `gptq` and `awq` of the squared inputs of one block; time after
training only: none for `round` and `hqq`, two forwards over `rows` rows and some minutes for 100M weights for the others.

It works on any model, with or without training (`train: {steps: 0}`), after adapters were merged and averages put in.
With `gptq` and `awq` a block is measured on what the blocks before it put out by then, already rounded; inside a block all
layers are measured before the first is rounded. Rows are training rows. The result evaluates exactly as it is saved: its
weights are float32 numbers on the grid, in the run and when it is opened again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor, nn

from uplift.core.capability import Capabilities
from uplift.core.technique import Phase
from uplift.core.values import Batch, Corpus, Effect
from uplift.model.grid import Grid, Rounded, round_to
from uplift.model.packed import Activations
from uplift.techniques.calibration import Inputs, blockwise_inputs, packed_rows, training_rows, weight_of
from uplift.techniques.rounding import awq, gptq, hqq, output_errors
from uplift.techniques.scale_folding import find_readers, fold
from uplift.techniques.weight_rounding import WeightRounding

CALIBRATED = ("gptq", "awq")


class Quantize(WeightRounding):
    """Rounds at the end of the run; what is evaluated is the rounded model."""

    use: Literal["quantize"] = "quantize"
    method: Literal["round", "gptq", "awq", "hqq"] = "round"
    """`round`: to the nearest; `gptq`: each column makes up for the errors of those before; `awq`: columns of large inputs are
    rounded more finely; `hqq`: zero is moved to where few weights err much (asymmetric, no rows needed)."""
    scheme: Literal["auto", "symmetric", "asymmetric"] = "auto"
    """Whether a group reaches equally far to both sides of zero, or from its smallest to its largest weight; `auto`: asymmetric
    for `hqq` and 3 bits, symmetric else."""
    activations: Activations = "float"
    """`int8` (8 bits, one scale per `channel`, symmetric): the layers round their inputs too, token by token, and multiply in
    integers on the CPU: up to twice as fast where the processor has instructions for it, a little less exact."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Training rows that `gptq` and `awq` look at, each at most 512 tokens long."""
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    """`gptq`: share of the mean squared input that is added to each; more trusts the rows less."""
    act_order: bool = False
    """`gptq`: round the columns of the largest inputs first."""

    capabilities: ClassVar[Capabilities] = replace(WeightRounding.capabilities, needs=frozenset({"train_rows"}))
    phase: ClassVar[Phase] = "structure"

    _corpus: Corpus | None = PrivateAttr(None)
    _errors: list[float] = PrivateAttr(default_factory=lambda: [0.0, 0.0])
    _unseen: int = PrivateAttr(0)
    _folded: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _scheme_fits(self) -> Self:
        if self.method == "hqq" and self.scheme == "symmetric":
            raise ValueError("`hqq` moves zero, which a symmetric grid keeps in the middle; remove `scheme`")
        if self.act_order and self.method != "gptq":
            raise ValueError("`act_order` is an option of `method: gptq`")
        integers = self.grid == Grid(8, 0, True) and self.method in ("round", "gptq") and self.saved == "packed"
        if self.activations == "int8" and not integers:
            raise ValueError("`activations: int8` needs `bits: 8`, `group: channel`, a symmetric scheme and `saved: packed`")
        return self

    @property
    def inputs(self) -> Activations:
        """By ``activations``."""
        return self.activations

    @property
    def symmetric(self) -> bool:
        """By ``scheme``."""
        return self.scheme == "symmetric" or (self.scheme == "auto" and self.method != "hqq" and self.bits != 3)

    def samples(self, corpus: Corpus) -> Corpus:
        """Remember the training rows where the method looks at them."""
        if corpus.part == "train" and self.method in CALIBRATED:
            self._corpus = corpus
        return corpus

    def edit(self, model: Any) -> Any:
        """Nothing is changed before training; a model that cannot be rounded is refused now, not after it."""
        self.check(model)
        return model

    @torch.no_grad()
    def finish(self, model: Any) -> Any:
        """Round layer by layer and install the result. Raises RecipeError when there is nothing to calibrate on."""
        linears = self.chosen(model)
        exact = {name: weight_of(linear).clone() for name, linear in linears.items()}
        if self.method in CALIBRATED:
            rounded = self._calibrated(model, linears, exact)
        else:
            rounded = {name: self._alone(weight) for name, weight in exact.items()}
        self.install(model, rounded, exact)
        return model

    def _alone(self, weight_OI: Tensor) -> Rounded:
        return hqq(weight_OI, self.grid) if self.method == "hqq" else round_to(weight_OI, self.grid)

    def _calibrated(self, model: Any, linears: Mapping[str, nn.Module], exact: dict[str, Tensor]) -> dict[str, Rounded]:
        """Block after block, each on what the rounded blocks before it put out."""
        batches = packed_rows(model, training_rows(model, self._corpus, self.rows, self.use))
        rounded: dict[str, Rounded] = {}
        probe = model.embed(batches[0].ids)
        for place, inputs in blockwise_inputs(model, batches, gram=True):
            here = {name: each for name, each in inputs.items() if name in linears}
            if self.method == "awq":
                found = self._scaled(model, place, batches[0], probe, here, exact)
            else:
                found = {name: self._compensated(exact[name], each) for name, each in here.items()}
            for name, each in found.items():
                weight_of(linears[name]).copy_(each.weight())
            rounded |= found
            probe = model.layer_hidden(probe, batches[0].positions, batches[0].lengths, place + 1, start=place)
        return rounded

    def _compensated(self, weight_OI: Tensor, inputs: Inputs) -> Rounded:
        if inputs.count == 0:  # an expert that no row was sent to
            self._unseen += 1
            return round_to(weight_OI, self.grid)
        assert inputs.gram_II is not None
        found = gptq(weight_OI, inputs.gram_II, self.grid, self.damping, self.act_order)
        self._count(found.weight(), weight_OI, inputs)
        return found

    def _scaled(
        self, model: Any, place: int, batch: Batch, states: Tensor, inputs: Mapping[str, Inputs], exact: dict[str, Tensor]
    ) -> dict[str, Rounded]:
        """Search factors for each group of layers of equal input, put them where they cost nothing, and round."""
        kept: dict[str, Tensor] = {}
        for readers in find_readers(model, place, batch, states):
            names = [name for name in readers.names if name in inputs]
            if not names:
                continue
            seen = inputs[names[0]]
            assert seen.gram_II is not None
            factors_I = awq([exact[name] for name in names], seen.mean_absolute, seen.gram_II, self.grid).factors
            for name in names:
                self._count(round_to(exact[name], self.grid, factors_I).weight(), exact[name], inputs[name])
            if bool((factors_I == 1).all()):
                continue
            if readers.source is None:
                kept |= {name: factors_I.clone() for name in names}
                continue
            fold(model.pretrained, readers, factors_I)
            self._folded += len(names)
        for name in inputs:  # as folding left them, which is what rounding is now measured against
            exact[name] = weight_of(model.pretrained.get_submodule(name)).clone()
        self._unseen += sum(each.count == 0 for each in inputs.values())
        return {name: round_to(exact[name], self.grid, kept.get(name)) for name in inputs}

    def _count(self, rounded_OI: Tensor, exact_OI: Tensor, inputs: Inputs) -> None:
        """Add the output errors of a layer: with the method, and with plain rounding."""
        assert inputs.gram_II is not None
        plain_OI = round_to(exact_OI, self.grid).weight()
        for place, weight_OI in enumerate((rounded_OI, plain_OI)):
            self._errors[place] += float(output_errors(exact_OI, weight_OI, inputs.gram_II).sum())

    def effect(self) -> Effect:
        """Bytes of the rounded layers over those in float32; holds when it is below half and every weight is on the grid.

        A method that looked at rows must also have given a smaller output error on them than plain rounding.
        """
        share, helped = self._bytes[1] / max(1, self._bytes[0]), self._errors[0] < self._errors[1]
        passed = self.proven() and (helped or self.method not in CALIBRATED)
        ratio = self._errors[0] / self._errors[1] if self._errors[1] > 0 else 1.0
        detail = self.sizes()
        if self.method in CALIBRATED:
            detail += f"; output error on the rows {ratio:.3g} of that of plain rounding"
            detail += f"; {self._folded} layers scaled by what feeds them" if self._folded else ""
            detail += f"; {self._unseen} layers that no row reached are rounded plainly" if self._unseen else ""
        return Effect(self.use, f"linear weights are stored in {self.bits} bits ({self.method})", share, passed, detail)
