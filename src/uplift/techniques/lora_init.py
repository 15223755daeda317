"""How a LoRA adapter starts when the data say how, and how an adapter whose start was taken out of the base becomes plain.

Shapes: N tokens, I input and O output width of a linear layer, R rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from uplift.core.errors import DataError
from uplift.core.values import Batch, Corpus, Encoded, Progress
from uplift.data.chat import Encoder
from uplift.data.packing import pack
from uplift.learn.forward import ForwardPass
from uplift.model.adapters import ADAPTER
from uplift.model.language_model import LanguageModel
from uplift.model.quiet import quiet

Init = Literal["kaiming", "gaussian", "pissa", "olora", "orthogonal", "eva", "lora_ga"]
MUTATING = frozenset({"pissa", "olora", "lora_ga"})
"""These take the adapter's start out of the base weights: without the adapter the model is not the original one."""
FROM_DATA = frozenset({"eva", "lora_ga"})
"""These look at training tokens."""
NONZERO = MUTATING | {"orthogonal"}
"""These start with B other than zero."""
PEFT_NAMES: Mapping[str, bool | str] = {"kaiming": True, "lora_ga": True, "pissa": "pissa_niter_16"}
"""PEFT's word where it differs; LoRA-GA is applied afterwards, once it is known which layers there are."""
ROW_TOKENS, SAMPLE_TOKENS = 1024, 512
EVA_SPREAD = 2.0
"""A layer gets at most this multiple of its rank when EVA shares the ranks out."""
OVERSAMPLING, ITERATIONS = 8, 4

Factors = dict[str, tuple[Tensor, Tensor]]


def lora_layers(root: nn.Module) -> dict[str, Any]:
    """The LoRA layers inside a module, by name."""
    return {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}


