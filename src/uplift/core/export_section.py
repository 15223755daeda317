"""`export:` of a recipe: files for other runtimes, made from the finished model and compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from uplift.core.section import Section
from uplift.core.wording import nearest

Format = Literal["gguf", "onnx", "executorch", "torch"]
Past = Literal["refuse", "warn"]
TYPES: Mapping[Format, tuple[str, ...]] = {
    "gguf": ("f32", "f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0"),
    "onnx": ("f32", "int8", "int8_weights", "int4_weights"),
    "executorch": ("f32",),
    "torch": ("f32",),
}
"""How each format can keep numbers."""


class Export(Section):
    """A file for another runtime. It is opened there and compared with the model on the recipe's test rows."""

    to: Format
    """gguf: llama.cpp. onnx: onnxruntime. executorch: phones and boards. torch: a torch.export program."""
    type: str = "f32"
    """How numbers are kept. gguf: f32, f16, q8_0, q6_k, q5_k_m, q5_0, q4_k_m, q4_0. onnx: f32, int8 for encoders, int8_weights
    and int4_weights for decoders. Others: f32."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Most test rows to compare on."""
    past_tolerance: Past = "refuse"
    """A file that differs too much: refuse keeps nothing and ends with an error, warn keeps it and says so."""

    @model_validator(mode="after")
    def _format_has_the_type(self) -> Self:
        if self.type not in TYPES[self.to]:
            raise ValueError(f"{self.to} files have no type `{self.type}`: {nearest(self.type, TYPES[self.to])}")
        return self

    @property
    def name(self) -> str:
        """``gguf-q8_0``: the folder it is written to."""
        return f"{self.to}-{self.type}"
