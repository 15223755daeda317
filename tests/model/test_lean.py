"""Lean blocks: the same outputs and gradients, about half of the memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tests.model.conftest import ALL, LENGTHS, build, row
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from uplift.model import backbone, lean
from uplift.model.language_model import LanguageModel
from uplift.model.lean import forgettable, forgetting, make_lean


def _plain(name: str, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "make_lean", lambda root: 0)
        return build(name)


def _gradients(model: LanguageModel, backwards: int = 1) -> dict[str, Tensor]:
    """Hidden states and all gradients of a smooth function of them, after so many backward passes."""
    ids, positions = row()
    model.zero_grad()
    embeddings = model.embed(ids)
    embeddings.retain_grad()
    hidden = model.hidden(embeddings, positions, LENGTHS)
    for last in range(backwards - 1, -1, -1):
        hidden.sin().sum().backward(retain_graph=last > 0)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert embeddings.grad is not None
    return found | {"hidden": hidden.detach(), "embeddings": embeddings.grad}


@pytest.mark.parametrize("name", sorted(ALL))
def test_lean_blocks_give_the_same_output_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, thin = _plain(name, monkeypatch), build(name)
    assert make_lean(_plain(name, monkeypatch).pretrained) > 0, "no block of this architecture became lean"
    expected, found = _gradients(plain), _gradients(thin)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        scale = value.abs().max().clamp_min(0.1)  # a key bias has gradient 0 but for rounding
        assert (found[key] - value).abs().max() <= 2e-5 * scale, key


def test_every_backward_pass_over_a_kept_graph_is_the_same() -> None:
    model = build("llama")
    once, twice = _gradients(model), _gradients(model, backwards=2)
    for key in once.keys() - {"hidden"}:
        torch.testing.assert_close(twice[key], 2 * once[key], rtol=1e-6, atol=1e-7)


def _kept_bytes(model: LanguageModel) -> int:
    """Activations the graph of one forward keeps alive."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    # `forgetting` is inside and comes first: what it hands back are tensors it could not forget, and those only.
    original = saved_tensors_hooks.__init__
    saved_tensors_hooks.__init__ = lambda self, pack, unpack: original(self, lambda t: _count(pack(t), keep), unpack)  # type: ignore[method-assign]
    try:
        ids, positions = row((16, 16))
        model.hidden(model.embed(ids), positions, (16, 16))
    finally:
        saved_tensors_hooks.__init__ = original  # type: ignore[method-assign]
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in parameters)


def _count(packed: object, keep: object) -> object:
    return keep(packed) if isinstance(packed, Tensor) else packed  # type: ignore[operator]


@pytest.mark.parametrize(("name", "share"), [("llama", 0.6), ("gpt2", 0.6), ("bert", 0.8)])
def test_less_is_kept(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _kept_bytes(build(name)) <= share * _kept_bytes(_plain(name, monkeypatch))


def test_a_tensor_changed_in_place_is_not_forgotten() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(4, 4, requires_grad=True)
    with forgetting():
        made = forgettable(x * 2, lambda: x * 2)
        made.add_(1.0)
        (made @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, (2 * x.detach() + 1).sum(0)[:, None].expand(4, 4))


def test_a_module_that_only_looks_the_part_stays_as_it_is() -> None:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)
            self.act_fn = nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))  # type: ignore[no-any-return]

    class Scaled(nn.Module):
        variance_epsilon = 1e-6

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    root = nn.Sequential(Mlp(), Scaled())
    assert make_lean(root) == 0
    assert type(root[0]) is Mlp
    assert type(root[1]) is Scaled


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_nothing_outlives_the_hidden_states(name: str, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[lean._Cheap]] = []
    made = lean._Cheap.__init__

    def remember(self: lean._Cheap, *arguments: Any) -> None:
        made(self, *arguments)
        alive.append(weakref.ref(self))

    monkeypatch.setattr(lean._Cheap, "__init__", remember)
    model = build(name)
    ids, positions = row()
    hidden = model.hidden(model.embed(ids), positions, LENGTHS)
    assert alive
    if backward:
        hidden.sum().backward()
    del hidden
    assert not [each for each in alive if each() is not None]
