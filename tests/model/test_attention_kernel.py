"""The GPU kernel for variable lengths is asked for what the documents mean; on a GPU, that it answers right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uplift.model import attention
from uplift.model.attention import Documents, packed_attention

LENGTHS = (7, 5, 5, 9, 1)
HEADS, GROUPS, WIDTH = 4, 2, 16


class Layer(nn.Module):
    """What attention asks of the module that calls it."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups = causal, HEADS // GROUPS


def states(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, sum(LENGTHS), heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for shape in shapes)
    return query, key, value


def emulated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """``varlen_attn`` by its documentation: (T, heads, width) states, a window of (left, right) neighbours, -1 = all."""
    assert starts_q.dtype == torch.int32 and longest_q >= max(LENGTHS) and enable_gqa
    outputs = []
    for first, last in zip(starts_q.tolist(), starts_q.tolist()[1:], strict=False):
        q, k, v = (x[first:last].transpose(0, 1)[None] for x in (query, key, value))
        distance = torch.arange(last - first)[:, None] - torch.arange(last - first)[None]
        left, right = window_size
        seen = (distance <= left if left >= 0 else distance == distance) & (
            -distance <= right if right >= 0 else distance == distance
        )
        outputs.append(
            nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)[0].transpose(0, 1)
        )
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_is_asked_for_what_the_documents_mean(monkeypatch, causal, window):
    if window and not causal:
        pytest.skip("two-sided windows run padded")
    query, key, value = states()
    options: dict[str, Any] = {"scaling": 0.2, "sliding_window": window}
    expected, _ = packed_attention(Layer(causal), query, key, value, None, documents=Documents(LENGTHS), **options)
    monkeypatch.setattr(attention, "varlen_attn", emulated)
    monkeypatch.setattr(attention, "_kernel_fits", lambda *_: True)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    found, _ = packed_attention(Layer(causal), query, key, value, None, documents=Documents(LENGTHS, starts, 128), **options)
    assert found.shape == (1, sum(LENGTHS), HEADS, WIDTH)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_kernel_is_left_alone_where_it_does_not_fit():
    query, _, _ = states(dtype=torch.bfloat16)
    on_cpu = Documents.of(LENGTHS, torch.device("cpu"))
    assert not attention._kernel_fits(query, on_cpu, 0.0, None)
    starts = torch.zeros(6, dtype=torch.int32)
    assert not attention._kernel_fits(query.float(), Documents(LENGTHS, starts, 128), 0.0, None)
    assert not attention._kernel_fits(query, Documents(LENGTHS, starts, 128), 0.1, None)
    assert not attention._kernel_fits(query, Documents(LENGTHS, starts, 128, prefix=[]), 0.0, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 3])
def test_documents_on_a_gpu(dtype, window):
    gpu = [x.requires_grad_() for x in states("cuda", dtype)]
    cpu = [x.detach().float().cpu().requires_grad_() for x in gpu]
    options: dict[str, Any] = {"scaling": 0.2, "sliding_window": window}
    found, _ = packed_attention(Layer(True), *gpu, None, documents=Documents.of(LENGTHS, torch.device("cuda")), **options)
    expected, _ = packed_attention(Layer(True), *cpu, None, documents=Documents.of(LENGTHS, torch.device("cpu")), **options)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    assert torch.allclose(found.float().cpu(), expected, atol=tolerance)
    found.float().square().sum().backward()
    expected.square().sum().backward()
    for ours, reference in zip(gpu, cpu, strict=True):
        assert torch.allclose(ours.grad.float().cpu(), reference.grad, atol=10 * tolerance)
