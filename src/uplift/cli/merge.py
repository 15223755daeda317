"""``uplift merge MODEL ADAPTER... -o OUT``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from uplift.cli import printing
from uplift.core.errors import UsageError
from uplift.model.adapters import Method
from uplift.verbs.merge import Into, merge


def merge_command(
    model: str,
    /,
    *adapters: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    weights: str | None = None,
    method: Method = "cat",
    rank: PositiveInt | None = None,
    into: Into = "auto",
    json: bool = False,
) -> None:
    """Combine saved adapters of one model, or add them to its weights.

    Parameters
    ----------
    model: str
        The original model the adapters were trained on: a model folder, a GGUF file, a packaged model or a hub id.
    adapters: str
        Folders of adapters, or of runs that trained one.
    output: Path
        A new folder for the result.
    weights: str
        How much of each, such as `0.7,0.3`; default: equal shares that sum to 1.
    method: str
        cat: the exact weighted sum, ranks add up. svd: the best approximation of it at one rank. linear: sums the matrices
        apart, which is rough and needs equal ranks.
    rank: int
        Rank of the result with `svd`; default: the largest of the adapters'.
    into: str
        adapter: write one adapter. model: write the model with it in its weights. auto: a model from one adapter, an adapter
        from several.
    json: bool
        Print JSON.
    """
    merged = merge(model, adapters, output, weights=_numbers(weights), method=method, rank=rank, into=into)
    if json:
        printing.print_json(
            {
                "path": str(merged.path),
                "kind": merged.kind,
                "method": merged.method,
                "adapters": [
                    {"path": str(path), "weight": weight} for path, weight in zip(merged.adapters, merged.weights, strict=True)
                ],
            }
        )
        return
    for path, weight in zip(merged.adapters, merged.weights, strict=True):
        printing.output().print(f"{weight:g} x {path}", markup=False)
    printing.output().print(f"{merged.kind} written to {merged.path}", markup=False)


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"`--weights {text}` is not a list of numbers", fix="write them as `0.5,0.5`") from None
    if not all(math.isfinite(number) and abs(number) <= 100 for number in numbers):
        raise UsageError(f"`--weights {text}`: weights lie between -100 and 100", fix="write them as `0.5,0.5`")
    return numbers
