"""Errors of the validation loss: right for clustered units, and far smaller for a paired difference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.learn.engines import make_engine

from uplift.learn.validation import look, ratio_error


def test_the_error_of_the_mean_has_the_right_size() -> None:
    torch.manual_seed(0)
    means, errors = [], []
    for _ in range(400):
        counts = torch.randint(1, 30, (60,)).double()
        own = torch.randn(60).double()  # a sample's tokens share most of their loss
        sums = counts * (1.0 + own) + counts.sqrt() * torch.randn(60).double()
        means.append(float(sums.sum() / counts.sum()))
        errors.append(ratio_error(sums, counts))
    assert torch.tensor(errors).mean() == pytest.approx(torch.tensor(means).std().item(), rel=0.12)


def test_one_sample_has_no_error() -> None:
    assert ratio_error(torch.ones(1), torch.ones(1)) == 0.0


@pytest.mark.parametrize("head", ["language", "class"])
def test_the_mean_is_that_of_all_units_and_the_pair_is_compared_with_the_lowest(tmp_path: Path, head: str) -> None:
    engine = make_engine(tmp_path, head=head)
    first = engine.validate()
    with torch.no_grad():
        pairs = [engine.learner.measure(batch) for batch in engine.validation]
    mean = sum(float(sums.sum()) for sums, _ in pairs) / sum(float(counts.sum()) for _, counts in pairs)
    assert first["validation_loss"] == pytest.approx(mean)
    assert "validation_loss_paired_se" not in first
    again = engine.validate()
    assert again["validation_loss_paired_se"] == 0.0, "nothing changed"
    with torch.no_grad():
        for parameter in engine.parameters.values():
            parameter.add_(0.001 * torch.randn_like(parameter))
    moved, _ = look(engine.learner.eval(), engine.validation, engine.state.lowest)
    assert 0 < moved["validation_loss_paired_se"] < moved["validation_loss_se"]


def test_the_lowest_look_survives_a_restart(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"save_every": 1})
    engine.train()
    engine.run.close()
    again = make_engine(tmp_path)
    assert again.resume() and again.state.lowest == engine.state.lowest and again.state.lowest
