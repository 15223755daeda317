"""Bottleneck adapters: a narrow two-layer network beside the attention or the feed-forward part of every block.

They hold an activation and so cannot go into the weights: they stay in the model and are saved beside it, in a folder of
their own (``bottleneck/``: settings as JSON, tensors as safetensors), while ``model.safetensors`` keeps the plain base.
Shapes: N rows, D hidden width, R width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from uplift.core.errors import ModelError, Place
from uplift.core.storage import write_atomically
from uplift.model.files import check_safetensors, read_json

FOLDER = "bottleneck"
"""Folder of the adapters inside a saved model."""
SETTINGS, TENSORS = "bottleneck.json", "bottleneck.safetensors"
PART = "bottleneck"
"""What the names of the adapters' parameters have in them, between dots."""

Activation = Literal["relu", "gelu", "silu", "tanh"]
Sublayer = Literal["attention", "mlp"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class Spot(BaseModel):
    """Where one adapter sits: paths of the first and last linear layer of a part of a block."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    entry: Annotated[str, Field(max_length=500)]
    exit: Annotated[str, Field(max_length=500)]


class Bottlenecks(BaseModel):
    """Everything that must be known to put the adapters back: their shape and their places."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    width: Annotated[int, Field(ge=1, le=65_536)]
    activation: Activation
    placement: Literal["serial", "parallel"]
    scale: Annotated[float, Field(ge=0, le=1000)]
    spots: Annotated[list[Spot], Field(min_length=1, max_length=10_000)]


class Bottleneck(nn.Module):
    """``scale * U act(V x)`` of rows x (N, D); U (D, R) starts at zero, so nothing changes at first."""

    def __init__(self, features: int, settings: Bottlenecks) -> None:
        super().__init__()
        self.down = nn.Linear(features, settings.width)
        self.up = nn.Linear(settings.width, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation, self.scale = settings.activation, settings.scale

    def forward(self, x: Tensor) -> Tensor:
        """What is added, of the same shape as ``x`` (..., D)."""
        added: Tensor = self.up(ACTIVATIONS[self.activation](self.down(x)))
        return added if self.scale == 1.0 else added * self.scale


class _Tap:
    """Carries the input of a part's first layer to its last one, within one forward."""

    def __init__(self) -> None:
        self.held: Tensor | None = None

    def take(self) -> Tensor:
        held, self.held = self.held, None
        assert held is not None, "the last layer of a part ran without its first"
        return held


class _Wrapped(nn.Module):
    """A linear layer with something beside it; looks like the layer to whoever asks for its weight."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = widths(base_layer)

    @property
    def weight(self) -> Any:
        """The base layer's weight."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The base layer's bias."""
        return self.base_layer.bias


class Entry(_Wrapped):
    """First layer of a part: remembers its input for a parallel adapter."""

    def __init__(self, base_layer: nn.Module, tap: _Tap) -> None:
        super().__init__(base_layer)
        self.tap = tap

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output; ``x`` (..., D) is kept until the part's last layer runs."""
        self.tap.held = x
        return self.base_layer(x)  # type: ignore[no-any-return]


class Exit(_Wrapped):
    """Last layer of a part, with the adapter: over its own output (serial), or over the part's input (parallel)."""

    def __init__(self, base_layer: nn.Module, bottleneck: Bottleneck, tap: _Tap | None) -> None:
        super().__init__(base_layer)
        self.bottleneck, self.tap = bottleneck, tap

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output (..., D) plus the adapter's."""
        y: Tensor = self.base_layer(x)
        return y + self.bottleneck(y if self.tap is None else self.tap.take())


# -- where they go -----------------------------------------------------------------------------------------------------
def widths(linear: nn.Module) -> tuple[int, int]:
    """(input, output) width of a linear layer, ``Conv1D`` included."""
    layer: Any = linear
    return (int(layer.nx), int(layer.nf)) if hasattr(layer, "nf") else (int(layer.in_features), int(layer.out_features))


def sublayers(block: nn.Module, features: int) -> dict[Sublayer, tuple[str, str]]:
    """Paths inside a block of the first and last linear layer of its attention and of its feed-forward part.

    Attention is what calls itself so; all other linear layers are the feed-forward part. A part without a layer that reads
    or one that writes the hidden width ``features`` is left out.
    """
    named = dict(block.named_modules())
    attention = next((path for path, m in named.items() if path and "Attention" in type(m).__name__), None)
    parts: dict[Sublayer, list[str]] = {"attention": [], "mlp": []}
    for path, module in named.items():
        if isinstance(module, nn.Linear | Conv1D):
            inside = attention is not None and f"{path}.".startswith(f"{attention}.")
            parts["attention" if inside else "mlp"].append(path)
    found: dict[Sublayer, tuple[str, str]] = {}
    for part, paths in parts.items():
        reading = [path for path in paths if widths(named[path])[0] == features]
        writing = [path for path in paths if widths(named[path])[1] == features]
        if reading and writing:
            found[part] = (reading[0], writing[-1])
    return found


def spots_of(pretrained: nn.Module, layers: Sequence[nn.Module], features: int, parts: Sequence[Sublayer]) -> list[Spot]:
    """The places in every block, by full path. Raises ModelError for a block that lacks one of the ``parts``."""
    roots = {id(module): path for path, module in pretrained.named_modules()}
    spots = []
    for block in layers:
        found = sublayers(block, features)
        for part in parts:
            if part not in found:
                why = "its weights are not in linear layers (a mixture of experts), or its parts have unusual widths"
                fix = "use `lora`, or another `bottleneck.where`"
                raise ModelError(f"the {part} part of {type(block).__name__} has no place for a bottleneck", why=why, fix=fix)
            root = roots[id(block)]
            spots.append(Spot(entry=f"{root}.{found[part][0]}", exit=f"{root}.{found[part][1]}"))
    return spots


# -- in and out --------------------------------------------------------------------------------------------------------
def inject(pretrained: nn.Module, settings: Bottlenecks) -> None:
    """Put fresh adapters at their places, in place. Their first layer draws from torch's global generator."""
    for spot in settings.spots:
        linear = _layer(pretrained, spot.exit)
        tap = _Tap() if settings.placement == "parallel" else None
        if tap is not None:
            _replace(pretrained, spot.entry, Entry(_layer(pretrained, spot.entry), tap))
        like: Any = linear.weight
        bottleneck = Bottleneck(widths(linear)[1], settings).to(like.device, like.dtype)
        _replace(pretrained, spot.exit, Exit(linear, bottleneck, tap))
    pretrained._bottlenecks = settings  # type: ignore[assignment]  # what `save` writes


def bottlenecks(pretrained: nn.Module) -> dict[str, Bottleneck]:
    """The adapters inside a model, by path."""
    return {path: module for path, module in pretrained.named_modules() if isinstance(module, Bottleneck)}


def _layer(pretrained: nn.Module, path: str) -> nn.Module:
    try:
        module = pretrained.get_submodule(path)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear | Conv1D):
        raise ModelError(f"`{path}` is not a linear layer of this model", fix="use the model the adapters were trained on")
    return module


def _replace(pretrained: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(pretrained.get_submodule(parent), name, module)


# -- files -------------------------------------------------------------------------------------------------------------
def save_bottlenecks(pretrained: nn.Module, folder: Path) -> None:
    """Write the adapters of a model into ``folder``; does nothing when it has none."""
    if not bottlenecks(pretrained):
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(pretrained)}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    settings: Any = pretrained._bottlenecks
    write_atomically(folder / SETTINGS, settings.model_dump_json(indent=2) + "\n")


@torch.no_grad()
def load_bottlenecks(pretrained: nn.Module, folder: Path) -> bool:
    """Put the adapters saved in ``folder`` into the model; False when there is no such folder.

    Raises ModelError for files that are not sound or do not fit the model.
    """
    if not folder.is_dir():
        return False
    settings = _settings(folder / SETTINGS)
    if not (folder / TENSORS).is_file():
        raise ModelError(f"{TENSORS} is missing", where=Place(file=str(folder)), fix="get the model again")
    check_safetensors(folder / TENSORS)
    with torch.random.fork_rng(devices=[]):  # the draws are overwritten, and must not move the generator
        inject(pretrained, settings)
    _fill(dict(_tensors(pretrained)), load_file(folder / TENSORS), folder / TENSORS)
    return True


def _tensors(pretrained: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in pretrained.named_parameters() if f".{PART}." in name)


def _settings(path: Path) -> Bottlenecks:
    try:
        return Bottlenecks.model_validate(read_json(path))
    except ValidationError as error:
        why = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        raise ModelError(
            "the adapter's settings are not sound", where=Place(file=str(path)), why=why, fix="get them again"
        ) from None


def _fill(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    fits = own.keys() == saved.keys() and all(own[name].shape == saved[name].shape for name in own)
    if not fits:
        odd = sorted(own.keys() ^ saved.keys())[:3] or [name for name in own if own[name].shape != saved[name].shape][:3]
        raise ModelError("the adapters do not fit the model", where=Place(file=str(path)), why=f"{odd}", fix="use its own base")
    for name, tensor in saved.items():
        own[name].copy_(tensor)
