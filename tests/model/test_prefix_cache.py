"""Cached outputs of frozen layers: the same training, the same bits in any order, bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from uplift.core.recipe import HfModel
from uplift.core.values import Batch, Encoded, Progress
from uplift.data.packing import pack
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model
from uplift.model.prefix_cache import PrefixCache
from uplift.testing.tiny import tiny_causal

CPU = torch.device("cpu")


def encoded(lengths: tuple[int, ...], seed: int = 0) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]
    return [Encoded(f"{seed}-{index}", row, [1.0] * len(row)) for index, row in enumerate(rows)]


def batch(items: list[Encoded]) -> Batch:
    return pack(items, device=CPU, progress=Progress(), seed=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tiny_causal(tmp_path / "m", num_hidden_layers=4)


def opened(folder: Path, frozen: int = 2) -> LanguageModel:
    model = open_model(HfModel(id=str(folder)), head="language", base_dir=Path(), device=CPU, seed=0)
    for name, parameter in model.parameters_by_name().items():
        parameter.requires_grad_(model.depth(name) > frozen)
    return model


def loss(model: LanguageModel, row: Batch, cache: PrefixCache | None) -> Tensor:
    if cache is None:
        hidden = model.hidden(model.embed(row.ids), row.positions, row.lengths)
    else:
        hidden = model.hidden(cache.get(row), row.positions, row.lengths, start=cache.depth)
    return torch.nn.functional.cross_entropy(model.logits(hidden)[0], row.targets[0])


def train(model: LanguageModel, batches: list[Batch], cache: PrefixCache | None, epochs: int = 3) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(epochs):
        for row in batches:
            value = loss(model, row, cache)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    return losses


def filled(model: LanguageModel, items: list[Encoded], memory_limit: int | None = None) -> PrefixCache:
    cache = PrefixCache(model, 2, memory_limit=memory_limit)
    assert sum(cache.fill(items)) <= sum(map(len, items))
    return cache


def test_training_with_the_cache_is_training_without(folder):
    sets = [encoded((7, 12, 5), seed) for seed in range(3)]
    batches = [batch(items) for items in sets]
    plain, with_cache = opened(folder), opened(folder)
    cache = filled(with_cache, [item for items in sets for item in items])
    expected, found = train(plain, batches, None), train(with_cache, batches, cache)
    assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) < 1e-5
    for name, parameter in plain.parameters_by_name().items():
        assert torch.allclose(parameter, with_cache.parameters_by_name()[name], atol=1e-5)
    assert (cache.hits, cache.misses, cache.bytes) == (27, 0, 3 * 24 * 32 * 4)


@pytest.mark.parametrize("limit", [None, 0, 30 * 32 * 4])
def test_bits_do_not_depend_on_company_order_or_restart(folder, limit):
    model = opened(folder)
    items = encoded((7, 12, 5, 9, 3, 30))
    first, again = filled(model, items, limit), filled(model, list(reversed(items)), limit)
    whole = first.get(batch(items))
    assert torch.equal(again.get(batch(items)), whole)
    assert torch.equal(torch.cat([again.get(batch([item])) for item in items], dim=1), whole)
    assert not whole.requires_grad
    assert first.bytes <= (66 * 32 * 4 if limit is None else limit)


def test_what_is_not_kept_is_computed_each_time(folder):
    model = opened(folder)
    row = batch(encoded((10, 10, 10)))
    empty, full = PrefixCache(model, 2, memory_limit=0), filled(model, encoded((10, 10, 10)))
    assert torch.allclose(empty.get(row), full.get(row), atol=1e-5)
    assert (empty.hits, empty.misses, empty.bytes) == (0, 3, 0) and (full.hits, full.misses) == (3, 0)


def test_a_sample_twice_is_kept_once(folder):
    model = opened(folder)
    item = encoded((6,))[0]
    cache = filled(model, [item, item])
    hidden = cache.get(batch([item, item]))
    assert torch.equal(hidden[:, :6], hidden[:, 6:]) and cache.bytes == 6 * 32 * 4


def test_keyed_by_content(folder):
    model = opened(folder)
    first, second = encoded((6,), 1), encoded((6,), 2)
    cache = filled(model, first)
    before = cache.get(batch(first))
    same_id = Encoded(first[0].id, second[0].ids, second[0].weights)
    assert not torch.equal(cache.get(batch([same_id])), before) and cache.misses == 1
    other_id = Encoded("another", first[0].ids, first[0].weights)
    assert torch.equal(cache.get(batch([other_id])), before) and cache.hits == 2


def test_training_mode_and_dropout_do_not_matter(folder):
    model = opened(folder)
    for layer in model.layers:
        layer.self_attn.attention_dropout = 0.5
    items = encoded((9, 4))
    expected = filled(model, items).get(batch(items))
    model.train()
    assert torch.equal(filled(model, items).get(batch(items)), expected)
    assert model.pretrained.training
