"""Reads a GGUF header with every count and length held against the file's real size, before a library allocates by it.

Layout (ggml's GGUF specification, versions 2 and 3): magic, version, tensor count, key count, typed key/values, tensor
infos, padding to the alignment, tensor data. Sizes in files have been used to read and write out of bounds (CVE-2026-27940,
CVE-2026-33298, CVE-2026-7482).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from uplift.core.errors import ModelError, Place

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_TENSORS, MAX_KEYS, MAX_ITEMS = 100_000, 10_000, 4_000_000
MAX_NAME, MAX_TEXT = 4096, 16 * 2**20


@dataclass(frozen=True)
class GgufTensor:
    """Name, shape, storage type and place (bytes from the start of the data) of one tensor."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """Scalars and strings of the header (arrays as their lengths), and its tensors."""

    values: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


def check_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF file whose sizes all fit the file. Raises ModelError."""
    try:
        with open(path, "rb") as stream:
            return _Reader(stream, path.stat().st_size).header()
    except FileNotFoundError:
        raise ModelError("there is no such file", where=Place(file=str(path)), fix="check the path") from None
    except (OSError, ValueError, struct.error, KeyError, OverflowError) as error:
        raise ModelError(
            "the file is not sound GGUF", where=Place(file=str(path)), why=str(error), fix="get the file again"
        ) from None


class _Reader:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size

    def header(self) -> GgufHeader:
        magic, version, tensors, keys = struct.unpack("<4sIQQ", self._bytes(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it does not start as GGUF version 2 or 3 (magic {magic!r}, version {version})")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise ValueError(f"{tensors} tensors and {keys} keys are too many")
        values = {}
        for _ in range(keys):
            name = self._text(MAX_NAME)
            values[name] = self._value(self._scalar("<I"), nested=False)
        found = [self._tensor() for _ in range(tensors)]
        self._judge(found, int(values.get("general.alignment", 32)))
        return GgufHeader(values, tuple(found))

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.stream.tell():
            raise ValueError(f"at byte {self.stream.tell()} it asks for {count} bytes; the file has {self.size}")
        return self.stream.read(count)

    def _scalar(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _text(self, limit: int) -> str:
        length = self._scalar("<Q")
        if length > limit:
            raise ValueError(f"a text of {length} bytes is too long")
        return self._bytes(length).decode("utf-8", errors="replace")

    def _value(self, kind: int, nested: bool) -> Any:
        if kind == STRING:
            return self._text(MAX_TEXT)
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        inner, count = self._scalar("<I"), self._scalar("<Q")
        if nested or inner == ARRAY or count > MAX_ITEMS:
            raise ValueError(f"an array of {count} items of type {inner} is not accepted")
        if inner == STRING:
            for _ in range(count):
                self._bytes(min(self._scalar("<Q"), self.size))
        else:
            self._bytes(count * struct.calcsize(SCALARS[inner]))
        return count

    def _tensor(self) -> GgufTensor:
        name, dimensions = self._text(MAX_NAME), self._scalar("<I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"tensor {name[:80]} has {dimensions} dimensions")
        shape = tuple(self._scalar("<Q") for _ in range(dimensions))
        kind, offset = GGMLQuantizationType(self._scalar("<I")), self._scalar("<Q")
        block, block_size = GGML_QUANT_SIZES[kind]
        if any(not 0 < size < 2**40 for size in shape) or shape[0] % block:
            raise ValueError(f"tensor {name[:80]} has an impossible shape {shape}")
        return GgufTensor(name, shape, kind.name, offset, prod(shape) // block * block_size)

    def _judge(self, tensors: list[GgufTensor], alignment: int) -> None:
        if alignment <= 0 or alignment & (alignment - 1) or alignment > 2**20:
            raise ValueError(f"alignment {alignment} is not accepted")
        start = -(-self.stream.tell() // alignment) * alignment
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end or tensor.offset % alignment:
                raise ValueError(f"tensor {tensor.name[:80]} overlaps another or is not aligned")
            end = tensor.offset + tensor.size
            if start + end > self.size:
                raise ValueError(f"tensor {tensor.name[:80]} ends at byte {start + end}; the file has {self.size}")
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError("two tensors have one name")
