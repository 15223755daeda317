"""Tiny random models of many architectures, with weights large enough that a leak between documents shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from uplift.model.backbone import settle
from uplift.model.language_model import LanguageModel

LENGTHS = (7, 5, 5, 9, 1)
VOCABULARY = 100
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
HEADED = {**GROUPED, "head_dim": 8}
STILL = {**SHAPE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FROM_ONE = {**STILL, "pad_token_id": 1, "bos_token_id": 0}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": 0.2, "bos_token_id": 1}
GPT |= {"eos_token_id": 2, "pad_token_id": 0}
OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 32}
OPT |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "init_std": 0.2, "dropout": 0.0, "pad_token_id": 0}
DISTIL = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY, "initializer_range": 0.2}
DISTIL |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "max_position_embeddings": 64}

CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "gpt2": lambda: hf.GPT2Config(**GPT, n_positions=64, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0),
    "qwen3": lambda: hf.Qwen3Config(**HEADED),
    "gemma": lambda: hf.GemmaConfig(**HEADED),
    "gemma2": lambda: hf.Gemma2Config(**HEADED, sliding_window=4),
    "gemma3": lambda: hf.Gemma3TextConfig(**HEADED, sliding_window=4, final_logit_softcapping=5.0),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=4),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4),
    "cohere": lambda: hf.CohereConfig(**GROUPED),
    "granite": lambda: hf.GraniteConfig(**GROUPED, logits_scaling=3.0),
    "opt": lambda: hf.OPTConfig(**OPT),
}
PADDED_CAUSAL: dict[str, Callable[[], Any]] = {
    "bloom": lambda: hf.BloomConfig(**{**GPT, "hidden_size": 32}, hidden_dropout=0.0, attention_dropout=0.0),
    "gpt_oss": lambda: hf.GptOssConfig(
        **HEADED, num_local_experts=4, sliding_window=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertConfig(**STILL),
    "roberta": lambda: hf.RobertaConfig(**FROM_ONE),
    "distilbert": lambda: hf.DistilBertConfig(**DISTIL),
    "electra": lambda: hf.ElectraConfig(**STILL, embedding_size=16),
    "albert": lambda: hf.AlbertConfig(**{**STILL, "embedding_size": 16, "classifier_dropout_prob": 0.0}),
}
PADDED_ENCODERS: dict[str, Callable[[], Any]] = {
    "deberta": lambda: hf.DebertaV2Config(**STILL, pooler_dropout=0.0),
    "modernbert": lambda: hf.ModernBertConfig(
        **SHAPE, local_attention=4, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
    ),
}
ALL = {**CAUSAL, **PADDED_CAUSAL, **ENCODERS, **PADDED_ENCODERS}


def build(name: str, *, head: str | None = None) -> LanguageModel:
    """A settled model of this architecture, in eval mode, without a tokenizer."""
    torch.manual_seed(0)
    causal = name in CAUSAL or name in PADDED_CAUSAL
    head = head or ("language" if causal else "class")
    config = ALL[name]()
    auto = hf.AutoModelForCausalLM if head == "language" else hf.AutoModelForSequenceClassification
    pretrained = auto.from_config(config).eval()
    kind = "causal" if causal else "encoder"
    return LanguageModel(pretrained, None, settle(pretrained), kind=kind, head_kind=head)  # type: ignore[arg-type]


def row(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids and positions (1, T) of random documents; no special tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (1, sum(lengths)), generator=generator)
    return ids, torch.cat([torch.arange(length) for length in lengths])[None]


@pytest.fixture(params=[*CAUSAL, *ENCODERS])
def packable(request: pytest.FixtureRequest) -> LanguageModel:
    """Each architecture that must run packed."""
    return build(request.param)


@pytest.fixture(params=list(ALL))
def any_model(request: pytest.FixtureRequest) -> LanguageModel:
    """Each architecture."""
    return build(request.param)


@pytest.fixture
def make_model() -> Callable[..., LanguageModel]:
    """``build``."""
    return build


@pytest.fixture
def make_row() -> Callable[..., tuple[Tensor, Tensor]]:
    """``row``."""
    return row
