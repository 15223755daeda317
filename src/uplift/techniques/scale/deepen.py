"""Deepen: gives the model more blocks, made from those it has, before training or inside the run.

When: pretraining, to spend the first part of the budget on a shallow model (`stack`, with `at`); or room for much new text.
When not: while the small model itself still gets better (compare with training it on); when the result must not be slower.
Paper: Du et al. 2024, Stacking Your Transformers (G_stack); Kim et al. 2023, SOLAR; Wu et al. 2024, LLaMA Pro (identity).
Cost: memory of the new blocks with gradients and moments, two models for a moment; time grows with the blocks.

`identity` puts copies behind blocks at even distances whose output layers are zero, so the function stays. `stack` repeats the
whole stack (1 2 1 2), `interleave` each block (1 1 2 2), `overlap` puts the upper part of one copy onto the lower part of
another (SOLAR: 1 2 3 2 3 4): these change the function at once. That a method keeps the function says little about where
training ends; compare them. All of the model trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.techniques.growth import Growing, Grown
from uplift.techniques.partial_training import is_hollow
from uplift.techniques.restack import followed_by_copies, output_projections, restack, sources

Method = Literal["identity", "stack", "interleave", "overlap"]


def block_order(method: Method, layers: int, wanted: int) -> list[int]:
    """Which old block (from 0) each of the ``wanted`` blocks of the deeper model is a copy of."""
    if method == "identity":
        return followed_by_copies(layers, sources(layers, wanted - layers))[0]
    if method == "stack":
        return [place % layers for place in range(wanted)]
    if method == "interleave":
        return [place * layers // wanted for place in range(wanted)]
    lower = -(-wanted // 2)
    return [*range(lower), *range(layers - (wanted - lower), layers)]


class Deepen(Growing):
    """Adds blocks up to ``layers``, or ``factor`` times as many as there are."""

    use: Literal["deepen"] = "deepen"
    method: Method = "stack"
    """`identity`: new blocks are silent at first, the function stays; `stack`: 1 2 1 2; `interleave`: 1 1 2 2; `overlap`: two
    copies that share their middle (SOLAR), at most twice as many blocks."""
    layers: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Blocks of the deeper model."""
    factor: Annotated[float, Field(ge=1, le=100)] | None = None
    """Blocks of the deeper model over those of the present one (1: off); default 2 where `layers` is not given."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), gives=frozenset({"grown_model"}), mutates=frozenset({"structure"})
    )
    off: ClassVar[Mapping[str, Any]] = {"factor": 1.0}

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.layers is not None and self.factor is not None:
            raise ValueError("`layers` and `factor` both say how deep: give one")
        return self

    def declare(self) -> Capabilities:
        """Silent blocks start from zeros."""
        declared = super().declare()
        if self.method != "identity" or self.idle:
            return declared
        silent = {
            "sparsity": ("new blocks start from exact zeros that must grow", "use `method: stack`, or remove one of the two")
        }
        return Capabilities(
            declared.needs, declared.gives, declared.mutates, declared.exclusive, {**declared.conflicts, **silent}
        )

    @property
    def idle(self) -> bool:
        """A factor of 1."""
        return self.factor == 1

    @property
    def method_in_words(self) -> str:
        """The method and the size asked for."""
        size = (
            f"to {self.layers} blocks" if self.layers is not None else f"{2.0 if self.factor is None else self.factor:g} times"
        )
        return f"{self.method}, {size} as deep" if self.layers is None else f"{self.method}, {size}"

    @property
    def lost(self) -> str:
        """All methods but ``identity`` run blocks twice."""
        return "" if self.method == "identity" else f"`{self.method}` sends the hidden states through copied blocks once more"

    def wanted(self, layers: int) -> int:
        """Blocks of the deeper model. Raises RecipeError when they are not more, or not whole, or too many to overlap."""
        factor = 2.0 if self.factor is None else self.factor
        wanted = self.layers if self.layers is not None else round(layers * factor)
        if self.layers is None and abs(layers * factor - wanted) > 1e-6:
            raise RecipeError(f"{layers} blocks times {factor:g} is not a whole number", fix="give `deepen.layers`")
        if wanted <= layers:
            raise RecipeError(f"`deepen` is asked for {wanted} blocks, and the model has {layers}", fix="ask for more")
        if self.method == "overlap" and wanted > 2 * layers:
            why = f"two copies of {layers} blocks have {2 * layers} at most"
            raise RecipeError(f"{wanted} blocks cannot be had by `overlap`", why=why, fix="use `stack`, or ask for fewer")
        return wanted

    def change(self, model: Any) -> Grown:
        """Restack the blocks. Raises RecipeError when silent ones cannot be made here."""
        before = len(model.layers)
        wanted = self.wanted(before)
        order = block_order(self.method, before, wanted)
        copies = [place for place, source in enumerate(order) if source in order[:place]]
        silent = copies if self.method == "identity" else []
        if silent and not is_hollow(model) and not all(output_projections(model.layers[order[place]]) for place in silent):
            why = "its blocks normalise after the sum, or their output layers have names that are not known"
            raise RecipeError("`deepen.method: identity` cannot make silent blocks here", why=why, fix="use `method: stack`")
        heirs = restack(model, order, silent)
        path = {id(module): path for path, module in model.pretrained.named_modules()}
        beginnings = tuple(f"{path[id(model.layers[place])]}." for place in copies)
        return Grown(heirs, {name: () for name in model.parameters_by_name() if name.startswith(beginnings)})
