"""The work that every system is given: the model's shape, the documents, their steps, and the arithmetic they need.

Shapes: D hidden width, V vocabulary, L layers, n tokens of a document.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
"""Label of a token that no loss counts."""
DOCUMENTS = 8
"""Documents of one optimizer step."""
ROW = 1024
"""Row length of the peer that packs."""
POOL = 50
"""Steps' worth of documents among which the length-grouped peer may choose (what transformers' sampler looks at)."""
LORA_ALPHA = 16
WARMUP = 2
LINEAR_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model. ``short`` and ``long`` bound the documents' lengths, ``typical`` is their median."""

    name: str
    hidden: int
    layers: int
    heads: int
    groups: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    short: int = 30
    typical: int = 115
    long: int = 400

    def config(self) -> LlamaConfig:
        """transformers' configuration of this shape."""
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=self.tied,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )

    def layer_weights(self) -> int:
        """Weights of one layer's linear maps."""
        key_value = self.hidden * self.groups // self.heads
        return self.hidden * (2 * self.hidden + 2 * key_value + 3 * self.intermediate)

    def lora_weights(self, rank: int) -> int:
        """Weights that LoRA of this rank adds to one layer (all linear maps)."""
        key_value = self.hidden * self.groups // self.heads
        attention = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + key_value)
        return rank * (attention + 3 * (self.hidden + self.intermediate))


SMOLLM2 = Shape("SmolLM2-135M", 576, 30, 9, 3, 1536, 49_152)
SMALL = Shape("llama-124M", 768, 12, 12, 12, 2048, 50_304, typical=400, long=2000)
BILLION = Shape("llama-1B", 2048, 16, 32, 8, 8192, 128_256, typical=400, long=2000)
TINY = Shape("tiny", 64, 2, 4, 2, 128, 320, typical=20, short=8, long=48)
TEN = Shape("llama-10M", 320, 6, 5, 5, 864, 8192, short=512, typical=512, long=512)
THIRTY = Shape("llama-30M", 512, 8, 8, 8, 1376, 8192, short=512, typical=512, long=512)
TEN_SHORT = replace(TEN, short=16, typical=64, long=256)
STUDENT = Shape(
    "llama 12M with SmolLM2's vocabulary", hidden=192, layers=6, heads=6, groups=3, intermediate=512, vocabulary=49152
)
TINY_BLOCKS = replace(TINY, short=32, typical=32, long=32)


@dataclass(frozen=True)
class Work:
    """One kind of training. ``rank``: LoRA on all linear layers (None: all weights train). ``batch``: documents a step.

    ``frozen``: so many layers from below, embeddings and the tied head do not train, and every document was seen once before.
    ``pretrain``: every token is learned, not only those of a document's second half. ``teacher``: its shape, when the loss is
    the divergence from its predictions; the documents come twice, and the first time is not counted.
    """

    name: str
    shape: Shape
    rank: int | None = None
    steps: int = 4
    batch: int = DOCUMENTS
    seed: int = 0
    threads: int = 2
    frozen: int = 0
    pretrain: bool = False
    teacher: Shape | None = None

    @property
    def turns(self) -> int:
        """Optimizer steps taken, those of the warm-up included."""
        return self.steps if self.teacher is None else 2 * self.steps

    @property
    def warmup(self) -> int:
        """Steps that are not counted: the allocator needs two to have all its memory, a teacher's answers are new once."""
        return WARMUP if self.teacher is None else self.steps

    @property
    def lr(self) -> float:
        """A constant learning rate, the same for all systems."""
        return 3e-4 if self.pretrain else 2e-5 if self.rank is None else 2e-4

    @property
    def blocks(self) -> bool:
        """Whether all documents are equally long."""
        return self.shape.short == self.shape.long

    def given(self, document: Sequence[int]) -> int:
        """Leading tokens that are not learned: the first half, or in pretraining the first token, which nothing precedes."""
        return 1 if self.pretrain else len(document) // 2

    def labels(self, document: Sequence[int]) -> list[int]:
        """A document's labels as transformers wants them."""
        given = self.given(document)
        return [IGNORED] * given + list(document[given:])

    def learned(self, documents: Sequence[Sequence[int]]) -> int:
        """Tokens of these documents that are learned."""
        return sum(len(document) - self.given(document) for document in documents)

    def documents(self, steps: int) -> list[list[int]]:
        """Token ids of ``steps`` steps' documents, lengths log-normal within the shape's bounds."""
        rng = random.Random(self.seed)
        return [self._document(rng) for _ in range(steps * self.batch)]

    def _document(self, rng: random.Random) -> list[int]:
        shape = self.shape
        length = round(rng.lognormvariate(0.0, 0.6) * shape.typical)
        return [rng.randrange(2, shape.vocabulary) for _ in range(min(max(length, shape.short), shape.long))]

    def step(self, number: int) -> list[list[int]]:
        """The documents of one step; steps repeat after ``steps``."""
        documents, begin = self.documents(self.steps), number % self.steps * self.batch
        return documents[begin : begin + self.batch]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the record."""
        return asdict(self)


def model_flops(work: Work, documents: Sequence[Sequence[int]]) -> float:
    """FLOPs that the mathematics of one step needs, multiply-adds counted as two, pointwise work not counted.

    Forward 2 per weight and token, the same back to the inputs, the same to each trained weight; the head only where a
    token is learned; causal attention at half of the square. Frozen layers need nothing: their outputs are known.
    """
    shape, tokens = work.shape, sum(map(len, documents))
    learned = work.learned(documents)
    full, layers = work.rank is None, shape.layers - work.frozen
    linear = (6 if full else 4) * layers * shape.layer_weights() * tokens
    head = (6 if full and not work.frozen else 4) * shape.hidden * shape.vocabulary * learned
    attention = 6 * layers * shape.hidden * sum(len(document) ** 2 for document in documents)
    added = 0 if full else 6 * layers * shape.lora_weights(work.rank or 0) * tokens
    return float(linear + head + attention + added)


def build_model(work: Work, shape: Shape | None = None) -> LlamaForCausalLM:
    """The work's model, or one of another ``shape`` and other weights: random, in fp32, the same ones in every process."""
    torch.manual_seed(work.seed if shape is None else work.seed + 1)
    model = LlamaForCausalLM((shape or work.shape).config())
    model.config.use_cache = False
    return model


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A stand-in for a tokenizer: the documents are token ids already, but trainers want to be given one."""
    words = {"<eos>": 0, "<pad>": 1} | {f"w{index}": index for index in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<pad>")
