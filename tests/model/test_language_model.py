"""The seam gives what transformers gives; layers can be skipped, stopped at, counted; saving is plain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from uplift.core.errors import ModelError
from uplift.core.recipe import HfModel
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model
from uplift.testing.tiny import tiny_causal, tiny_encoder

LENGTHS = (7, 5, 5, 9, 1)
CPU = torch.device("cpu")


def opened(folder: Path, head: str = "language", labels: tuple[str, ...] = (), seed: int = 0) -> LanguageModel:
    return open_model(HfModel(id=str(folder)), head=head, labels=labels, base_dir=Path(), device=CPU, seed=seed)  # type: ignore[arg-type]


def test_own_logits_are_transformers_logits(any_model, make_row):
    ids, positions = make_row(LENGTHS)
    pieces = torch.split(ids, list(LENGTHS), dim=1)
    with torch.no_grad():
        hidden = any_model.hidden(any_model.embed(ids), positions, LENGTHS)
        if any_model.head_kind == "class":
            found, expected = (
                any_model.class_logits(hidden, LENGTHS),
                torch.cat([any_model.pretrained(p).logits for p in pieces]),
            )
        else:
            found, expected = any_model.logits(hidden), torch.cat([any_model.pretrained(p).logits for p in pieces], dim=1)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3"])
def test_a_decoder_classifies_by_its_last_token(name, make_model, make_row):
    model = make_model(name, head="class")
    ids, positions = make_row(LENGTHS)
    found = model.class_logits(model.hidden(model.embed(ids), positions, LENGTHS), LENGTHS)
    expected = torch.cat([model.pretrained(piece).logits for piece in torch.split(ids, list(LENGTHS), dim=1)])
    assert found.shape == (len(LENGTHS), 2)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_class_head_gradients_reach_the_embeddings(make_model, make_row):
    model = make_model("bert")
    ids, positions = make_row(LENGTHS)
    model.class_logits(model.hidden(model.embed(ids), positions, LENGTHS), LENGTHS).sum().backward()
    without = {name for name, p in model.parameters_by_name().items() if p.grad is None}
    assert not without


def test_hidden_from_any_layer(any_model, make_row):
    ids, positions = make_row(LENGTHS)
    embeddings = any_model.embed(ids)
    with torch.no_grad():
        whole = any_model.hidden(embeddings, positions, LENGTHS)
        for layer in range(1, len(any_model.layers) + 1):
            if any_model.config.model_type == "albert":
                with pytest.raises(ModelError, match="cannot be skipped"):
                    any_model.hidden(embeddings, positions, LENGTHS, start=layer)
                continue
            below = any_model.layer_hidden(embeddings, positions, LENGTHS, layer)
            assert torch.equal(any_model.hidden(below, positions, LENGTHS, start=layer), whole)
    assert torch.equal(any_model.layer_hidden(embeddings, positions, LENGTHS, 0), embeddings)


def test_skipped_layers_are_not_run_and_come_back(make_model, make_row):
    model = make_model("llama")
    ids, positions = make_row(LENGTHS)
    blocks = list(model.layers)
    ran: list[int] = []
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    below = model.layer_hidden(model.embed(ids), positions, LENGTHS, 2)
    assert ran == [0, 1] and not below.requires_grad
    ran.clear()
    model.hidden(below, positions, LENGTHS, start=2).sum().backward()
    assert ran == [2]
    assert all(a is b for a, b in zip(model.layers, blocks, strict=True))
    assert {model.depth(n) for n, p in model.parameters_by_name().items() if p.grad is not None} == {3, 4}
    with pytest.raises(ModelError, match="3 layers"):
        model.hidden(below, positions, LENGTHS, start=4)


def test_layer_hidden_uses_no_dropout_and_restores_modes(make_model, make_row):
    model = make_model("bert")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    ids, positions = make_row(LENGTHS)
    expected = model.layer_hidden(model.embed(ids), positions, LENGTHS, 2)
    model.train()
    model.layers[0].eval()
    assert torch.equal(model.layer_hidden(model.embed(ids), positions, LENGTHS, 2), expected)
    assert model.layers[1].training and not model.layers[0].training


def test_depths(any_model):
    layers = len(any_model.layers)
    depths = {name: any_model.depth(name) for name in any_model.parameters_by_name()}
    assert set(depths.values()) == set(range(layers + 2)) - ({layers + 1} - set(depths.values()))
    word = next(
        name for name, p in any_model.parameters_by_name().items() if p is any_model.pretrained.get_input_embeddings().weight
    )
    assert depths[word] == 0
    heads = [name for name in depths if name.startswith(("classifier", "score", "pre_classifier"))]
    assert all(depths[name] == layers + 1 for name in heads)


def test_final_norm_is_above_the_layers(make_model):
    for name, norm in {
        "llama": "model.norm.weight",
        "gpt2": "transformer.ln_f.bias",
        "opt": "model.decoder.final_layer_norm.bias",
    }.items():
        model = make_model(name)
        assert model.depth(norm) == len(model.layers) + 1
    bert = make_model("bert")
    assert bert.depth("bert.embeddings.LayerNorm.weight") == 0 and bert.depth("bert.pooler.dense.bias") == 4


def test_learned_positions_have_a_limit(make_model, make_row):
    for name, limit in {"bert": 64, "roberta": 62, "gpt2": 64, "llama": None}.items():
        model = make_model(name)
        assert model.longest == limit
        if limit:
            ids, positions = make_row((limit,))
            model.hidden(model.embed(ids), positions, (limit,))
            ids, positions = make_row((limit + 1,))
            with pytest.raises(ModelError, match="train.max_length"):
                model.hidden(model.embed(ids), positions, (limit + 1,))


# -- saving ------------------------------------------------------------------------------------------------------------
def test_saved_causal_model_is_plain(tmp_path, make_row):
    model = opened(tiny_causal(tmp_path / "base"))
    with torch.no_grad():
        for parameter in model.parameters_by_name().values():
            parameter.add_(0.01)
    model.save(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids, positions = make_row((9,))
    with torch.no_grad():
        found = model.logits(model.hidden(model.embed(ids), positions, (9,)))
        assert torch.allclose(plain(ids).logits, found, atol=1e-5)
    assert tokenizer.chat_template == model.tokenizer.chat_template
    assert "uplift" not in (tmp_path / "saved" / "config.json").read_text()
    again = opened(tmp_path / "saved")
    assert all(torch.equal(p, again.parameters_by_name()[n]) for n, p in model.parameters_by_name().items())


@pytest.mark.parametrize("maker", [tiny_causal, tiny_encoder])
def test_saved_classifier_is_plain_and_keeps_its_labels(maker, tmp_path, make_row):
    model = opened(maker(tmp_path / "base"), head="class", labels=("bad", "fine", "good"))
    with torch.no_grad():
        for parameter in model.parameters_by_name().values():
            parameter.add_(0.01)
    model.save(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert plain.config.id2label == {0: "bad", 1: "fine", 2: "good"}
    ids, positions = make_row((9, 4))
    with torch.no_grad():
        found = model.class_logits(model.hidden(model.embed(ids), positions, (9, 4)), (9, 4))
        expected = torch.cat([plain(piece).logits for piece in torch.split(ids, [9, 4], dim=1)])
    assert torch.allclose(found, expected, atol=1e-5)
    again = opened(tmp_path / "saved", head="class", labels=("bad", "fine", "good"))
    assert not any("head" in note for note in again.notes)
    assert all(torch.equal(p, again.parameters_by_name()[n]) for n, p in model.parameters_by_name().items())
    assert opened(tmp_path / "saved", head="class").labels == ("bad", "fine", "good")


def lora(model: LanguageModel, **options: object) -> LanguageModel:
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **options)  # type: ignore[arg-type]
    model.peft = get_peft_model(model.pretrained, settings)
    with torch.no_grad():
        for name, parameter in model.parameters_by_name().items():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return model


def test_adapter_is_saved_beside_an_unchanged_base(tmp_path, make_row):
    base = tiny_causal(tmp_path / "base")
    model = lora(opened(base))
    ids, positions = make_row((9, 4))
    tuned = model.logits(model.hidden(model.embed(ids), positions, (9, 4)))
    model.save(tmp_path / "saved")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "saved" / "adapter")
    expected = torch.cat([plain(piece).logits for piece in torch.split(ids, [9, 4], dim=1)], dim=1)
    assert torch.allclose(tuned, expected, atol=1e-5)
    again = opened(tmp_path / "saved")
    assert again.peft is None and "adapter_sha256" in again.identity
    assert all(parameter.requires_grad and "lora" not in name for name, parameter in again.parameters_by_name().items())
    assert torch.allclose(again.logits(again.hidden(again.embed(ids), positions, (9, 4))), tuned, atol=1e-5)


def test_adapter_with_a_trained_head_saves_the_trained_head(tmp_path, make_row):
    model = lora(opened(tiny_causal(tmp_path / "base"), head="class", labels=("a", "b")), task_type="SEQ_CLS")
    with torch.no_grad():
        next(p for n, p in model.parameters_by_name().items() if "score.modules_to_save" in n).normal_(0, 1)
    ids, positions = make_row((9, 4))
    tuned = model.class_logits(model.hidden(model.embed(ids), positions, (9, 4)), (9, 4))
    model.save(tmp_path / "saved")
    again = opened(tmp_path / "saved", head="class", labels=("a", "b"))
    found = again.class_logits(again.hidden(again.embed(ids), positions, (9, 4)), (9, 4))
    assert torch.allclose(found, tuned, atol=1e-5)


def test_peft_names_and_depths(tmp_path):
    model = lora(opened(tiny_causal(tmp_path / "base")))
    names = model.parameters_by_name()
    assert "model.layers.1.self_attn.q_proj.lora_A.default.weight" in names
    assert model.depth("model.layers.1.self_attn.q_proj.lora_A.default.weight") == 2
    assert len(names) == len(list(model.parameters()))


def test_adapter_on_the_language_head_counts(make_model, make_row):
    model = make_model("llama")
    model.peft = get_peft_model(model.pretrained, LoraConfig(r=2, target_modules=["lm_head"]))
    with torch.no_grad():
        model.pretrained.lm_head.lora_B["default"].weight.normal_()
    ids, positions = make_row((5,))
    found = model.logits(model.hidden(model.embed(ids), positions, (5,)))
    assert torch.allclose(found, model.pretrained(ids).logits, atol=1e-5)
    found.sum().backward()
    assert model.pretrained.lm_head.lora_B["default"].weight.grad is not None
