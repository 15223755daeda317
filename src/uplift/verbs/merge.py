"""``uplift merge``: combine saved adapters into one, or add them to a model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uplift.core.errors import ModelError, UsageError
from uplift.core.storage import commit_directory
from uplift.learn.parallel import pick_device
from uplift.model.adapters import (
    Method,
    SavedWeights,
    combine_adapters,
    find_adapter,
    fold_adapter,
    load_adapters,
    task_type,
)
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model, resolve_model

Into = Literal["auto", "adapter", "model"]


@dataclass(frozen=True)
class Merged:
    """What was written, and where. ``adapters``: their folders in the order of ``weights``."""

    path: Path
    kind: Literal["adapter", "model"]
    adapters: tuple[Path, ...]
    weights: tuple[float, ...]
    method: str


def merge(
    model: str,
    adapters: Sequence[str],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    method: Method = "cat",
    rank: int | None = None,
    into: Into = "auto",
    device: str = "auto",
) -> Merged:
    """Combine adapters of one model into ``output``, in float32.

    ``model``: the original model the adapters were trained on. ``adapters``: folders of adapters or of runs. ``weights``: the
    share of each (default: 1 for one, equal shares that sum to 1 for several). ``into``: ``adapter`` writes one adapter,
    ``model`` a model with it in its weights; ``auto``: a model from one adapter, an adapter from several.
    Raises UsageError, ModelError, ResourceError.
    """
    shares = _shares(len(adapters), weights)
    if rank is not None and method != "svd":
        raise UsageError("a rank can be chosen for `svd` only", fix="use `--method svd`, or leave `--rank` out")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"`{output}` exists", fix="give a new folder")
    folders = [find_adapter(Path(adapter).expanduser()) for adapter in adapters]
    opened = _open(model, folders, device)
    names = {f"adapter_{index}": folder for index, folder in enumerate(folders)}
    load_adapters(opened, names)
    plain = len(names) == 1 and shares == (1.0,)
    name = "adapter_0" if plain else combine_adapters(opened, dict(zip(names, shares, strict=True)), method, rank=rank)
    kind: Literal["adapter", "model"] = into if into != "auto" else "model" if len(names) == 1 else "adapter"
    meta = {"model": opened.identity, "weights": list(shares), "method": method}
    if kind == "model":
        fold_adapter(opened, name)
        commit_directory(output, opened.save, meta)
    else:
        assert opened.peft is not None
        commit_directory(output, SavedWeights.of(opened.peft, name).save, meta)
    return Merged(output, kind, tuple(folders), shares, method)


def _shares(count: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if not count:
        raise UsageError("there is no adapter to merge", fix="name at least one folder with an adapter")
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count:
        raise UsageError(f"{count} adapters and {len(weights)} weights", fix="give one weight per adapter")
    return tuple(weights)


def _open(model: str, folders: Sequence[Path], device: str) -> LanguageModel:
    tasks = {task_type(folder) for folder in folders}
    if len(tasks) > 1:
        raise ModelError("these adapters are for different heads", why=", ".join(sorted(tasks)), fix="merge those of one kind")
    head: Literal["language", "class"] = "class" if tasks == {"SEQ_CLS"} else "language"
    return open_model(resolve_model(model), head=head, base_dir=Path(), device=pick_device(device), seed=0)
