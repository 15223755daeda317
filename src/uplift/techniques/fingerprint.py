"""Exact checksums of tensors, computed where they are: how a technique proves that weights stayed as they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

CHUNK = 2**20
MIXER = 0x9E3779B97F4A7C15 - 2**64
"""2**64 over the golden ratio as a signed 64-bit number: consecutive multiples differ in many bits."""
PRIME = 0x100000001B3


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """A 64-bit number of the bits and their places; a change of any one element changes it for certain.

    Bits are read eight bytes at a time, multiplied by an odd number that depends on the place, and summed modulo 2**64.
    """
    flat = tensor.detach().reshape(-1)
    data = (flat.clone() if flat.storage_offset() else flat).view(torch.uint8)
    whole = len(data) // 8 * 8
    words = [data[:whole].view(torch.int64), data[whole:].to(torch.int64)]
    places = torch.arange(min(CHUNK, whole // 8 + 8), device=data.device).mul_(MIXER).bitwise_or_(1)
    total = 0
    for part in (chunk for bits in words for chunk in bits.split(CHUNK)):
        product = torch.dot(part, places[: len(part)]) if part.device.type == "cpu" else (part * places[: len(part)]).sum()
        total = (total * PRIME + int(product)) % 2**64
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
