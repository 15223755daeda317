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


def test_training_with_the_cache_is_training_without(folder):
    batches = [batch(encoded((7, 12, 5), seed)) for seed in range(3)]
    plain, with_cache = opened(folder), opened(folder)
    cache = PrefixCache(with_cache, 2)
    expected, found = train(plain, batches, None), train(with_cache, batches, cache)
    assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) < 1e-5
    for name, parameter in plain.parameters_by_name().items():
        assert torch.allclose(parameter, with_cache.parameters_by_name()[name], atol=1e-5)
    assert cache.misses == 9 and cache.hits == 18 and cache.bytes == 3 * 24 * 32 * 4


def test_hidden_states_do_not_depend_on_company_or_order(folder):
    model = opened(folder)
    items = encoded((7, 12, 5, 9, 3, 30))
    together, apart = PrefixCache(model, 2), PrefixCache(model, 2)
    whole = together.get(batch(items))
    for item in reversed(items):
        apart.get(batch([item]))
    assert apart.misses == 6
    assert torch.equal(apart.get(batch(items)), whole)
    assert torch.equal(torch.cat([together.get(batch([item])) for item in items], dim=1), whole)
    assert not whole.requires_grad


def test_inexact_mode_agrees_to_rounding(folder):
    model = opened(folder)
    row = batch(encoded((7, 12, 5, 9)))
    assert torch.allclose(PrefixCache(model, 2, exact=False).get(row), PrefixCache(model, 2).get(row), atol=1e-5)


def test_grouped_mode_gives_the_same_bits_after_a_restart(folder):
    model = opened(folder)
    items = encoded((7, 12, 5, 9, 3, 30, 8, 8))
    limit = 60 * 32 * 4  # the third batch's new samples no longer fit
    batches = [batch(items[:3]), batch(items[2:5]), batch(items[5:]), batch(items[::-1]), batch(items[1::2])]
    whole = PrefixCache(model, 2, exact=False, memory_limit=limit)
    expected = [whole.get(row) for row in batches]
    for stop in range(len(batches)):
        before = PrefixCache(model, 2, exact=False, memory_limit=limit)
        for row in batches[:stop]:
            before.get(row)
        after = PrefixCache(model, 2, exact=False)
        after.get(batch(items))  # what a start-up check leaves behind must not matter
        after.load_state(before.state())
        if not before.state():
            after.memory_limit = limit
        assert all(torch.equal(after.get(row), value) for row, value in zip(batches[stop:], expected[stop:], strict=True))
        assert after.bytes == whole.bytes <= limit


def test_a_sample_twice_in_a_batch(folder):
    model = opened(folder)
    item = encoded((6,))[0]
    for exact in (True, False):
        cache = PrefixCache(model, 2, exact=exact)
        hidden = cache.get(batch([item, item]))
        assert torch.equal(hidden[:, :6], hidden[:, 6:]) and (cache.hits, cache.misses) == (1, 1)


def test_keyed_by_content(folder):
    model = opened(folder)
    first, second = encoded((6,), 1), encoded((6,), 2)
    cache = PrefixCache(model, 2)
    before = cache.get(batch(first))
    same_id = Encoded(first[0].id, second[0].ids, second[0].weights)
    assert not torch.equal(cache.get(batch([same_id])), before)
    other_id = Encoded("another", first[0].ids, first[0].weights)
    assert torch.equal(cache.get(batch([other_id])), before) and cache.hits == 1


def test_memory_limit_and_half_precision(folder):
    model = opened(folder)
    row = batch(encoded((10, 10, 10)))
    limited = PrefixCache(model, 2, memory_limit=2 * 10 * 32 * 4)
    expected = limited.get(row)
    assert torch.equal(limited.get(row), expected)
    assert limited.bytes == 2 * 10 * 32 * 4 and (limited.hits, limited.misses) == (2, 4)
    half = PrefixCache(model, 2, dtype=torch.float16)
    first = half.get(row)
    assert torch.equal(half.get(row), first) and half.bytes == 3 * 10 * 32 * 2
    assert torch.allclose(first, expected, atol=1e-2) and first.dtype == torch.float32


def test_training_mode_and_dropout_do_not_matter(folder):
    model = opened(folder)
    for layer in model.layers:
        layer.self_attn.attention_dropout = 0.5
    row = batch(encoded((9, 4)))
    expected = PrefixCache(model, 2).get(row)
    model.train()
    assert torch.equal(PrefixCache(model, 2).get(row), expected)
    assert model.pretrained.training
