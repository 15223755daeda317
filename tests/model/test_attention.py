"""A packed row is exactly its documents, each alone: values and gradients, in train mode, in every layout."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from uplift.model.attention import PACKED, Documents
from uplift.model.backbone import Backbone
from uplift.model.language_model import LanguageModel

LENGTHS = (7, 5, 5, 9, 1)
UNPACKABLE = {"bloom", "gpt_oss", "deberta", "modernbert"}


def alone(model: LanguageModel, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Every document through transformers' own forward, as its user would call it: (1, T, D)."""
    body = model.backbone.module
    return torch.cat([body(input_ids=piece)[0] for piece in torch.split(ids, list(lengths), dim=1)], dim=1)


def packed(model: LanguageModel, ids: Tensor, positions: Tensor, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    return model.hidden(model.embed(ids), positions, lengths)


def gradients(model: LanguageModel, hidden: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed weighted sum of hidden states."""
    model.zero_grad()
    weight = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    (hidden * weight).sum().backward()
    return {name: p.grad.clone() for name, p in model.parameters_by_name().items() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= 2e-5 * scale, name


def test_packed_is_alone_in_train_mode(packable, make_row):
    assert packable.layout.packed and packable.config._attn_implementation == PACKED
    ids, positions = make_row(LENGTHS)
    packable.train()
    expected = alone(packable, ids, LENGTHS)
    found = packed(packable, ids, positions)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert_same(gradients(packable, packed(packable, ids, positions)), gradients(packable, alone(packable, ids, LENGTHS)))


def test_padded_layout_gives_the_same(packable, make_row):
    ids, positions = make_row(LENGTHS)
    packable.train()
    expected = packed(packable, ids, positions)
    grads = gradients(packable, expected)
    packable.layout = replace(packable.layout, packed=False)
    found = packed(packable, ids, positions)
    assert torch.allclose(found, expected.detach(), atol=1e-5, rtol=1e-5)
    assert_same(gradients(packable, found), grads)


@pytest.mark.parametrize("name", sorted(UNPACKABLE))
def test_what_cannot_be_packed_runs_padded_and_right(name, make_model, make_row):
    model = make_model(name)
    assert not model.layout.packed
    ids, positions = make_row(LENGTHS)
    model.train()
    assert torch.allclose(packed(model, ids, positions), alone(model, ids, LENGTHS), atol=1e-5, rtol=1e-5)


def test_one_document_does_not_see_another(make_model, make_row):
    model = make_model("llama")
    ids, positions = make_row(LENGTHS)
    changed = ids.clone()
    changed[0, 7:12] = 3 + (ids[0, 7:12] + 20) % 90
    before, after = packed(model, ids, positions), packed(model, changed, positions)
    same = torch.ones(sum(LENGTHS), dtype=torch.bool)
    same[7:12] = False
    assert torch.equal(before[0, same], after[0, same])
    assert not torch.allclose(before[0, ~same], after[0, ~same])


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4), (1, 1, 1), (9,), (2, 2, 7, 7, 7, 1)])
def test_runs_of_equal_documents(lengths, make_model, make_row):
    for name in ("llama", "bert"):
        model = make_model(name)
        ids, positions = make_row(lengths)
        assert torch.allclose(packed(model, ids, positions, lengths), alone(model, ids, lengths), atol=1e-5, rtol=1e-5)


def test_window_is_honoured(make_model, make_row):
    model = make_model("mistral")
    ids, positions = make_row((12,))
    short = packed(model, ids, positions, (12,))
    for layer in model.layers:
        assert layer.self_attn.config.sliding_window == 4
    model.config.sliding_window = None
    assert not torch.allclose(short, packed(model, ids, positions, (12,)), atol=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "attention"), [("llama", "self_attn"), ("gemma3", "self_attn"), ("gpt2", "attn"), ("bert", "attention")]
)
def test_activation_checkpointing_keeps_documents(name, attention, make_model, make_row):
    model = make_model(name)
    ids, positions = make_row(LENGTHS)
    model.train()
    expected = gradients(model, packed(model, ids, positions))
    model.pretrained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls: list[int] = []
    getattr(model.layers[0], attention).register_forward_hook(lambda *_: calls.append(1))
    assert_same(gradients(model, packed(model, ids, positions)), expected)
    assert len(calls) == 2  # once forward, once again in backward


def test_threads_do_not_mix_documents(make_model, make_row):
    model = make_model("llama")
    cases = [(3, 9, 2), (14,), (1, 1, 12), (6, 8)]
    rows = [make_row(lengths, seed) for seed, lengths in enumerate(cases)]
    expected = [packed(model, *data, lengths).detach() for data, lengths in zip(rows, cases, strict=True)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            with torch.no_grad():
                if not torch.equal(packed(model, *rows[index], cases[index]), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_attention_dropout_is_applied_only_in_training(make_model, make_row):
    model = make_model("llama")
    for layer in model.layers:
        layer.self_attn.attention_dropout = 0.5
    ids, positions = make_row(LENGTHS)
    assert torch.equal(packed(model, ids, positions), packed(model, ids, positions))
    model.train()
    torch.manual_seed(3)
    first = packed(model, ids, positions)
    assert not torch.allclose(first, packed(model, ids, positions))
    torch.manual_seed(3)
    assert torch.equal(first, packed(model, ids, positions))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mixtral", "opt"])
def test_shared_prefix_is_the_whole_text(name, make_model, make_row):
    model = make_model(name)
    prefix_ids, _ = make_row((6,), seed=5)
    prefix = model.prompt_prefix(prefix_ids)
    assert prefix is not None and len(prefix) == len(model.layers)
    ids, positions = make_row(LENGTHS)
    found = model.hidden(model.embed(ids), positions + 6, LENGTHS, prefix=prefix)
    whole = [torch.cat([prefix_ids, piece], dim=1) for piece in torch.split(ids, list(LENGTHS), dim=1)]
    expected = torch.cat([model.backbone.module(input_ids=text)[0][:, 6:] for text in whole], dim=1)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_models_that_cannot_share_a_prefix_say_so(make_model, make_row):
    assert make_model("bloom").prompt_prefix(make_row((6,))[0]) is None
    assert make_model("bert").prompt_prefix(make_row((6,))[0]) is None


def test_documents_need_no_state(make_model):
    documents = Documents.of([3, 2], torch.device("cpu"))
    assert documents.lengths == (3, 2) and documents.offsets is None
    model = make_model("llama")
    assert Backbone(model.pretrained, model.layout).layers is model.backbone.layers
