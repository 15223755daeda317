"""What adapters share: a frozen base that must stay as it was, an injected part that must move, and PEFT's way in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect
from uplift.model.adapters import SavedWeights
from uplift.model.bottleneck import bottlenecks
from uplift.model.quiet import quiet
from uplift.techniques.fingerprint import checksums, differing

ADAPTER = "default"
CAPABILITIES = Capabilities(
    needs=frozenset({"training"}),
    gives=frozenset({"adapter"}),
    exclusive=frozenset({"adapter"}),
    conflicts={"head_only": ("one trains only the head, the other adapts the layers below it", "remove one of the two")},
)
VECTORS = replace(CAPABILITIES, gives=frozenset({"adapter", "vectors_only"}))
"""Of an adapter without matrices: what pulls or decays matrices has nothing to do."""
Targets = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=1000)]


def linear_names(model: Any) -> list[str]:
    """The last name parts of the layers inside the model's blocks that have a matrix (``q_proj``, ``down_proj``, ...)."""
    named = ((name, module) for block in model.layers for name, module in block.named_modules())
    return sorted(
        {name.rpartition(".")[2] for name, m in named if getattr(m, "weight", None) is not None and m.weight.ndim == 2}
    )


class Adapter(Technique):
    """Base of adapters: the proof that the base stayed bit-equal and the adapter moved. Not a technique by itself."""

    capabilities: ClassVar[Capabilities] = CAPABILITIES
    own: ClassVar[tuple[str, ...]] = ()
    """Name parts of what the adapter brings along: everything else that does not train must stay as it is."""

    _base: dict[str, int] = PrivateAttr(default_factory=dict)
    _changed: list[str] = PrivateAttr(default_factory=list)
    _layers: int = PrivateAttr(0)
    _moved: float = PrivateAttr(0.0)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of the frozen weights."""
        named = model.parameters_by_name().items()
        frozen = {n: p for n, p in named if n not in parameters and not any(part in n for part in self.own)}
        self._base = checksums(frozen)

    def finish(self, model: Any) -> Any:
        """Compare the base with its checksums and measure how far the adapter went."""
        self._changed = differing(self._base, model.parameters_by_name())
        self._moved = self.distance(model)
        return model

    def distance(self, model: Any) -> float:
        """How far the adapter is from where it started: 0 when it changes nothing."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """The base's checksums from before step 1."""
        return {"base": dict(self._base)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the checksums."""
        self._base = dict(state["base"])

    def effect(self) -> Effect:
        """Distance of the adapter from its start; holds when it moved and the base is bit-equal."""
        passed = bool(self._base) and not self._changed and self._moved > 0 and math.isfinite(self._moved)
        same = f"base changed: {', '.join(self._changed[:3])}" if self._changed else f"{len(self._base)} base tensors bit-equal"
        return Effect(self.use, "the adapter moved and the base did not", self._moved, passed, f"{self._layers} layers; {same}")


class PeftAdapter(Adapter):
    """Base of adapters that PEFT injects; ``config`` says which. Not a technique by itself."""

    targets: Annotated[
        Literal["all-linear"] | Targets,
        Field(description="Which linear layers: all, or a list of (endings of) module names such as `q_proj`."),
    ] = "all-linear"
    merge: Annotated[
        bool, Field(description="Put the change into the weights at the end (in float32); `false` keeps the adapter apart.")
    ] = True

    def config(self, model: Any) -> PeftConfig:
        """PEFT's configuration of this adapter for ``model`` (a ``LanguageModel``)."""
        raise NotImplementedError

    def edit(self, model: Any) -> Any:
        """Freeze the model and inject the adapter. Raises RecipeError when no layer fits, or one adapter is there already."""
        refuse_second(model, self.use)
        try:
            with quiet():
                model.peft = get_peft_model(model.pretrained, self.config(model))
        except ValueError as error:
            raise self._no_target(model) from error
        model.peft.to(model.device)  # what layers share is made on the CPU
        self._layers = len(tuner_layers(model))
        if self._layers == 0:
            raise self._no_target(model)
        head = model.pretrained.get_output_embeddings() if model.head_kind == "language" else None
        if isinstance(head, BaseTunerLayer):
            why = "the language head is used as a plain matrix"
            raise RecipeError(f"`{self.use}.targets` reaches the language head", why=why, fix="leave it out")
        return model

    def _no_target(self, model: Any) -> RecipeError:
        names = ", ".join(f"`{name}`" for name in linear_names(model))
        what = f"`{self.use}.targets` {self.targets} fits no linear layer"
        return RecipeError(what, why=f"this model has {names}", fix="use those")

    def finish(self, model: Any) -> Any:
        """Measure; then merge and take the adapter layers out again, or leave them."""
        model = super().finish(model)
        if self.merge:
            with quiet():
                model.merged_adapter = SavedWeights.of(model.peft)
                model.pretrained = model.peft.merge_and_unload()
            model.peft = None
        return model


def tuner_layers(model: Any) -> dict[str, Any]:
    """PEFT's layers inside the model, by name."""
    return {name: module for name, module in model.pretrained.named_modules() if isinstance(module, BaseTunerLayer)}


def adapter_tensors(model: Any, part: str) -> list[Tensor]:
    """The parameters whose names have ``part`` in them."""
    return [parameter for name, parameter in model.parameters_by_name().items() if part in name]


def refuse_second(model: Any, use: str) -> None:
    """Raise RecipeError when the model has an adapter already."""
    if model.peft is not None or bottlenecks(model.pretrained):
        raise RecipeError(f"`{use}` needs a model without an adapter, and this one has one", fix="open the plain model")
