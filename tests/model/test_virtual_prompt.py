"""A virtual prompt gives what prepending it to each document would give, on every architecture that packs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.model.conftest import CAUSAL, LENGTHS
from torch import Tensor

from uplift.core.errors import ModelError
from uplift.model.backbone import cache_of
from uplift.model.language_model import LanguageModel
from uplift.model.virtual_prompt import VirtualPrompt, joined, key_shape, read_virtual_prompt, row_width


def with_tokens(model: LanguageModel, count: int = 6, seed: int = 3) -> LanguageModel:
    """A model with virtual tokens that are embeddings of random words."""
    ids = torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(seed))
    model.virtual = VirtualPrompt("tokens", model.embed(ids)[0].detach().clone())
    return model


def prepended(model: LanguageModel, ids: Tensor) -> Tensor:
    """Each document run alone by transformers with the virtual embeddings in front."""
    rows = model.virtual.rows()[None]
    pieces = [torch.cat([rows, model.embed(piece)], dim=1) for piece in torch.split(ids, list(LENGTHS), dim=1)]
    return torch.cat([model.backbone.module(inputs_embeds=piece)[0][:, rows.shape[1] :] for piece in pieces], dim=1)


@pytest.mark.parametrize("name", CAUSAL)
def test_virtual_tokens_equal_prepended_ones_with_their_gradients(name, make_model, make_row):
    model = with_tokens(make_model(name))
    ids, positions = make_row(LENGTHS)
    found = model.hidden(model.embed(ids), positions, LENGTHS)
    expected = prepended(model, ids)
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-4)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    weights = [model.virtual.embedding, next(model.layers[0].parameters())]
    first, second = (torch.autograd.grad((hidden * pull).sum(), weights) for hidden in (found, expected))
    for a, b in zip(first, second, strict=True):
        assert a.abs().max() > 0
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("name", CAUSAL)
def test_real_prompt_prefix_comes_behind_the_virtual_one(name, make_model, make_row):
    model = with_tokens(make_model(name), 5)
    ids, positions = make_row((9,))
    whole = model.hidden(model.embed(ids), positions, (9,))
    prefix = model.prompt_prefix(ids[:, :4])
    assert prefix is not None and prefix[0][0].shape[2] == 4
    rest = model.hidden(model.embed(ids[:, 4:]), positions[:, 4:], (5,), prefix=prefix)
    assert torch.allclose(rest, whole[:, 4:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_row_equals_its_documents_alone(name, make_model, make_row):
    model = with_tokens(make_model(name))
    ids, positions = make_row(LENGTHS)
    packed = model.hidden(model.embed(ids), positions, LENGTHS)
    pieces = zip(torch.split(ids, list(LENGTHS), dim=1), torch.split(positions, list(LENGTHS), dim=1), LENGTHS, strict=True)
    alone = torch.cat([model.hidden(model.embed(i), p, (n,)) for i, p, n in pieces], dim=1)
    assert torch.allclose(packed, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lower_layers_run_apart_see_the_prompt_too(name, make_model, make_row):
    model = with_tokens(make_model(name))
    ids, positions = make_row(LENGTHS)
    whole = model.hidden(model.embed(ids), positions, LENGTHS)
    middle = model.layer_hidden(model.embed(ids), positions, LENGTHS, 2)
    assert torch.allclose(model.hidden(middle, positions, LENGTHS, start=2), whole, atol=1e-5, rtol=1e-5)


def test_no_virtual_tokens_change_nothing(make_model, make_row):
    model = make_model("llama")
    ids, positions = make_row(LENGTHS)
    before = model.hidden(model.embed(ids), positions, LENGTHS)
    for kind in ("tokens", "keys"):
        heads, _ = key_shape(model.backbone)
        model.virtual = VirtualPrompt(kind, torch.zeros(0, row_width(kind, model.backbone)), heads=heads)
        assert torch.equal(model.hidden(model.embed(ids), positions, LENGTHS), before)
        assert model.virtual_prefix() is None


def test_its_names_and_depth(make_model):
    model = make_model("llama")
    before = set(model.parameters_by_name())
    encoder = torch.nn.Linear(32, 32)
    model.virtual = VirtualPrompt("tokens", torch.randn(2, 32), encoder=encoder)
    added = model.parameters_by_name().keys() - before
    assert added == {"virtual.embedding", "virtual.encoder.weight", "virtual.encoder.bias"}
    assert {model.depth(name) for name in added} == {0}
    rows = model.virtual.rows()
    model.virtual.settle()
    assert torch.equal(model.virtual.rows(), rows) and model.parameters_by_name().keys() - before == {"virtual.embedding"}


def test_positions_left_are_counted(make_model, make_row):
    model = with_tokens(make_model("gpt2"), 60)
    assert model.longest == 4
    ids, positions = make_row((5,))
    with pytest.raises(ModelError) as error:
        model.hidden(model.embed(ids), positions, (5,))
    assert "train.max_length: 4" in str(error.value.fix)
    assert make_model("gpt2").longest == 64


def test_keys_have_the_order_of_peft(make_model):
    model = make_model("llama")
    rows = torch.arange(2 * 3 * 2 * 2 * 8, dtype=torch.float32).view(2, -1)
    pairs = VirtualPrompt("keys", rows, heads=2).key_values(model.backbone)
    view = rows.view(2, 3, 2, 2, 8)
    assert len(pairs) == 3 and pairs[0][0].shape == (1, 2, 2, 8)
    assert torch.equal(pairs[1][0][0, 1, 0], view[0, 1, 0, 1]) and torch.equal(pairs[2][1][0, 0, 1], view[1, 2, 1, 0])


def test_joining_with_nothing(make_model):
    pairs = [(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))]
    assert joined(None, None) is None and joined(pairs, None) is pairs and joined(None, pairs) is pairs
    assert joined(pairs, pairs)[0][0].shape == (1, 2, 6, 4)


@pytest.mark.parametrize("name", ["bert", "bloom"])
def test_models_that_cannot_share_a_prefix_take_none(name, make_model):
    assert row_width("tokens", make_model(name).backbone) == 0 == row_width("keys", make_model(name).backbone)


def test_a_prompt_for_another_model_is_refused(make_model, tmp_path: Path):
    model = with_tokens(make_model("llama"))
    model.virtual.save(tmp_path / "adapter", model.backbone, "CAUSAL_LM")

    for name in ("bert", "bloom"):
        with pytest.raises(ModelError, match="another model"):
            read_virtual_prompt(tmp_path / "adapter", make_model(name).backbone)
    again = read_virtual_prompt(tmp_path / "adapter", make_model("gpt2").backbone)  # the same width
    assert torch.equal(again.rows(), model.virtual.rows()) and not again.embedding.requires_grad


@pytest.mark.parametrize("name", CAUSAL)
def test_virtual_keys_equal_transformers_with_a_filled_cache(name, make_model, make_row):
    model = make_model(name)
    heads, _ = key_shape(model.backbone)
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(6, row_width("keys", model.backbone), generator=generator)
    model.virtual = VirtualPrompt("keys", rows, heads=heads)
    ids, positions = make_row(LENGTHS)
    found = model.hidden(model.embed(ids), positions, LENGTHS)
    expected = []
    for piece in torch.split(ids, list(LENGTHS), dim=1):
        places = torch.arange(6, 6 + piece.shape[1])[None]
        cache = cache_of(model.virtual.key_values(model.backbone))
        expected.append(model.backbone.module(input_ids=piece, position_ids=places, past_key_values=cache)[0])
    assert torch.allclose(found, torch.cat(expected, dim=1), atol=2e-5, rtol=1e-4)
    pull = torch.randn(found.shape, generator=generator)
    pair = (found, torch.cat(expected, dim=1))
    first, second = (torch.autograd.grad((hidden * pull).sum(), model.virtual.embedding)[0] for hidden in pair)
    assert (first - second).norm() <= 1e-5 * second.norm() and second.norm() > 0
