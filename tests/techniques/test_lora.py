from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from uplift.core.errors import RecipeError
from uplift.techniques.adapt.lora import Lora, lora_layers
from uplift.techniques.lean_lora import LeanLinear, LeanLora, install_lean_layers
from uplift.testing.passes import forward_pass, outputs, random_batch, train_steps


def test_the_model_is_unchanged_at_the_start(opener):
    for kind, head in (("causal", "language"), ("causal", "class"), ("encoder", "class")):
        model, batch = opener(kind, head), random_batch()
        before = outputs(model, batch)
        after = outputs(Lora().edit(model), batch)
        assert torch.equal(before, after), (kind, head)


def test_at_the_first_step_only_b_has_a_gradient(opener):
    model, batch = opener(), random_batch()
    Lora().edit(model)
    forward_pass(model, batch).losses.cross_entropy.backward()
    for name, layer in lora_layers(model.pretrained).items():
        assert torch.count_nonzero(layer.lora_A["default"].weight.grad) == 0, name
        assert torch.count_nonzero(layer.lora_B["default"].weight.grad) > 0, name
    assert all(p.grad is None for n, p in model.parameters_by_name().items() if "lora_" not in n)


def test_trainable_count_is_rank_times_widths(opener):
    model = opener()
    Lora(rank=4).edit(model)
    layers = lora_layers(model.pretrained).values()
    expected = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert len(layers) == 14
    assert sum(p.numel() for p in model.parameters_by_name().values() if p.requires_grad) == expected


def test_layer_range_and_targets(opener):
    model = opener()
    Lora(layers=[1, 5]).edit(model)
    assert {name.split(".")[2] for name in lora_layers(model.pretrained)} == {"1"}
    model = opener()
    Lora(targets=["q_proj", "v_proj"]).edit(model)
    assert {name.rpartition(".")[2] for name in lora_layers(model.pretrained)} == {"q_proj", "v_proj"}
    model = opener("encoder", "class")
    Lora(layers=[0, 0]).edit(model)
    assert all(".layer.0." in name for name in lora_layers(model.pretrained))


@pytest.mark.parametrize("options", [{"targets": ["no_such_layer"]}, {"layers": [7, 9]}])
def test_targeting_nothing_is_refused(opener, options):
    with pytest.raises(RecipeError) as error:
        Lora(**options).edit(opener())
    assert "q_proj" in str(error.value) or "2 blocks" in str(error.value)


def test_scale_follows_rslora(opener):
    for rslora, scale in ((False, 16 / 8), (True, 16 / math.sqrt(8))):
        model = opener()
        Lora(rank=8, alpha=16.0, rslora=rslora).edit(model)
        assert {layer.scaling["default"] for layer in lora_layers(model.pretrained).values()} == {scale}


def test_merge_keeps_the_outputs_and_plain_peft_loads_the_adapter(opener, model_folders, tmp_path: Path):
    model, batch = opener(), random_batch()
    technique = Lora()
    technique.edit(model)
    train_steps(model, technique, batch)
    apart = outputs(model, batch)
    merged = technique.finish(model)
    assert technique.effect().passed, technique.effect()
    assert merged.peft is None and not lora_layers(merged.pretrained)
    assert (outputs(merged, batch) - apart).abs().max() < 1e-5
    assert not torch.equal(outputs(opener(), batch), apart)

    (tmp_path / "adapter").mkdir()
    merged.merged_adapter.save(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folders["causal"]), tmp_path / "adapter")
    start = 0
    for length in batch.lengths:
        logits = plain(input_ids=batch.ids[:, start : start + length]).logits
        assert (logits - apart[:, start : start + length]).abs().max() < 1e-5
        start += length


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_class_head_trains_and_loads_in_plain_peft(opener, model_folders, tmp_path: Path, kind: str):
    model, batch = opener(kind, "class"), random_batch()
    technique = Lora()
    technique.edit(model)
    head = [n for n, p in model.parameters_by_name().items() if p.requires_grad and "lora_" not in n]
    assert head and all(n.startswith(("score.modules_to_save", "classifier.modules_to_save")) for n in head)
    train_steps(model, technique, batch)
    apart = outputs(model, batch)
    merged = technique.finish(model)
    assert technique.effect().passed, technique.effect()
    assert (outputs(merged, batch) - apart).abs().max() < 1e-5
    assert not any("modules_to_save" in name for name in merged.parameters_by_name())

    (tmp_path / "adapter").mkdir()
    merged.merged_adapter.save(tmp_path / "adapter")
    base = opener(kind, "class").pretrained  # the same new pooler, if there is one, from the same seed
    base.save_pretrained(tmp_path / "base")
    fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    plain = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    start, rows = 0, []
    for length in batch.lengths:
        rows.append(plain(input_ids=batch.ids[:, start : start + length]).logits)
        start += length
    assert (torch.cat(rows) - apart).abs().max() < 1e-5


