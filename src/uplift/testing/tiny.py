"""Tiny models, tokenizers, rows and recipes for tests: made in seconds, deterministic, nothing fetched.

The causal model has the shape of Llama (rotary positions, grouped queries, tied head), the encoder that of BERT. Both are
saved as plain transformers folders, so a test opens them the way a user's model is opened.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from uplift.core.recipe import Recipe
from uplift.core.storage import write_atomically

Kind = Literal["classify", "chat", "text"]
Row = dict[str, Any]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The ChatML format (the one SmolLM2 and Qwen use), without a default system turn."""

SUBJECTS = ("The film", "This story", "The cast", "Her new song", "The meal", "That hotel", "The game", "His book")
ADVERBS = ("really", "always", "mostly", "clearly", "often", "truly", "simply", "quite")
GOOD = ("wonderful", "charming", "delightful", "brilliant", "warm", "lovely")
BAD = ("terrible", "boring", "dreadful", "awful", "cold", "clumsy")
ENDINGS = ("", " from start to end", " and I told my friends so", ", as everyone in the room could see", " this year")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
THINGS = ("cup", "door", "house", "boat", "lamp", "stone", "chair", "hat")
MOST_MISSES = 2000
"""So many repeated rows in a row mean that there are no new ones."""
PLACES = ("the garden", "the kitchen", "the river", "the old town", "the station", "the hill")


def _sentence(rng: random.Random, positive: bool) -> str:
    words = GOOD if positive else BAD
    return f"{rng.choice(SUBJECTS)} was {rng.choice(ADVERBS)} {rng.choice(words)}{rng.choice(ENDINGS)}."


def _classify_row(rng: random.Random, index: int) -> Row:
    """Sentiment: the adjective decides the label; labels alternate, so every prefix is balanced."""
    positive = index % 2 == 0
    return {"text": _sentence(rng, positive), "label": "positive" if positive else "negative"}


def _chat_row(rng: random.Random, index: int) -> Row:
    """A question whose answer is in it: what colour a thing has."""
    thing, colour, place = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(PLACES)
    question = f"The {thing} near {place} is {colour}. What colour is the {thing}?"
    if index % 3 == 0:
        question = f"{_sentence(rng, index % 2 == 0)} {question}"
    answer = f"The {thing} is {colour}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _text_row(rng: random.Random, index: int) -> Row:
    """One to four plain sentences."""
    parts = [_sentence(rng, rng.random() < 0.5) for _ in range(1 + index % 3)]
    parts.append(f"A {rng.choice(COLOURS)} {rng.choice(THINGS)} stands near {rng.choice(PLACES)}.")
    return {"text": " ".join(parts)}


def tiny_rows(kind: Kind, n: int, seed: int = 0) -> list[Row]:
    """``n`` different rows with structure that a tiny model can learn, the same ones for the same arguments.

    ``classify``: ``text`` and ``label`` (positive, negative); ``chat``: ``messages``; ``text``: ``text``.
    """
    make = {"classify": _classify_row, "chat": _chat_row, "text": _text_row}[kind]
    rng = random.Random(f"{kind}-{seed}")
    rows: dict[str, Row] = {}
    misses = 0
    while len(rows) < n:
        row = make(rng, len(rows))
        text = json.dumps(row, sort_keys=True)
        misses = misses + 1 if text in rows else 0
        rows.setdefault(text, row)
        if misses > MOST_MISSES:
            raise ValueError(f"there are fewer than {n} different {kind} rows")
    return list(rows.values())


@cache
def _sentences() -> tuple[str, ...]:
    """The few hundred built-in sentences on which the tokenizers are trained."""
    rng = random.Random(20)
    plain = [_sentence(rng, index % 2 == 0) for index in range(150)]
    plain += [_text_row(rng, index)["text"] for index in range(100)]
    turns = [message["content"] for index in range(100) for message in _chat_row(rng, index)["messages"]]
    labels = ["positive", "negative", "Which label fits: positive, negative? Answer with the label only."] * 20
    return (*plain, *turns, *labels)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens with the ChatML template; ``<|im_end|>`` ends a text and a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_encoder_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece of about 170 tokens that wraps a text in ``[CLS] ... [SEP]``."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Made by hand: the trainer of WordPiece does not give the same vocabulary twice.
    found = re.findall(r"\w+|[^\w\s]", " ".join(_sentences()).lower())
    words = [word for word, count in Counter(sorted(found)).most_common() if count >= 3 and len(word) > 1][:200]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789").union(*found))
    entries = [*special, *letters, *(f"##{letter}" for letter in letters if letter.isalnum()), *words]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def _decoder_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def tiny_causal(directory: Path, *, seed: int = 0, **config_overrides: Any) -> Path:
    """Save a Llama-shaped model (width 32, 2 layers, 4 heads, 2 key-value heads, ~30k parameters) with its tokenizer.

    ``config_overrides`` are keys of ``LlamaConfig``. Returns the folder.
    """
    tokenizer = tiny_tokenizer()
    settings = _decoder_settings(tokenizer)
    return _save(LlamaForCausalLM, LlamaConfig(**{**settings, **config_overrides}), tokenizer, Path(directory), seed)


