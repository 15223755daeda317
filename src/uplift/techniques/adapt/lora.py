"""LoRA: freezes the model and trains two thin matrices beside each linear layer.

When: the default way to adapt a language model; little memory, a small file per task, the base stays as it was.
When not: when much new knowledge must go in (the rank bounds it) or for a tiny encoder, where full fine-tuning is cheap.
Paper: Hu et al. 2021, LoRA; Kalajdzievski 2023, rsLoRA; Schulman et al. 2025, LoRA Without Regret (all layers, rate about 10x).
Cost: memory of gradients and optimizer falls to the adapter's share (about 1 %); time 0.7 of full fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from pydantic import Field, PrivateAttr, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect
from uplift.techniques.fingerprint import checksums, differing, total_norm
from uplift.techniques.lean_lora import install_lean_layers

ADAPTER = "default"


def low_rank_update(a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """The change of the weight, ``scale * B A`` (O, I), in float32."""
    return (b_OR.float() @ a_RI.float()) * scale


def lora_layers(root: nn.Module) -> dict[str, Any]:
    """The LoRA layers inside a module, by name."""
    return {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merge_in_float32(layer: Any, adapter: str = ADAPTER) -> None:
    """Add the update to the base weight in float32 and round once; bf16 arithmetic would lose about 1 % of the logits."""
    weight = layer.get_base_layer().weight
    update = low_rank_update(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
    weight.copy_((weight.float() + update).to(weight.dtype))
    layer.merged_adapters.append(adapter)


@dataclass(frozen=True)
class MergedAdapter:
    """What an adapter was before it went into the weights: PEFT's configuration and tensors."""

    config: LoraConfig
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, peft: PeftModel) -> MergedAdapter:
        """A copy of the adapter inside ``peft``, on the CPU."""
        config = deepcopy(peft.peft_config[ADAPTER])
        assert isinstance(config, LoraConfig)
        config.inference_mode = True
        tensors = get_peft_model_state_dict(peft, adapter_name=ADAPTER)
        return cls(config, {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})

    def save(self, directory: Path) -> None:
        """Write a folder that plain PEFT loads; meant as the ``write`` callback of ``storage.commit_directory``."""
        save_file(self.tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(str(directory))


def linear_names(model: Any) -> list[str]:
    """The last name parts of the linear layers inside the model's blocks (``q_proj``, ``down_proj``, ...)."""
    found = {n.rpartition(".")[2] for block in model.layers for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    return sorted(found)


class Lora(Technique):
    """Adapters of PEFT on all or some linear layers; saved in PEFT's format, merged into the weights at the end."""

    use: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Width of the thin matrices; more rank, more capacity."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0
    """The update is scaled by alpha / rank (or alpha / sqrt(rank) with `rslora`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input during training."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1, max_length=1000)] = "all-linear"
    """Which linear layers: all, or a list of (endings of) module names such as `q_proj`."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None
    """First and last block to adapt, counted from 0; default: all."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps the update's size steady at high rank."""
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """How A starts; B starts at zero, so the model starts unchanged."""
    merge: bool = True
    """Add the update to the weights at the end (in float32); `false` keeps the adapter apart."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        gives=frozenset({"adapter"}),
        exclusive=frozenset({"adapter"}),
        conflicts={"head_only": ("one trains only the head, the other adapts the layers below it", "remove one of the two")},
    )

    _base: dict[str, int] = PrivateAttr(default_factory=dict)
    _changed: list[str] = PrivateAttr(default_factory=list)
    _layers: int = PrivateAttr(0)
    _moved: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _layers_in_order(self) -> Self:
        if self.layers and self.layers[0] > self.layers[1]:
            raise ValueError("`layers` is [first, last] with first <= last")
        return self

    def config(self, model: Any) -> LoraConfig:
        """PEFT's configuration of this adapter for ``model`` (a ``LanguageModel``)."""
        targets, chosen = self.targets, None
        if self.layers is not None:
            targets = linear_names(model) if targets == "all-linear" else targets
            chosen = list(range(self.layers[0], min(self.layers[1], len(model.layers) - 1) + 1))
        return LoraConfig(
            task_type="SEQ_CLS" if model.head_kind == "class" else "CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides it, any number will do
            lora_dropout=self.dropout,
            target_modules=targets,
            layers_to_transform=chosen,
            use_rslora=self.rslora,
            init_lora_weights="gaussian" if self.init == "gaussian" else True,
        )

    def edit(self, model: Any) -> Any:
        """Freeze the model and put adapters beside its linear layers. Raises RecipeError when no layer matches."""
        if model.peft is not None:
            raise RecipeError("`lora` needs a model without an adapter, and this one has one", fix="open the merged model")
        if self.layers is not None and self.layers[0] >= len(model.layers):
            raise RecipeError(f"`lora.layers` begins at {self.layers[0]}, but the model has {len(model.layers)} blocks")
        try:
            model.peft = get_peft_model(model.pretrained, self.config(model))
        except ValueError as error:
            raise self._no_target(model) from error
        self._layers = len(lora_layers(model.pretrained))
        if self._layers == 0:
            raise self._no_target(model)
        install_lean_layers(model.pretrained)
        return model

    def _no_target(self, model: Any) -> RecipeError:
        names = ", ".join(f"`{name}`" for name in linear_names(model))
        return RecipeError(
            f"`lora.targets` {self.targets} matches no linear layer", why=f"this model has {names}", fix="use those"
        )

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of the frozen weights."""
        self._base = checksums(self._frozen(model))

    @staticmethod
    def _frozen(model: Any) -> dict[str, Tensor]:
        named = model.parameters_by_name().items()
        return {name: p for name, p in named if "lora_" not in name and "modules_to_save" not in name}

    def finish(self, model: Any) -> Any:
        """Compare the base with its checksums, then merge and take the adapter layers out again."""
        self._changed = differing(self._base, self._frozen(model))
        layers = lora_layers(model.pretrained)
        self._moved = total_norm(layer.lora_B[ADAPTER].weight for layer in layers.values())
        if self.merge:
            model.merged_adapter = MergedAdapter.of(model.peft)
            for layer in layers.values():
                merge_in_float32(layer)
            model.pretrained = model.peft.unload()
            model.peft = None
        return model

    def state(self) -> dict[str, Any]:
        """The base's checksums from before step 1."""
        return {"base": dict(self._base)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the checksums."""
        self._base = dict(state["base"])

    def effect(self) -> Effect:
        """Norm of all B matrices (zero at the start); holds when it moved and the base is bit-equal."""
        passed = bool(self._base) and not self._changed and self._moved > 0 and math.isfinite(self._moved)
        same = f"base changed: {', '.join(self._changed[:3])}" if self._changed else f"{len(self._base)} base tensors bit-equal"
        return Effect(self.use, "the adapter moved and the base did not", self._moved, passed, f"{self._layers} layers; {same}")