def test_merging_is_done_in_float32(opener):
    model = opener()
    technique = Lora(rank=4)
    technique.edit(model)
    model.pretrained.to(torch.bfloat16)
    layer = next(iter(lora_layers(model.pretrained).values()))
    nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    base, a, b = (
        t.detach().double() for t in (layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    )
    exact = base + layer.scaling["default"] * b @ a
    weight = layer.base_layer.weight
    technique.finish(model)
    assert torch.equal(weight.detach(), exact.float().to(torch.bfloat16))


def test_a_changed_base_fails_the_proof(opener):
    model, batch = opener(), random_batch()
    technique = Lora()
    technique.edit(model)
    train_steps(model, technique, batch)
    with torch.no_grad():
        model.parameters_by_name()["model.layers.0.self_attn.q_proj.base_layer.weight"][3, 3] += 1e-6
    technique.finish(model)
    effect = technique.effect()
    assert not effect.passed and "q_proj" in effect.detail


def test_an_adapter_that_did_not_train_fails_the_proof(opener):
    model = opener()
    technique = Lora()
    technique.edit(model)
    technique.begin(model, {})
    technique.finish(model)
    assert not technique.effect().passed


# -- the lean function -------------------------------------------------------------------------------------------------
class TwoLayers(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20, bias=bias), nn.Linear(20, 6, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(bias: bool, lean: bool, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(4)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["first", "second"], lora_dropout=dropout)
    model = get_peft_model(TwoLayers(bias), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    if lean:
        assert install_lean_layers(model) == 2
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_lean_equals_peft_forward_and_backward(bias):
    results = []
    for lean in (False, True):
        model = adapted(bias, lean)
        x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = model(x)
        y.pow(2).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert all((plain - lean).abs().max() < 1e-10 for plain, lean in zip(*results, strict=True))


def test_lean_gradients_pass_a_numeric_check():
    shapes = ((4, 5), (6, 5), (6,), (2, 5), (6, 2))
    generator = torch.Generator().manual_seed(0)
    x, w, bias, a, b = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    for tensor in (x, a, b):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, a, b: LeanLora.apply(x, w, bias, a, b, 1.7), (x, a, b))


def test_lean_under_autocast_is_close_to_peft():
    outputs = []
    for lean in (False, True):
        model = adapted(bias=True, lean=lean).float()
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        y.float().pow(2).sum().backward()
        outputs.append((y.float(), x.grad, y.dtype))
    assert outputs[0][2] == outputs[1][2] == torch.bfloat16
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=0.15, rtol=0.05)
    assert outputs[1][1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(outputs[0][1].flatten(), outputs[1][1].flatten(), dim=0) > 0.99


def test_lean_keeps_only_the_input_and_the_low_rank_product():
    x = torch.randn(64, 32, requires_grad=True)
    w, a, b = torch.randn(48, 32), torch.randn(4, 32, requires_grad=True), torch.randn(48, 4, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        LeanLora.apply(x, w, None, a, b, 2.0)
    assert sorted(saved) == sorted([(64, 32), (64, 4), (48, 32), (4, 32), (48, 4)])


def test_lean_steps_aside():
    x = torch.randn(3, 12, dtype=torch.float64)
    model = adapted(bias=True, lean=True, dropout=0.5)
    layer = next(m for m in model.modules() if isinstance(m, LeanLinear))
    assert isinstance(layer, PeftLinear)
    model.train()
    assert layer._lean_adapter(x) is None
    model.eval()
    assert layer._lean_adapter(x) == "default"
    assert layer._lean_adapter(x.float()) is None
    before = model(x)
    with model.disable_adapter():
        assert layer._lean_adapter(x) is None
        assert not torch.allclose(model(x), before)
    model.merge_adapter()
    assert layer._lean_adapter(x) is None
    assert torch.allclose(model(x), before)
    model.unmerge_adapter()
    layer.base_layer.weight.requires_grad_(True)
    assert layer._lean_adapter(x) is None
