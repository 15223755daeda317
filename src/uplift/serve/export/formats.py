"""The files a model can be exported to: what writes and runs them, and how far their logits may lie from the original's."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from uplift.core.errors import ResourceError, UsageError
from uplift.core.export_section import TYPES, Format
from uplift.core.wording import nearest

FORMATS: tuple[Format, ...] = get_args(Format)
EXTRA = "pip install 'llm-uplift[export]'"


@dataclass(frozen=True)
class Limits:
    """How far an export may be off before it is refused.

    ``divergence``: mean KL(original || export) in nats per prediction. ``difference``: largest |logit difference|; None for
    coarse types, where correct files have single logits as far off as wrong ones.
    """

    divergence: float
    difference: float | None = None


EXACT = Limits(1e-6, 1e-3)
"""float32 in another runtime: only the order of sums differs."""
HALF = Limits(1e-4, 0.25)
# Rounding costs a small model most: these are three times what llama.cpp's own quantizer costs SmolLM2-135M (docs/export.md).
EIGHT_BITS, SIX_BITS, FIVE_BITS, FOUR_BITS, FOUR_BITS_PLAIN = (Limits(nats) for nats in (0.025, 0.08, 0.35, 0.3, 1.6))


@dataclass(frozen=True)
class Form:
    """One file format. ``write`` and ``run``: packages needed to make and to open it; ``types``: number types it can hold."""

    file: str
    runtime: str
    write: tuple[str, ...]
    run: tuple[str, ...]
    types: Mapping[str, Limits]
    batches: bool
    """Whether its runtime takes several rows of different lengths at once."""


OWN_TYPES = ("f32", "f16", "q8_0")
"""GGUF types that need no llama.cpp to be written."""
FORMS: Mapping[Format, Form] = {
    "gguf": Form(
        file="model.gguf",
        runtime="llama.cpp",
        write=(),
        run=("llama_cpp",),
        types={
            "f32": EXACT,
            "f16": HALF,
            "q8_0": EIGHT_BITS,
            "q6_k": SIX_BITS,
            "q5_k_m": FIVE_BITS,
            "q5_0": FIVE_BITS,
            "q4_k_m": FOUR_BITS,
            "q4_0": FOUR_BITS_PLAIN,
        },
        batches=False,
    ),
    "onnx": Form(
        file="model.onnx",
        runtime="onnxruntime",
        write=("onnx", "onnxscript"),
        run=("onnxruntime",),
        types={"f32": EXACT, "int8": FOUR_BITS, "int8_weights": EIGHT_BITS, "int4_weights": FOUR_BITS_PLAIN},
        batches=True,
    ),
    "executorch": Form(
        file="model.pte",
        runtime="executorch",
        write=("executorch",),
        run=("executorch",),
        types={"f32": EXACT},
        batches=False,
    ),
    "torch": Form(file="model.pt2", runtime="torch.export", write=(), run=(), types={"f32": EXACT}, batches=True),
}


def finer_types(to: Format, number_type: str) -> list[str]:
    """The number types of this format that may be off by less, the coarsest first."""
    types = FORMS[to].types
    finer = [name for name, limits in types.items() if limits.divergence < types[number_type].divergence]
    return sorted(finer, key=lambda name: -types[name].divergence)


def check_type(to: Format, number_type: str) -> None:
    """Raise UsageError when a format cannot hold numbers of this type."""
    if number_type not in TYPES[to]:
        raise UsageError(f"{to} files have no type `{number_type}`", where="--type", fix=nearest(number_type, TYPES[to]))


def check_packages(to: Format, number_type: str, *, gate: bool) -> None:
    """Raise ResourceError when a package is missing that writes the file, or (``gate``) that opens it for the parity gate."""
    form = FORMS[to]
    quantizes = number_type not in OWN_TYPES  # llama.cpp and onnxruntime bring their own quantizers
    needed = [*form.write, *(form.run if gate or quantizes else ())]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return
    only_gate = set(missing) <= set(form.run) and not quantizes
    why = f"{form.runtime} opens the file again and compares its logits with the original's" if only_gate else ""
    fix = f"`{EXTRA}`" + (", or `--without-parity` for a file that nobody has compared" if only_gate else "")
    raise ResourceError(f"exporting to {to} as {number_type} needs {', '.join(missing)}", why=why, fix=fix)
