"""The benchmark measures what it says: same documents, same loss, right arithmetic, and it fails loudly."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest
from bench.gate import Gate, Step, Worker
from bench.training import Pair, paired_ratio, run as run_benchmark
from bench.workload import SMOLLM2, TINY, Work, build_model, model_flops

from uplift.core.errors import ResourceError

FULL, LORA = Work("full", SMOLLM2), Work("lora", SMOLLM2, rank=16)


def test_shape_is_smollm2() -> None:
    with_meta = SMOLLM2.config()
    assert (with_meta.hidden_size, with_meta.num_hidden_layers, with_meta.vocab_size) == (576, 30, 49_152)
    inside = 30 * (SMOLLM2.layer_weights() + 2 * 576) + 576
    assert inside + 576 * 49_152 == 134_515_008  # SmolLM2-135M's own count


def test_documents_are_ragged_and_fixed() -> None:
    lengths = [len(document) for document in FULL.documents(100)]
    assert min(lengths) >= 30
    assert max(lengths) <= 400
    assert 115 < sum(lengths) / len(lengths) < 150
    assert FULL.step(1) == FULL.step(1 + FULL.steps)
    assert FULL.step(0) != FULL.step(1)


def test_flops_per_token_match_the_hand_count() -> None:
    documents = FULL.documents(50)
    tokens = sum(map(len, documents))
    assert model_flops(FULL, documents) / tokens == pytest.approx(740e6, rel=0.02)
    assert model_flops(LORA, documents) / tokens == pytest.approx(527e6, rel=0.02)


def test_layer_weights_match_a_built_model() -> None:
    model = build_model(Work("full", TINY))
    layer = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    assert layer == TINY.layer_weights()


def test_first_half_is_masked() -> None:
    assert FULL.labels([5, 6, 7, 8, 9]) == [-100, -100, 7, 8, 9]


@pytest.mark.slow
def test_a_pair_agrees_on_the_loss_and_is_recorded(tmp_path: Path) -> None:
    outcome = run_benchmark(only="full", peer="one document", counted=1, threads=1, tiny=True, path=tmp_path / "record.json")
    (pair,) = outcome.pairs
    assert not outcome.failures
    assert pair.difference is not None and pair.difference < 1e-5
    assert pair.drift is not None and pair.drift < 1e-4
    assert pair.speed > 0 and pair.peer_memory > 0
    recorded = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert recorded["pairs"][0]["ratio"] == pytest.approx(pair.ratio, abs=1e-3)
    assert recorded["machine"]["gemm_gflops"] > 0


def test_a_pair_says_what_it_misses() -> None:
    slow = Pair("full", "p", "default", 2.0, 1.5, 1.0, 15.0, 10.0, 3 << 30, 2 << 30, 7e8, 0.1, 0.0, 0.0)
    assert slow.problems == ["short by 0.50x", "1.0 GiB more", "other loss"]


def test_a_slow_phase_of_the_machine_does_not_move_the_ratio() -> None:
    def steps(*seconds: float) -> list[Step]:
        return [Step(100, 0.0, wall, wall, 0) for wall in seconds]

    own, other = steps(1.0, 1.0, 3.0, 3.0, 3.0), steps(2.0, 2.0, 6.0, 6.0, 5.0)
    assert paired_ratio(own, other, lambda step: step.wall) == 2.0


def _fail(word: str, gate: Gate) -> None:
    raise RuntimeError(f"broken {word} {random.random()}")


def test_a_broken_worker_is_reported() -> None:
    worker = Worker("broken", partial(_fail, "peer"))
    with pytest.raises(ResourceError, match="broken peer"):
        worker.step(0)
    worker.close()
