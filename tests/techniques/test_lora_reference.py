"""The same loss and gradients as plain PEFT over plain transformers, from the same seed, on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from uplift.learn.optim import apply_groups, resolve_groups
from uplift.techniques.adapt.lora import Lora
from uplift.techniques.lean_lora import LeanLinear, LeanLora
from uplift.techniques.lora_init import lora_layers
from uplift.testing.passes import forward_pass, random_batch
from uplift.testing.training import relative_difference

SEED = 11
PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 16.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def reference_gradients(folder: Path, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean loss over the learned tokens, one sample at a time without any packing, and the adapter's gradients."""
    torch.manual_seed(SEED)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**{**PLAIN, **options}))
    move_b(model)
    batch, start = random_batch(), 0
    loss, count = torch.zeros(()), 0.0
    for length in batch.lengths:
        span = slice(start, start + length)
        logits = model(input_ids=batch.ids[:, span]).logits[0]
        weights, targets = batch.weights[0, span], batch.targets[0, span]
        kept = weights > 0
        loss = loss + nn.functional.cross_entropy(logits[kept], targets[kept], reduction="sum")
        count, start = count + float(weights.sum()), start + length
    (loss / count).backward()
    named = {n.removeprefix("base_model.model."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach() / count, named


def move_b(root: nn.Module) -> None:
    """A small B, so that A has a gradient too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(root.named_parameters()):
            if ".lora_B." in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"rslora": True}, {"use_rslora": True}),
        ({"dora": True}, {"use_dora": True}),
        ({"dora": True, "rslora": True}, {"use_dora": True, "use_rslora": True}),
        ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
        ({"init": "pissa"}, {"init_lora_weights": "pissa_niter_16"}),
        ({"init": "olora"}, {"init_lora_weights": "olora"}),
        ({"init": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
        ({"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"up_proj": 3.0}},) * 2,
        ({"targets": ["q_proj", "down_proj"], "layers": [1, 1]},)
        + ({"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_peft(opener, model_folders, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    expected_loss, expected = reference_gradients(model_folders["causal"], **theirs)
    model, batch = opener(), random_batch()
    torch.manual_seed(SEED)
    technique = Lora(**{"rank": 4, **ours})
    technique.edit(model)
    move_b(model.pretrained)
    trainable = apply_groups(model, resolve_groups(model, [technique]))
    forward = forward_pass(model, batch)
    loss = forward.losses.cross_entropy / forward.count
    loss.backward()
    assert abs(float((loss - expected_loss).detach())) <= 1e-6
    assert trainable.keys() == expected.keys()
    assert relative_difference(expected, {name: parameter.grad for name, parameter in trainable.items()}) <= 1e-6


def test_dora_takes_pefts_own_path_and_plain_lora_the_lean_one(opener) -> None:
    for dora in (False, True):
        model = opener()
        Lora(dora=dora).edit(model)
        layers = lora_layers(model.pretrained).values()
        assert all(isinstance(layer, LeanLinear) for layer in layers)
        x = torch.zeros(1, next(iter(layers)).in_features)
        assert (next(iter(layers))._lean_adapter(x) is None) == dora


def test_a_frozen_a_keeps_no_input_for_the_backward_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 32), (48, 32), (4, 32), (48, 4))
    x, w, a, b = (torch.randn(shape, generator=generator) for shape in shapes)
    x.requires_grad_(True), b.requires_grad_(True)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        y = LeanLora.apply(x, w, None, a, b, 2.0)
    assert sorted(saved) == sorted([(64, 4), (48, 32), (4, 32), (48, 4)])
    y.square().sum().backward()
    x2, b2 = x.detach().requires_grad_(True), b.detach().requires_grad_(True)
    (x2 @ w.T + 2.0 * x2 @ a.T @ b2.T).square().sum().backward()
    assert torch.allclose(x.grad, x2.grad, rtol=1e-4, atol=1e-2) and torch.allclose(b.grad, b2.grad, rtol=1e-4, atol=1e-2)
