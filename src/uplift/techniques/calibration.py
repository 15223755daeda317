"""Looks at a model on a few training rows: what its linear layers are given, and how good it is there.

What pruning, sparsity and post-training quantization share. Rows are training rows, never test rows; they run without
gradients or dropout, in micro-batches, and only sums are kept, so memory does not grow with the rows.

    rows = training_rows(model, corpus, 64, "gptq")          # corpus: remembered in the technique's `samples` seam
    batches = packed_rows(model, rows)
    inputs = linear_inputs(model, batches)                   # all layers at once: {"model.layers.0.mlp.up_proj": Inputs, ...}
    for place, inputs in blockwise_inputs(model, batches, gram=True):
        ...                                                  # change block `place`; the next ones see what it puts out by now

Shapes: T tokens of a packed row, D hidden width, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from uplift.core.errors import RecipeError
from uplift.core.values import Batch, Corpus, Encoded, Progress, Unit
from uplift.data.chat import Encoder
from uplift.data.packing import pack, split_micro
from uplift.data.sampling import spread
from uplift.learn.forward import ForwardPass
from uplift.model.backbone import evaluating

LONGEST = 512
"""Tokens of a row that a measurement reads at most."""
MICRO_TOKENS = 1024
"""Tokens of one forward."""

See = Callable[[str, Tensor, Tensor], None]
"""What a watched module's name, first input (T, I) and output (T, O) are given to."""


# -- rows --------------------------------------------------------------------------------------------------------------
def training_rows(model: Any, corpus: Corpus | None, wanted: int, use: str) -> list[Encoded]:
    """At most ``wanted`` rows of the training ``corpus`` as tokens, at even distances through it, each at most 512 long.

    Raises RecipeError in the name of the technique ``use`` when there are none.
    """
    if corpus is None or not len(corpus):
        raise RecipeError(f"`{use}` has no training rows to measure on", fix="give `data.train` some rows")
    encoder = Encoder(model.tokenizer, min(LONGEST, model.longest or LONGEST), model.kind)
    rows = [encoder.encode(corpus[place]) for place in spread(len(corpus), wanted)]
    return [row for row in rows if len(row)]


def packed_rows(model: Any, rows: Sequence[Encoded]) -> list[Batch]:
    """Micro-batches of whole rows without a padded token: a model that runs padded gets its rows one by one."""
    parts = split_micro(rows, MICRO_TOKENS) if model.layout.packed else [[row] for row in rows]
    return [pack(part, device=model.device, progress=Progress(), seed=0) for part in parts]


@torch.no_grad()
def mean_loss(model: Any, batches: Sequence[Batch]) -> float:
    """The task's mean loss over the rows, in nats per learned token or labelled sample (0 when nothing is learned)."""
    unit: Unit = "samples" if model.head_kind == "class" else "tokens"
    total, count = 0.0, sum(batch.counts[unit] for batch in batches)
    with evaluating(model):
        for batch in batches:
            total += float(ForwardPass(model, batch, model.embed(batch.ids)).losses.cross_entropy)
    return total / count if count else 0.0


# -- linear layers -----------------------------------------------------------------------------------------------------
def block_linears(model: Any, places: Sequence[int] | None = None) -> dict[str, nn.Module]:
    """The linear layers inside the blocks (all, or those at ``places``), first block first, by transformers' names.

    The weight of a layer is ``parameters_by_name()[f"{name}.weight"]``. GPT-2's ``Conv1D`` is one of them (see ``weight_of``).
    """
    layers, paths = model.layers, {id(module): path for path, module in model.pretrained.named_modules()}
    chosen = (layers[place] for place in (range(len(layers)) if places is None else places))
    linears = (module for block in chosen for module in block.modules() if isinstance(module, nn.Linear | Conv1D))
    return {paths[id(module)]: module for module in linears}


def is_turned(linear: nn.Module) -> bool:
    """Whether the layer keeps its weight as (I, O): GPT-2's ``Conv1D``."""
    return isinstance(linear, Conv1D)


def weight_of(linear: nn.Module) -> Tensor:
    """The weight (O, I) of a linear layer, without its graph; writing into it writes into the layer."""
    weight: Tensor = linear.weight.detach()  # type: ignore[operator, union-attr, assignment]
    return weight.T if is_turned(linear) else weight


