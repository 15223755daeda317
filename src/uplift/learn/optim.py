"""Which parameters train, at which rate, with which decay; and the optimizer that owns the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from uplift.core.errors import RecipeError
from uplift.core.recipe import Optimizer
from uplift.core.technique import Technique
from uplift.model.language_model import LanguageModel

AUTO_LR = {"all": 2e-5, "adapter": 2e-4, "head": 1e-3}


@dataclass(frozen=True)
class Settings:
    """What the rules say of one parameter, resolved."""

    trainable: bool
    lr_multiplier: float = 1.0
    weight_decay: float | None = None


def resolve_groups(model: LanguageModel, techniques: Sequence[Technique]) -> dict[str, Settings]:
    """Settings of every parameter: rates multiply, a later decay refines, contradictions on ``trainable`` are refused."""
    parameters = model.parameters_by_name()
    settings = {name: Settings(parameter.requires_grad) for name, parameter in parameters.items()}
    decided: dict[str, tuple[str, bool]] = {}
    for technique in techniques:
        for rule in technique.groups(model):
            unknown = rule.names - settings.keys()
            if unknown:
                raise RecipeError(f"`{technique.use}` names parameters that the model does not have: {sorted(unknown)[:3]}")
            for name in rule.names:
                old, trainable = settings[name], settings[name].trainable
                if rule.trainable is not None:
                    _refuse_contradiction(decided.get(name), technique.use, rule.trainable, name)
                    decided[name] = (technique.use, rule.trainable)
                    trainable = rule.trainable
                decay = old.weight_decay if rule.weight_decay is None else rule.weight_decay
                settings[name] = Settings(
                    trainable, old.lr_multiplier * (1.0 if rule.lr_multiplier is None else rule.lr_multiplier), decay
                )
    return settings


def _refuse_contradiction(earlier: tuple[str, bool] | None, use: str, trainable: bool, name: str) -> None:
    if earlier and earlier[0] != use and earlier[1] != trainable:
        raise RecipeError(
            f"`{earlier[0]}` and `{use}` disagree about training `{name}`",
            why=f"one says trainable={earlier[1]}, the other trainable={trainable}",
            fix="narrow the names of one of the two, or remove it",
        )


def apply_groups(model: LanguageModel, settings: Mapping[str, Settings]) -> dict[str, nn.Parameter]:
    """Set ``requires_grad`` and return the trainable parameters by name. Raises RecipeError when nothing trains."""
    trainable = {}
    for name, parameter in model.parameters_by_name().items():
        parameter.requires_grad_(settings[name].trainable)
        if settings[name].trainable:
            trainable[name] = parameter
    if not trainable:
        raise RecipeError(
            "nothing is left to train", why="every parameter is frozen", fix="free some, or set `train: {steps: 0}`"
        )
    return trainable


def peak_lr(
    asked: float | str,
    model: LanguageModel,
    trainable: Mapping[str, nn.Parameter],
    techniques: Sequence[Technique] = (),
) -> float:
    """The recipe's rate, or the smallest default of a technique, or that of what trains: all weights, adapters, or a head."""
    if not isinstance(asked, str):
        return float(asked)
    own = [technique.default_lr for technique in techniques if technique.default_lr is not None]
    if own:
        return min(own)
    if model.peft is not None:
        return AUTO_LR["adapter"]
    head_alone = all(model.depth(name) > len(model.layers) for name in trainable)
    return AUTO_LR["head" if head_alone else "all"]


def build_adamw(
    trainable: Mapping[str, nn.Parameter], settings: Mapping[str, Settings], optimizer: Optimizer, lr: float
) -> torch.optim.AdamW:
    """AdamW with one group per (rate, decay); matrices decay, vectors (norms, biases) do not unless a rule says so."""
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trainable.items():
        decay = settings[name].weight_decay
        if decay is None:
            decay = optimizer.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((settings[name].lr_multiplier, decay), []).append((name, parameter))
    made = [
        {"params": members, "lr": lr * multiplier, "lr_multiplier": multiplier, "weight_decay": decay}
        for (multiplier, decay), members in groups.items()
    ]
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for p in trainable.values())
    return torch.optim.AdamW(made, lr=lr, betas=(optimizer.betas[0], optimizer.betas[1]), eps=optimizer.eps, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of this step; each group keeps its own multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
