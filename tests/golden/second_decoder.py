"""What LitGPT's own implementation makes of tiny models whose weights a formula gives: logits, and all gradients in short.

``python -m tests.golden.second_decoder`` records it anew (LitGPT 0.5.13: ``pip install --no-deps litgpt lightning
lightning-utilities torchmetrics`` into an environment of its own). The tests need no LitGPT.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from uplift.core.model_section import BlankModel
from uplift.model.blank import draw, seated
from uplift.model.shape import derive
from uplift.testing.tiny import tiny_tokenizer

FILE = Path(__file__).with_name("second_decoder.json")
WIDTH, LAYERS, HEADS, GROUPS, HEAD, INNER, WORDS = 32, 2, 4, 2, 8, 64, 320
EXPERTS, CHOSEN = 4, 2
FAMILIES = ("llama", "qwen3", "qwen3_moe")
SHOWN = 6
"""Logits of each place that are written down, beside the logarithm of the sum of all."""


def formula(name: str, like: Tensor, scale: float) -> Tensor:
    """Values between -scale and scale that depend on the name and the place alone."""
    start = zlib.crc32(name.encode()) % 1000
    return (
        (scale * torch.sin(torch.arange(like.numel(), dtype=torch.float64) * 0.7371 + start)).to(torch.float32).view(like.shape)
    )


def ours(family: str) -> PreTrainedModel:
    """Our decoder with the formula's weights; norms lie around one."""
    moe = {"experts": EXPERTS, "experts_per_token": CHOSEN} if family == "qwen3_moe" else {}
    content = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "head_dim": HEAD, "kv_heads": GROUPS, "feed_forward": INNER}
    section = BlankModel.model_validate({"shape": family, "tie": False, "context": 64, **content, **moe})
    shape = derive(section, WORDS)
    model = seated(shape, tiny_tokenizer(), "language").to_empty(device="cpu")
    draw(model, shape, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.dim() == 1
            parameter.copy_(formula(name, parameter, 0.2) + (1.0 if norm else 0.0))
    return model.eval()


def ids() -> Tensor:
    """Two rows of tokens."""
    return (torch.arange(22).view(2, 11) * 37 + 5) % 300 + 3


def fingerprint(logits: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is compared: some logits, and of each gradient its norm and its product with the formula's vector."""
    short = torch.cat((logits[..., :SHOWN], logits.logsumexp(-1, keepdim=True)), -1)
    found = {name: [float(one.norm()), float((one * formula(name, one, 1.0)).sum())] for name, one in sorted(gradients.items())}
    return {"logits": short.flatten().tolist(), "gradients": found}


def loss_of(logits: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())


def taken(family: str) -> dict[str, Any]:
    """The fingerprint of our decoder."""
    model = ours(family)
    logits = model(ids()).logits
    loss_of(logits).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return fingerprint(logits.detach(), gradients)


def record() -> None:
    """Ask LitGPT, write ``second_decoder.json``."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts import convert_hf_checkpoint as convert

    results = {}
    for family in FAMILIES:
        moe = family == "qwen3_moe"
        config = Config(
            name=family,
            block_size=64,
            vocab_size=WORDS,
            padded_vocab_size=WORDS,
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            head_size=HEAD,
            n_query_groups=GROUPS,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=ours(family).config.rms_norm_eps,
            norm_qk=family != "llama",
            mlp_class_name="LLaMAMoE" if moe else "LLaMAMLP",
            intermediate_size=INNER,
            moe_intermediate_size=INNER if moe else None,
            n_expert=EXPERTS if moe else 0,
            n_expert_per_token=CHOSEN if moe else 0,
            rope_base=int(ours(family).config.rope_parameters["rope_theta"]),
        )
        weights = {name: value.detach() for name, value in _split(dict(ours(family).named_parameters())).items()}
        copy = convert.copy_weights_hf_llama if family == "llama" else convert.copy_weights_qwen_3
        theirs, state = GPT(config), {}
        gathered: Any = {} if family == "llama" else defaultdict(dict)
        copy(config, gathered, state, weights)
        theirs.load_state_dict(state, strict=True)
        logits = theirs(ids())
        loss_of(logits).backward()
        back = _joined(family, theirs)
        assert back.keys() == dict(ours(family).named_parameters()).keys()
        results[family] = fingerprint(logits.detach(), back)
    FILE.write_text(json.dumps({"litgpt": _version(), "torch": torch.__version__, "families": results}) + "\n")
    sys.stdout.write(f"recorded {', '.join(results)} in {FILE}\n")


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("litgpt")


def _split(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every expert under a name of its own, as published checkpoints have them."""
    found = {}
    for name, value in named.items():
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(value):
                gate, up = both.chunk(2, dim=0)
                stem = name.removesuffix("gate_up_proj") + f"{expert}."
                found |= {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            found |= {name.removesuffix("down_proj") + f"{e}.down_proj.weight": one for e, one in enumerate(value)}
        else:
            found[name] = value
    return found


def _joined(family: str, theirs: nn.Module) -> dict[str, Tensor]:
    """LitGPT's gradients under our names and in our shapes."""
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {
        "model.embed_tokens.weight": grads["transformer.wte.weight"],
        "model.norm.weight": grads["transformer.ln_f.weight"],
        "lm_head.weight": grads["lm_head.weight"],
    }
    for layer in range(LAYERS):
        here, there = f"model.layers.{layer}.", f"transformer.h.{layer}."
        q, k, v = grads[f"{there}attn.qkv.weight"].split([HEADS * HEAD, GROUPS * HEAD, GROUPS * HEAD])
        found |= {f"{here}self_attn.{name}_proj.weight": value for name, value in (("q", q), ("k", k), ("v", v))}
        found[f"{here}self_attn.o_proj.weight"] = grads[f"{there}attn.proj.weight"]
        found[f"{here}input_layernorm.weight"] = grads[f"{there}norm_1.weight"]
        found[f"{here}post_attention_layernorm.weight"] = grads[f"{there}norm_2.weight"]
        if family != "llama":
            found |= {f"{here}self_attn.{name}_norm.weight": grads[f"{there}attn.norm_{name}.weight"] for name in "qk"}
        if family == "qwen3_moe":
            experts = [
                [grads[f"{there}mlp.experts.{e}.{part}.weight"] for part in ("fc_1", "fc_2", "proj")] for e in range(EXPERTS)
            ]
            found[f"{here}mlp.experts.gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in experts])
            found[f"{here}mlp.experts.down_proj"] = torch.stack([down for _, _, down in experts])
            found[f"{here}mlp.gate.weight"] = grads[f"{there}mlp.gate.weight"]
        else:
            names = (("gate_proj", "fc_1"), ("up_proj", "fc_2"), ("down_proj", "proj"))
            found |= {f"{here}mlp.{own}.weight": grads[f"{there}mlp.{other}.weight"] for own, other in names}
    return found


if __name__ == "__main__":
    record()
