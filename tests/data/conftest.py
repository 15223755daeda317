"""Tokenizers of the main families, trained in milliseconds, and chat templates of the main styles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from uplift.testing.tiny import CHAT_TEMPLATE, tiny_tokenizer

TEXT = ["hello world this is a test of the tokenizer", "which label fits: positive, negative?", "the film was good."] * 5

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' </s>' }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def byte_level(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>"])
    tokenizer.chat_template = template
    return tokenizer


def metaspace(template: str | None) -> PreTrainedTokenizerFast:
    """In the manner of SentencePiece: texts start with a mark, control tokens are ordinary entries of the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [chr(code) for code in range(33, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def unigram(template: str | None) -> PreTrainedTokenizerFast:
    """A vocabulary in which plain text can reach the control tokens: they are pieces with the best score."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0)] + [(chr(code), -4.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁hello", -1.0), ("\n", -4.0)], unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": lambda: byte_level(CHAT_TEMPLATE),
    "llama3": lambda: byte_level(LLAMA3),
    "thinking": lambda: byte_level(THINKING),
    "no_prompt": lambda: byte_level(NO_PROMPT),
    "llama2": lambda: metaspace(LLAMA2),
    "unigram": lambda: unigram(LLAMA2),
    "plain": lambda: byte_level(None),
}


@pytest.fixture(params=list(FAMILIES))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """One tokenizer of each family with its template."""
    return FAMILIES[request.param]()


@pytest.fixture
def family() -> Callable[[str], PreTrainedTokenizerFast]:
    """A tokenizer by the name of its family."""
    return lambda name: FAMILIES[name]()


@pytest.fixture
def with_template() -> Callable[[str | None], PreTrainedTokenizerFast]:
    """A byte-level tokenizer with any chat template."""
    return byte_level