class Inputs:
    """Sums over everything a linear layer was given: ``count`` tokens x of I inputs, in float64.

    ``squares_I``: sum of x^2; ``absolute_I``: sum of |x|; ``gram_II``: X^T X (the Hessian of the layer's squared error, up to a
    factor), if asked for.
    """

    def __init__(self, width: int, device: torch.device, *, gram: bool = False) -> None:
        self.count = 0
        self.squares_I = torch.zeros(width, dtype=torch.float64, device=device)
        self.absolute_I = torch.zeros_like(self.squares_I)
        self.gram_II = torch.zeros(width, width, dtype=torch.float64, device=device) if gram else None

    def add(self, x_TI: Tensor) -> None:
        """Count these tokens in."""
        x_TI = x_TI.detach().float()
        self.count += len(x_TI)
        self.squares_I += x_TI.square().sum(0)
        self.absolute_I += x_TI.abs().sum(0)
        if self.gram_II is not None:
            self.gram_II += x_TI.T @ x_TI

    @property
    def norm(self) -> Tensor:
        """(I,) L2 norm of each input over all tokens (the ``||X_j||`` of Wanda)."""
        return self.squares_I.sqrt()

    @property
    def mean_absolute(self) -> Tensor:
        """(I,) mean |x| of each input (what AWQ scales by)."""
        return self.absolute_I / max(1, self.count)


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """While it is open, ``see(name, input, output)`` is called at every forward of each module."""

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            given = arguments[0] if arguments else options["hidden_states"]
            put_out = output[0] if isinstance(output, tuple) else output
            see(name, given.detach().flatten(0, -2), put_out.detach().flatten(0, -2))

        return hook

    handles = [module.register_forward_hook(hook_of(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_through(model: Any, batches: Sequence[Batch]) -> None:
    """Run the layers over the rows, without dropout or gradients, for whoever is watching."""
    with evaluating(model.pretrained):
        for batch in batches:
            model.hidden(model.embed(batch.ids), batch.positions, batch.lengths)


def _collector(linears: Mapping[str, nn.Module], gram: bool) -> tuple[dict[str, Inputs], See]:
    weights = {name: weight_of(linear) for name, linear in linears.items()}
    found = {name: Inputs(weight.shape[1], weight.device, gram=gram) for name, weight in weights.items()}
    return found, lambda name, given, output: found[name].add(given)


def linear_inputs(
    model: Any, batches: Sequence[Batch], linears: Mapping[str, nn.Module] | None = None, *, gram: bool = False
) -> dict[str, Inputs]:
    """What each linear layer of the blocks (or of ``linears``) is given by the model as it is, in one pass over the rows.

    ``gram`` keeps X^T X of all of them at once: I^2 doubles a layer; ``blockwise_inputs`` keeps those of one block.
    """
    linears = block_linears(model) if linears is None else linears
    found, see = _collector(linears, gram)
    with watching(linears, see):
        run_through(model, batches)
    return found


def blockwise_inputs(model: Any, batches: Sequence[Batch], *, gram: bool = False) -> Iterator[tuple[int, dict[str, Inputs]]]:
    """Block after block: (place, what its linear layers are given by the blocks before it as they are by now).

    Change the block before asking for the next one: its new output is what that one then gets. Two forwards of each block in
    all; the hidden states of all rows are kept (T D floats).
    """
    with torch.no_grad():
        states = [model.embed(batch.ids) for batch in batches]
    for place in range(len(model.layers)):
        linears = block_linears(model, [place])
        found, see = _collector(linears, gram)
        with watching(linears, see):
            _outputs(model, batches, states, place)
        yield place, found
        states = _outputs(model, batches, states, place)


def _outputs(model: Any, batches: Sequence[Batch], states: list[Tensor], place: int) -> list[Tensor]:
    """The output of block ``place`` for its inputs ``states``, one (1, T, D) for each batch."""
    pairs = zip(batches, states, strict=True)
    return [model.layer_hidden(s, batch.positions, batch.lengths, place + 1, start=place) for batch, s in pairs]
