"""The seam gives transformers' own logits, the chunked loss the plain one, and compiled layers what eager ones give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.equivalence.test_packing import assert_close, gradients
from tests.learn.engines import make_engine, open_tiny, token_samples
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from uplift.core.values import Encoded, Progress
from uplift.data.packing import pack
from uplift.learn import linear_loss
from uplift.learn.learner import Learner
from uplift.model.language_model import LanguageModel


def _row(items: list[Encoded]) -> Any:
    return pack(items, device="cpu", progress=Progress(), seed=0)


def _logits(model: LanguageModel, items: list[Encoded]) -> torch.Tensor:
    batch = _row(items)
    hidden = model.hidden(model.embed(batch.ids), batch.positions, batch.lengths)
    return model.class_logits(hidden, batch.lengths) if model.head_kind == "class" else model.logits(hidden)


@torch.no_grad()
def test_language_logits_are_those_of_transformers(tmp_path: Path) -> None:
    model, items = open_tiny(tmp_path / "model"), token_samples(5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    found = torch.split(_logits(model, items)[0], [len(item) for item in items])
    for item, logits in zip(items, found, strict=True):
        torch.testing.assert_close(logits, plain(torch.tensor([item.ids])).logits[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("head", ["language", "class"])
def test_a_trained_model_gives_the_same_logits_in_plain_transformers(tmp_path: Path, head: str) -> None:
    engine = make_engine(tmp_path, head=head, train={"steps": 3})
    with torch.enable_grad():
        engine.train()
    model, items = engine.learner.model.eval(), token_samples(5)
    model.save(tmp_path / "saved")
    kind = AutoModelForSequenceClassification if head == "class" else AutoModelForCausalLM
    plain = kind.from_pretrained(tmp_path / "saved").eval()
    found = _logits(model, items)
    for index, item in enumerate(items):
        begin = sum(map(len, items[:index]))
        own = found[index] if head == "class" else found[0, begin : begin + len(item)]
        torch.testing.assert_close(own, plain(torch.tensor([item.ids])).logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [3, 17, 10_000])
def test_the_chunked_loss_is_the_plain_one_through_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(linear_loss, "chunk_rows", lambda weight: chunk)
    model, items = open_tiny(tmp_path / "model").train(), token_samples(8)
    batch = _row(items)

    def plain() -> torch.Tensor:
        logits = model.logits(model.hidden(model.embed(batch.ids), batch.positions, batch.lengths))[0]
        nll = F.cross_entropy(logits, batch.targets[0], reduction="none", ignore_index=-100)
        return (nll * batch.weights[0]).sum()

    learner = Learner(model, []).train()
    found = learner(batch)["task"].sum
    assert found.item() == pytest.approx(plain().item(), rel=1e-6)
    assert_close(gradients(found, model), gradients(plain(), model), 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_layers_train_like_eager_ones(tmp_path: Path) -> None:
    model, items = open_tiny(tmp_path / "model").train(), token_samples(8)
    batch, learner = _row(items), Learner(model, []).train()
    eager = learner(batch)["task"].sum
    wanted = gradients(eager, model)
    for layer in model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)  # type: ignore[method-assign]
    compiled = learner(batch)["task"].sum
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-5)
    assert_close(gradients(compiled, model), wanted, 1e-4)
    other = _row(token_samples(5, seed=3))
    assert torch.isfinite(learner(other)["task"].sum)