def tiny_moe(directory: Path, *, seed: int = 0, **config_overrides: Any) -> Path:
    """Save a Qwen3-MoE-shaped model (as `tiny_causal`, 4 experts in each layer, 2 for a token). Returns the folder.

    ``config_overrides`` are keys of ``Qwen3MoeConfig``.
    """
    tokenizer = tiny_tokenizer()
    experts = {"head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    settings = _decoder_settings(tokenizer) | experts
    return _save(Qwen3MoeForCausalLM, Qwen3MoeConfig(**{**settings, **config_overrides}), tokenizer, Path(directory), seed)


def tiny_encoder(directory: Path, *, seed: int = 0, **config_overrides: Any) -> Path:
    """Save a BERT-shaped encoder (width 32, 2 layers, 4 heads, no dropout) with its tokenizer. Returns the folder.

    ``config_overrides`` are keys of ``BertConfig``.
    """
    tokenizer = tiny_encoder_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _save(BertModel, BertConfig(**{**settings, **config_overrides}), tokenizer, Path(directory), seed)


def _save(kind: Any, config: Any, tokenizer: PreTrainedTokenizerFast, directory: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write ``rows`` as JSON lines. Returns ``path``."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it: mappings merge key by key, everything else replaces."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def tiny_recipe(directory: Path, task: Kind = "classify", *, rows: int = 96, seed: int = 0, **changes: Any) -> Recipe:
    """A recipe that runs in a second or two: its model (``directory/model``) and rows (``rows.jsonl``) are made if missing.

    ``task="classify"`` asks in words; give ``task_options={"head": "classifier"}`` for a classification head. Other
    ``changes`` are recipe keys; mappings such as ``train={"steps": 3}`` merge into the defaults.
    """
    folder = Path(directory)
    if not (folder / "model" / "config.json").exists():
        tiny_causal(folder / "model")
    data = folder / f"{task}-{rows}-{seed}.jsonl"
    if not data.exists():
        write_rows(data, tiny_rows(task, rows, seed))
    base: dict[str, Any] = {
        "name": "tiny",
        "model": {"use": "hf", "id": str(folder / "model")},
        "data": {"train": {"use": "jsonl", "path": str(data)}, "split": {"validation": 0.15, "test": 0.15}},
        "task": {"use": task, **changes.pop("task_options", {})},
        "train": {"steps": 6, "batch_tokens": 256, "max_length": 128, "lr": 1e-3, "evaluate_every": 3},
        "evaluate": {"bootstrap": 100},
        "hardware": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": "off"},
        "output_dir": str(folder / "runs"),
    }
    return Recipe.model_validate(merged(base, changes))


def tiny_wordnet(folder: Path) -> Path:
    """Two nouns that share a meaning, and an adjective with a marker, in WordNet's own format."""
    synset = "{offset} 03 n 03 film 0 movie 0 motion_picture 0 001 @ 00000000 n 0000 | a story on a screen"
    license_ = "  1 This is a comment.\n"
    offset = f"{len(license_):08}"
    write_atomically(folder / "data.noun", license_ + synset.format(offset=offset) + "\n")
    write_atomically(folder / "index.noun", license_ + "".join(f"{w} n 1 1 @ 1 1 {offset}\n" for w in ("film", "movie")))
    write_atomically(folder / "data.adj", license_ + f"{offset} 00 s 02 good 0 fine(p) 0 000 | of quality\n")
    write_atomically(folder / "index.adj", license_ + f"good a 1 0 1 1 {offset}\n")
    for part in ("verb", "adv"):
        write_atomically(folder / f"data.{part}", license_)
        write_atomically(folder / f"index.{part}", license_)
    return folder
