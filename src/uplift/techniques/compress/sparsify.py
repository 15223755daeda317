"""Unstructured sparsity: sets the least important weights of the blocks' matrices to exactly zero and keeps them there.

When: a model is to be stored or run by something that gains from zeros (2:4 on recent GPUs, sparse kernels, compressed files).
When not: to make plain torch faster or a plain file smaller (zeros are stored and multiplied like all numbers: then `prune`).
Paper: Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models (Wanda); Han et al. 2015 (magnitude).
Cost: memory one byte per weight of the matrices for the mask; time two forwards over `rows` rows once (Wanda), and with `when:
before` one product with the mask a step.

Wanda compares ``|W| * ||X||`` within each output row, X being what the layer is given on training rows, block after block: a
block sees what the blocks before it put out after their own cut. Magnitude compares ``|W|`` within each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters, Phase, Technique
from uplift.core.values import Batch, Corpus, Effect, Progress, derive_seed
from uplift.techniques.calibration import (
    block_linears,
    blockwise_inputs,
    is_turned,
    mean_loss,
    packed_rows,
    training_rows,
    weight_of,
)
from uplift.techniques.fingerprint import checksums
from uplift.techniques.partial_training import is_hollow, seed_of_run

DEFAULT_SHARE = 0.5
PATTERNS = {"2:4": (2, 4), "4:8": (4, 8)}
"""So many zeros among so many neighbours of a row."""


def magnitude_scores(weight_OI: Tensor) -> Tensor:
    """(O, I): ``|W|``."""
    return weight_OI.abs()


def wanda_scores(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """(O, I): ``|W_ij| * ||X_j||_2`` (Sun et al. 2024, equation 1)."""
    return weight_OI.abs() * norm_I.to(weight_OI.dtype)


def lowest(scores_RK: Tensor, count: int) -> Tensor:
    """(R, K) bool: exactly ``count`` lowest scores of each row; of equal ones the first."""
    order = torch.sort(scores_RK, dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(scores_RK, dtype=torch.bool).scatter_(1, order, True)


def zeros_of(scores_OI: Tensor, share: float, pattern: str, *, by_row: bool) -> Tensor:
    """(O, I) bool: which weights become zero. Raises ValueError when a row does not divide into the pattern.

    Unstructured: the share of each row, or of the whole matrix, rounded to the nearest count.
    """
    outputs, inputs = scores_OI.shape
    if pattern in PATTERNS:
        zeros, among = PATTERNS[pattern]
        if inputs % among:
            raise ValueError(f"{inputs} inputs do not divide into groups of {among}")
        return lowest(scores_OI.reshape(-1, among), zeros).view(outputs, inputs)
    if by_row:
        return lowest(scores_OI, round(share * inputs))
    return lowest(scores_OI.reshape(1, -1), round(share * scores_OI.numel())).view(outputs, inputs)


class Sparsify(Technique):
    """Zeroes a share of the weights of every linear layer inside the blocks; embeddings, norms, biases and heads stay whole."""

    use: Literal["sparsify"] = "sparsify"
    share: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the weights that becomes zero (0: off); default 0.5."""
    method: Literal["wanda", "magnitude", "random"] = "wanda"
    """What says how important a weight is: its size times the norm of its input, or its size; `random` is the placebo."""
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    """`2:4`, `4:8`: two of four (four of eight) neighbours of a row are zero, so always half; what GPUs have kernels for."""
    when: Literal["before", "after"] = "before"
    """`before`: first zero, then train what is left, the zeros held in place; `after`: train, then zero."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Training rows that Wanda measures inputs on, at even distances through the data."""

    phase: ClassVar[Phase] = "precision"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "train_rows"}),
        mutates=frozenset({"zeros"}),
        exclusive=frozenset({"zeros"}),
        conflicts={
            "adapter": (
                "an adapter's weights, merged or saved beside the model, do not have the zeros",
                "train all weights, or train and merge the adapter in a run before",
            ),
            "new_blocks": ("new blocks start from exact zeros that must grow", "grow in a run of its own, then sparsify"),
            "grown_model": ("what grows has weights that no mask knows", "grow in a run of its own, then sparsify"),
            "sparsity": ("both decide which weights become zero", "remove one of the two"),
            "rounded_weights": ("rounding moves zeros off zero, and makes up for its errors in them", "remove one of the two"),
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    _corpus: Corpus | None = PrivateAttr(None)
    _seed: int = PrivateAttr(0)
    _batches: list[Batch] = PrivateAttr(default_factory=list)
    _kept: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _sums: dict[str, int] = PrivateAttr(default_factory=dict)
    _losses: list[float] = PrivateAttr(default_factory=list)
    _found: tuple[int, int, int] = PrivateAttr((0, 0, 0))

    @model_validator(mode="after")
    def _pattern_is_half(self) -> Self:
        if self.pattern != "unstructured" and self.share not in (None, 0.5):
            raise ValueError(f"`pattern: {self.pattern}` zeroes half of the weights: leave `share` out")
        return self

    def samples(self, corpus: Corpus) -> Corpus:
        """Remember the training rows."""
        if corpus.part == "train":
            self._corpus = corpus
        return corpus

    def edit(self, model: Any) -> Any:
        """Take the run's seed; make the zeros that come before training. Raises RecipeError where there is nothing to zero."""
        self._seed = seed_of_run()
        if self.share == 0:
            return model
        linears = block_linears(model)
        if not linears:
            raise RecipeError("`sparsify` finds no linear layers in this model's blocks", fix="remove it")
        for name, linear in linears.items() if self.pattern in PATTERNS else ():
            self._check_pattern(name, weight_of(linear).shape[1])
        if self.when == "before" and not is_hollow(model):
            self._make_zeros(model)
        return model

    def _check_pattern(self, name: str, inputs: int) -> None:
        if inputs % PATTERNS[self.pattern][1]:
            why = f"`{name}` has {inputs} inputs, which do not divide by {PATTERNS[self.pattern][1]}"
            raise RecipeError(f"`sparsify` cannot make the pattern {self.pattern}", why=why, fix="use `pattern: unstructured`")

    @torch.no_grad()
    def _make_zeros(self, model: Any) -> None:
        """Choose, zero, and remember what is kept."""
        self._batches = packed_rows(model, training_rows(model, self._corpus, self.rows, self.use))
        self._losses = [mean_loss(model, self._batches)]
        if self.method == "wanda":
            for place, inputs in blockwise_inputs(model, self._batches):
                for name, linear in block_linears(model, [place]).items():
                    seen, weight_OI = inputs[name], weight_of(linear)
                    # A layer that no row reached (an expert) is judged by size alone.
                    scores = wanda_scores(weight_OI, seen.norm) if seen.count else magnitude_scores(weight_OI)
                    self._zero(name, linear, scores, by_row=True)
        else:
            for name, linear in block_linears(model).items():
                weight_OI = weight_of(linear)
                scores = magnitude_scores(weight_OI) if self.method == "magnitude" else self._draw(name, weight_OI)
                self._zero(name, linear, scores, by_row=False)
        self._sums = checksums(self._kept)
        self._losses.append(mean_loss(model, self._batches))

    def _draw(self, name: str, weight_OI: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "sparsify", name))
        return torch.rand(weight_OI.shape, generator=generator).to(weight_OI.device)

    def _zero(self, name: str, linear: Any, scores_OI: Tensor, *, by_row: bool) -> None:
        share = DEFAULT_SHARE if self.share is None else self.share
        weight_OI, zeros_OI = weight_of(linear), zeros_of(scores_OI, share, self.pattern, by_row=by_row)
        weight_OI[zeros_OI] = 0.0
        self._kept[f"{name}.weight"] = ~(zeros_OI.T if is_turned(linear) else zeros_OI).contiguous()

    # -- held through training -------------------------------------------------------------------------------------------
    @torch.no_grad()
    def gradients(self, parameters: Parameters, progress: Progress) -> None:
        """No gradient for what is zero: it counts in no norm and builds up no momentum."""
        for name in self._held(parameters):
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.mul_(self._kept[name])

    @torch.no_grad()
    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        """Put the zeros back, whatever the optimizer did (orthogonal updates fill every place)."""
        for name in self._held(parameters):
            parameters[name].mul_(self._kept[name])

    def _held(self, parameters: Parameters) -> list[str]:
        return [name for name in self._kept if name in parameters]

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Tell the report what the zeros cost at first."""
        if self._kept:
            model.notes = (*model.notes, f"`sparsify` by {self.method} before training: {self._told()}")

    def finish(self, model: Any) -> Any:
        """Make the zeros, if they come after training; count them."""
        if self.share == 0:
            return model
        if self.when == "after":
            self._make_zeros(model)
            model.notes = (*model.notes, f"`sparsify` by {self.method} after training: {self._told()}")
        else:
            self._losses = [*self._losses[:2], mean_loss(model, self._batches)]
        named = model.parameters_by_name()
        wanted = sum(int((~kept).sum()) for kept in self._kept.values())
        zero = sum(int((named[name][~kept] == 0).sum()) for name, kept in self._kept.items())
        self._found = (zero, wanted, sum(kept.numel() for kept in self._kept.values()))
        return model

    def state(self) -> dict[str, Any]:
        """Checksums of the masks, which are made again from the same numbers."""
        return {"masks": dict(self._sums)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Compare. Raises RecipeError when other weights would be zero than before."""
        if dict(state["masks"]) != self._sums:
            fix = "go on where the run was started (another machine may round differently), or use another `output_dir`"
            raise RecipeError("`sparsify` chooses other weights than before the restart", fix=fix)

    def _told(self) -> str:
        names = ("dense", "with zeros", "at the end")
        return "loss on training rows " + ", ".join(
            f"{loss:.4g} {name}" for loss, name in zip(self._losses, names, strict=False)
        )

    def effect(self) -> Effect:
        """Share of the weights that is exactly zero at the end; holds when all that were chosen are."""
        zero, wanted, all_of_them = self._found
        passed = 0 < wanted == zero
        detail = (
            f"{zero:,} of {wanted:,} chosen weights are zero, of {all_of_them:,} in {len(self._kept)} matrices; {self._told()}"
        )
        claim = f"weights are exactly zero ({self.method}, {self.pattern}, {self.when} training)"
        return Effect(self.use, claim, zero / max(1, all_of_them), passed, detail)
