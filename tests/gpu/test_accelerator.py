"""What only an accelerator can show: the variable-length kernel, the head's loss there, and a whole run in bf16.

``UPLIFT_GPU_TESTS_ON=cpu`` runs the same code on the CPU (without the kernel), to see that the tests themselves work.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uplift.core.values import Encoded, Progress
from uplift.data.packing import pack
from uplift.learn.learner import Learner
from uplift.learn.linear_loss import linear_cross_entropy
from uplift.model import attention
from uplift.model.backbone import settle
from uplift.model.language_model import LanguageModel
from uplift.testing.tiny import tiny_causal, tiny_recipe, tiny_tokenizer
from uplift.verbs.run import run as run_recipe

pytestmark = pytest.mark.gpu
LENGTHS = (37, 5, 120, 64, 1, 90)


@pytest.fixture
def device() -> torch.device:
    asked = os.environ.get("UPLIFT_GPU_TESTS_ON")
    if asked:
        return torch.device(asked)
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


def open_tiny(directory: Path, device: torch.device) -> LanguageModel:
    from transformers import LlamaForCausalLM

    pretrained = LlamaForCausalLM.from_pretrained(tiny_causal(directory, hidden_size=128)).to(device)
    return LanguageModel(pretrained, tiny_tokenizer(), settle(pretrained), kind="causal", head_kind="language")


def encoded_documents() -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 300, (length,), generator=generator).tolist() for length in LENGTHS]
    return [Encoded(str(index), row, [1.0] * len(row)) for index, row in enumerate(rows)]


def loss_and_gradient(learner: Learner, parts: list[list[Encoded]], device: torch.device) -> tuple[float, Tensor]:
    """Summed loss of all parts in bf16 and the gradient of one projection, accumulated."""
    weight = learner.model.parameters_by_name()["model.layers.0.self_attn.q_proj.weight"]
    weight.grad, total = None, 0.0
    for part in parts:
        batch = pack(part, device=device, progress=Progress(), seed=0)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = learner(batch)["task"].sum
        loss.backward()
        total += loss.item()
    assert weight.grad is not None
    return total, weight.grad.clone()


def test_packed_row_equals_single_documents_in_bf16(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, documents, calls = Learner(open_tiny(tmp_path, device)), encoded_documents(), []
    original = attention._kernel

    def spy(*arguments: object) -> Tensor:
        calls.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_kernel", spy)
    packed, packed_gradient = loss_and_gradient(learner, [documents], device)
    single, single_gradient = loss_and_gradient(learner, [[document] for document in documents if len(document) > 1], device)
    assert packed == pytest.approx(single, rel=5e-3)
    assert (packed_gradient - single_gradient).norm() <= 3e-2 * single_gradient.norm()
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        assert calls, "the variable-length kernel was not used"


def test_packed_bf16_stays_close_to_fp32(tmp_path: Path, device: torch.device) -> None:
    learner, documents = Learner(open_tiny(tmp_path, device)), encoded_documents()
    rough, _ = loss_and_gradient(learner, [documents], device)
    with torch.no_grad():
        exact = learner(pack(documents, device=device, progress=Progress(), seed=0))["task"].sum.item()
    assert rough == pytest.approx(exact, rel=1e-2)


def head_inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(700, 128, generator=generator).to(device).requires_grad_()
    weight = (torch.randn(5000, 128, generator=generator) * 0.05).to(device).requires_grad_()
    targets = torch.randint(0, 5000, (700,), generator=generator).to(device)
    weights = torch.rand(700, generator=generator).to(device)
    return hidden, weight, targets, weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_linear_loss_equals_full_logits(device: torch.device, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets, weights = head_inputs(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        losses = linear_cross_entropy(hidden, weight, targets, weights)
    losses.cross_entropy.backward()
    found = losses.cross_entropy.detach(), hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    full = (F.cross_entropy(hidden @ weight.T, targets, reduction="none") * weights).sum()
    full.backward()
    for value, expected in zip(found, (full.detach(), hidden.grad, weight.grad), strict=True):
        assert value is not None and expected is not None
        assert (value - expected).norm() <= tolerance * expected.norm()


def test_a_tiny_run_learns_in_bf16(tmp_path: Path, device: torch.device) -> None:
    hardware = {"device": device.type, "precision": "bf16"}
    recipe = tiny_recipe(tmp_path, "chat", hardware=hardware, train={"steps": 30, "lr": 3e-3, "evaluate_every": 10})
    report = run_recipe(recipe, tmp_path)
    (curve,) = [curve for curve in report.curves if curve.name == "validation_loss"]
    values = [value for value in curve.values if value is not None]
    assert values[-1] < values[0]
