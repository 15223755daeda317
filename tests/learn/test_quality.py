"""The `quality` step: the score is that of each text alone, limits hold, models that cannot judge are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForSequenceClassification

from uplift.core.errors import RecipeError
from uplift.core.prepare_section import Quality
from uplift.core.recipe import Data, TextTask
from uplift.data.dataset import load_parts
from uplift.learn.quality import QualityFilter, quality_step
from uplift.testing.tiny import tiny_causal, tiny_encoder, tiny_rows, write_rows

TEXTS = [str(row["text"]) for row in tiny_rows("text", 30)]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("causal"))


def scores(step: QualityFilter, texts: list[str]) -> np.ndarray:
    return np.asarray(step.sketch(texts))


def test_the_score_is_nats_per_byte_whatever_stands_beside_the_text(causal: Path) -> None:
    step = quality_step(Quality(model=str(causal), most=9.0), Path())
    together = scores(step, TEXTS)
    alone = np.concatenate([scores(step, [text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    model, tokenizer = step._model, step._model.tokenizer
    ids = torch.tensor([tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = model.pretrained(ids).logits[0].float().log_softmax(-1)
    nll = -logits[:-1].gather(1, ids[0, 1:, None]).sum()
    spelt = len(tokenizer.decode(ids[0, 1:]).encode())
    # The end of the text is predicted too: a little above what the text's own tokens cost, per byte.
    assert float(nll) / spelt <= together[0] < float(nll) / spelt + 10 / spelt


def test_rows_outside_the_limits_go(causal: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in [*TEXTS, "xq zj kv wq ## $$ qq zz"]])
    found = scores(quality_step(Quality(model=str(causal), most=9.0), Path()), TEXTS)
    limit = float(np.median(found))
    data = Data.model_validate({"train": "a.jsonl", "prepare": [{"use": "quality", "model": str(causal), "most": limit}]})
    parts = load_parts(data, TextTask(), tmp_path, "language", quality=quality_step)
    expected = [text for text, score in zip(TEXTS, found, strict=True) if score <= limit]
    assert [sample.text for sample in parts.train][: len(expected)] == expected and len(parts.train) <= len(expected) + 1
    assert {row.rule for row in parts.dropped} == {"too_high"} and "nats per byte, above" in parts.dropped[0].detail


def test_a_classifier_gives_the_probability_of_a_class(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "body")
    config = AutoConfig.from_pretrained(folder, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    AutoModelForSequenceClassification.from_pretrained(folder, config=config).save_pretrained(folder)
    step = quality_step(Quality(model=str(folder), label="good", least=0.0), Path())
    other = quality_step(Quality(model=str(folder), label="bad", least=0.0), Path())
    good, bad = scores(step, TEXTS), scores(other, TEXTS)
    assert np.abs(good + bad - 1).max() < 1e-6
    step.settle([good])
    assert step.judge(0, TEXTS[0]).text == TEXTS[0]
    with pytest.raises(RecipeError, match="the model has no class `fine`"):
        quality_step(Quality(model=str(folder), label="fine", least=0.0), Path())


def test_models_that_cannot_judge_are_refused(causal: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="an encoder gives no perplexity"):
        quality_step(Quality(model=str(tiny_encoder(tmp_path / "encoder")), most=1.0), Path())
    with pytest.raises(RecipeError, match="never trained to tell classes apart"):
        quality_step(Quality(model=str(causal), label="LABEL_0", least=0.5), Path())


def test_a_step_without_limits_is_refused() -> None:
    for limits in ({}, {"least": 2.0, "most": 1.0}):
        with pytest.raises(ValidationError):
            Quality(model="x", **limits)
