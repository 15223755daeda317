"""Packed rows give the loss and the gradients that padded batches give in plain transformers, in train mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.learn.engines import open_tiny, token_samples
from torch import Tensor

from uplift.core.values import Encoded, Progress
from uplift.data.packing import pack, split_micro
from uplift.learn.learner import Learner
from uplift.model.language_model import LanguageModel


def padded(items: Sequence[Encoded], left: bool) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (N, L) of a padded batch."""
    longest = max(map(len, items))
    ids, mask = torch.zeros(len(items), longest, dtype=torch.long), torch.zeros(len(items), longest, dtype=torch.long)
    for row, item in enumerate(items):
        part = slice(longest - len(item), None) if left else slice(0, len(item))
        ids[row, part], mask[row, part] = torch.tensor(list(item.ids)), 1
    return ids, mask


def padded_loss(model: LanguageModel, items: Sequence[Encoded]) -> Tensor:
    """The weighted sum of losses by plain transformers on a padded batch (right padding)."""
    ids, mask = padded(items, left=False)
    logits = model.pretrained(input_ids=ids, attention_mask=mask).logits
    if model.head_kind == "class":
        return F.cross_entropy(logits, torch.tensor([item.label for item in items]), reduction="sum")
    total = logits.new_zeros(())
    for row, item in enumerate(items):
        nll = F.cross_entropy(logits[row, : len(item) - 1], ids[row, 1 : len(item)], reduction="none")
        total = total + (nll * torch.tensor(list(item.weights[1:]))).sum()
    return total


def gradients(loss: Tensor, model: LanguageModel) -> dict[str, Tensor]:
    """Gradients of all parameters that have one."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.parameters_by_name().items() if p.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Every gradient, relative to the largest of its tensor."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = max(1e-3, float(value.abs().max()))
        assert float((found[name] - value).abs().max()) <= tolerance * scale, name


@pytest.fixture(params=["language", "class"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    return open_tiny(tmp_path / "model", head=request.param).train()


def test_packed_equals_padded_in_loss_and_all_gradients(model: LanguageModel) -> None:
    items = token_samples(9, longest=30)
    batch = pack(items, device="cpu", progress=Progress(), seed=0)
    learner = Learner(model, []).train()
    found = learner(batch)["task"]
    wanted = padded_loss(model, items)
    assert found.sum.item() == pytest.approx(wanted.item(), rel=1e-5)
    counted = 9 if model.head_kind == "class" else sum(sum(item.weights) for item in items)
    assert found.count == pytest.approx(counted)
    assert_close(gradients(learner(batch)["task"].sum, model), gradients(padded_loss(model, items), model), 1e-5)


@pytest.mark.parametrize("micro", [1, 40, 10_000])
def test_any_cut_into_rows_gives_one_sum(model: LanguageModel, micro: int) -> None:
    items = token_samples(9, longest=30)
    learner = Learner(model, []).train()
    total = sum(
        learner(pack(part, device="cpu", progress=Progress(), seed=0))["task"].sum.item() for part in split_micro(items, micro)
    )
    assert total == pytest.approx(padded_loss(model, items).item(), rel=1e-5)


def test_a_sample_does_not_see_its_neighbours(model: LanguageModel) -> None:
    items = token_samples(6)
    changed = [items[0], *token_samples(5, seed=7)]
    rows = [pack(part, device="cpu", progress=Progress(), seed=0) for part in (items, changed)]
    hidden = [model.hidden(model.embed(row.ids), row.positions, row.lengths) for row in rows]
    length = len(items[0])
    torch.testing.assert_close(hidden[0][0, :length], hidden[1][0, :length], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(hidden[0][0, length : length + 4], hidden[1][0, length : length + 4])