def low_rank_update(a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """The change of the weight, ``scale * B A`` (O, I), in float32."""
    return (b_OR.float() @ a_RI.float()) * scale


def factors_of(root: nn.Module) -> Factors:
    """Copies of all (A, B) on the CPU, by layer name."""

    def copy(matrix: nn.Linear) -> Tensor:
        return matrix.weight.detach().cpu().clone()

    return {name: (copy(x.lora_A[ADAPTER]), copy(x.lora_B[ADAPTER])) for name, x in lora_layers(root).items()}


# -- tokens to look at -------------------------------------------------------------------------------------------------
def training_rows(model: LanguageModel, corpus: Corpus, tokens: int) -> list[Batch]:
    """About ``tokens`` tokens of random training samples as packed rows; torch's global generator draws the samples.

    Raises DataError when there is nothing to look at.
    """
    longest = min(SAMPLE_TOKENS, model.longest or SAMPLE_TOKENS)
    encoder = Encoder(model.tokenizer, longest, model.kind)
    rows: list[list[Encoded]] = [[]]
    room, left = ROW_TOKENS, tokens
    for index in torch.randperm(len(corpus), device="cpu").tolist():
        sample = encoder.encode(corpus[index])
        if not len(sample) or left <= 0:
            continue
        if len(sample) > room and rows[-1]:
            rows.append([])
            room = ROW_TOKENS
        rows[-1].append(sample)
        room, left = room - len(sample), left - len(sample)
    if not rows[0]:
        raise DataError("there are no training tokens to start the adapter from", fix="use `init: kaiming`, or add rows")
    return [pack(row, device=model.device, progress=Progress(), seed=index) for index, row in enumerate(rows)]


# -- EVA: the directions in which a layer's inputs vary ----------------------------------------------------------------
def principal_directions(x_NI: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` directions (count, I) in which the rows of x vary most, and their shares (count,) of all variance."""
    centred_NI = x_NI.float() - x_NI.float().mean(0)
    asked = min(count + OVERSAMPLING, *centred_NI.shape)
    _, deviations, v_IK = torch.svd_lowrank(centred_NI, q=asked, niter=ITERATIONS)
    shares = deviations.square() / centred_NI.square().sum()
    return v_IK[:, :count].T.contiguous(), shares[:count]


def share_out(shares: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """How many directions each layer gets when the ``budget`` largest shares of variance are taken."""
    ranked = sorted(((float(s), name) for name, each in shares.items() for s in each), key=lambda pair: -pair[0])
    counts = Counter(name for _, name in ranked[:budget])
    return {name: counts[name] for name in shares}


@torch.no_grad()
def start_from_inputs(model: LanguageModel, rows: list[Batch]) -> None:
    """EVA: A spans the directions in which the layer's inputs vary, and layers that vary more get more of the ranks."""
    layers = lora_layers(model.pretrained)
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Any:
        return lambda module, arguments: inputs[name].append(arguments[0].detach().flatten(0, -2))

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        for row in rows:
            hidden = model.hidden(model.embed(row.ids), row.positions, row.lengths)
            if model.head_kind == "class":
                model.class_logits(hidden, row.lengths)  # poolers have layers too
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, tuple[Tensor, Tensor]] = {}
    previous: tuple[tuple[int, ...], tuple[Tensor, Tensor]] = ((), (torch.empty(0), torch.empty(0)))
    for name, layer in layers.items():
        pieces = inputs.pop(name)
        if not pieces:
            continue
        wanted = min(round(EVA_SPREAD * layer.r[ADAPTER]), layer.in_features, sum(map(len, pieces)) - 1)
        if wanted < 1:
            raise DataError("too few training tokens to start `eva` from", fix="use `init: kaiming`, or add rows")
        same = (*(piece.data_ptr() for piece in pieces), wanted)  # query, key and value read one tensor
        if same != previous[0]:
            previous = (same, principal_directions(torch.cat(pieces), wanted))
        found[name] = previous[1]
    budget = sum(layers[name].r[ADAPTER] for name in found)
    ranks = share_out({name: shares for name, (_, shares) in found.items()}, budget)
    assert model.peft is not None
    directions = {f"base_model.model.{name}": kept[: ranks[name]] for name, (kept, _) in found.items()}
    with quiet():
        initialize_lora_eva_weights(model.peft, eva_state_dict=directions)


# -- LoRA-GA: the directions of the first full gradient ----------------------------------------------------------------
def mean_gradients(model: LanguageModel, rows: list[Batch], weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients of the mean task loss over the rows with respect to (frozen) weights, without those it does not reach."""
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    sums: dict[str, Tensor] = {}
    total = 0.0
    try:
        with torch.enable_grad():
            for row in rows:
                forward = ForwardPass(model, row, model.embed(row.ids))
                total += forward.count
                found = torch.autograd.grad(forward.losses.cross_entropy, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, found, strict=True):
                    if gradient is not None:
                        sums[name] = gradient if name not in sums else sums[name].add_(gradient)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    if total == 0:
        raise DataError("the training tokens that `lora_ga` looked at teach nothing", fix="raise `init_tokens`")
    return {name: gradient.div_(total) for name, gradient in sums.items()}


def start_from_gradient(model: LanguageModel, rows: list[Batch]) -> None:
    """LoRA-GA: A and B span the main directions of the full gradient, and the base gives up their product."""
    layers = lora_layers(model.pretrained)
    gradients = mean_gradients(model, rows, {name: layer.get_base_layer().weight for name, layer in layers.items()})
    for name, layer in layers.items():
        if name in gradients:
            layer.get_base_layer()._peft_loraga_grad = gradients.pop(name)
            with torch.no_grad():
                layer.lora_ga_init(ADAPTER, LoraGAConfig())


# -- back to a plain adapter -------------------------------------------------------------------------------------------
@torch.no_grad()
def _give_back(layer: Any, start_a_RI: Tensor, start_b_OR: Tensor) -> None:
    """``W' + s B A = (W' + s B0 A0) + s [B, -B0] [A; A0]``: the base as it was, and an adapter of twice the rank."""
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    start_a, start_b = start_a_RI.to(a.weight), start_b_OR.to(b.weight)
    base = layer.get_base_layer().weight
    taken = low_rank_update(start_a, start_b, layer.scaling[ADAPTER])
    base.copy_((base.float() + (taken.T if layer.fan_in_fan_out else taken)).to(base.dtype))
    a.weight = nn.Parameter(torch.cat([a.weight, start_a]), requires_grad=False)
    b.weight = nn.Parameter(torch.cat([b.weight, -start_b], dim=1), requires_grad=False)
    layer.r[ADAPTER] = a.out_features = b.in_features = len(a.weight)
    layer.lora_alpha[ADAPTER] = layer.scaling[ADAPTER] * layer.r[ADAPTER]
    layer.use_rslora[ADAPTER] = False


def make_plain(peft: PeftModel, start: Factors) -> None:
    """Turn a trained adapter with a mutating start into plain LoRA over the original weights; the outputs stay.

    The weights come back up to a rounding of their last bit.
    """
    layers = lora_layers(peft.get_base_model())
    for name, (a, b) in start.items():
        _give_back(layers[name], a, b)
    sizes = {name: (layer.r[ADAPTER], layer.lora_alpha[ADAPTER]) for name, layer in layers.items()}
    rank, alpha = Counter(sizes.values()).most_common(1)[0][0]
    config = peft.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig)
    config.r, config.lora_alpha, config.use_rslora = rank, alpha, False
    config.rank_pattern = {name: r for name, (r, _) in sizes.items() if r != rank}
    config.alpha_pattern = {name: value for name, (_, value) in sizes.items() if value != alpha}
