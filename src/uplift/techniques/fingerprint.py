"""Exact checksums of tensors, computed where they are: how a technique proves that weights stayed as they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 2**20
MIXER = 0x9E3779B97F4A7C15 - 2**64
"""2**64 over the golden ratio as a signed 64-bit number: consecutive multiples differ in many bits."""
PRIME = 0x100000001B3


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """A 64-bit number of the bits and their places; any single changed element changes it for certain.

    Each element's bits are multiplied by an odd number that depends on its place, summed modulo 2**64.
    """
    bits = tensor.detach().reshape(-1).view(BITS[tensor.element_size()])
    places = torch.arange(min(CHUNK, len(bits)), device=bits.device).mul_(MIXER).bitwise_or_(1)
    total = 0
    for begin in range(0, len(bits), CHUNK):
        part = bits[begin : begin + CHUNK].to(torch.int64)
        total = (total * PRIME + int((part * places[: len(part)]).sum())) % 2**64
    return total


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The checksum of every tensor, by name."""
    return {name: checksum(tensor) for name, tensor in tensors.items()}


def differing(before: Mapping[str, int], tensors: Mapping[str, Tensor]) -> list[str]:
    """Names whose bits are no longer those of ``before`` (or that are gone)."""
    return [name for name, value in before.items() if name not in tensors or checksum(tensors[name]) != value]


@torch.no_grad()
def total_norm(tensors: Iterable[Tensor]) -> float:
    """L2 norm of all tensors laid end to end, in float32 or better."""
    squares = [tensor.detach().float().pow(2).sum() for tensor in tensors]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
