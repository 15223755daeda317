from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from uplift.core.storage import file_sha256
from uplift.testing.tiny import merged, tiny_causal, tiny_encoder, tiny_recipe, tiny_rows, tiny_tokenizer


@pytest.mark.parametrize("make", [tiny_causal, tiny_encoder])
def test_a_tiny_model_is_the_same_every_time_and_loads_in_transformers(make, tmp_path: Path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert file_sha256(first / name) == file_sha256(second / name), name
    assert file_sha256(make(tmp_path / "c", seed=1) / "model.safetensors") != file_sha256(first / "model.safetensors")
    loader = AutoModelForCausalLM if make is tiny_causal else AutoModel
    assert sum(p.numel() for p in loader.from_pretrained(first).parameters()) < 60_000


def test_the_tokenizer_speaks_chatml_and_loses_no_text(tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal(tmp_path / "m"))
    turns = [{"role": "user", "content": "naïve 🙂 text"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nnaïve 🙂 text<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>" and len(tokenizer) == 320
    assert tokenizer.decode(tokenizer("naïve 🙂 text").input_ids) == "naïve 🙂 text"
    assert tiny_tokenizer().get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["classify", "chat", "text"])
def test_rows_are_different_from_each_other_and_equal_for_the_same_seed(kind):
    rows = tiny_rows(kind, 200, seed=5)
    assert len({json.dumps(row) for row in rows}) == 200
    assert rows == tiny_rows(kind, 200, seed=5) != tiny_rows(kind, 200, seed=6)


def test_more_rows_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="fewer than"):
        tiny_rows("classify", 10_000)


def test_classification_rows_are_balanced():
    labels = [row["label"] for row in tiny_rows("classify", 100)]
    assert labels.count("positive") == 50


def test_a_tiny_recipe_takes_changes(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, "chat", train={"steps": 2}, techniques=["ema"], seed=3)
    assert recipe.train.steps == 2 and recipe.train.batch_tokens == 256
    assert [technique.use for technique in recipe.techniques] == ["ema"]
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 5}, "d": 1}) == {"a": {"b": 5, "c": 2}, "d": 1}
