"""The protocol of the acceptance experiments: paired differences, verdicts, and what is shown of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from acceptance.protocol import Claim, Experiment, carry_out, judge, paired

from acceptance import protocol
from uplift.verbs import techniques


def test_the_interval_is_students() -> None:
    mean, low, high = paired([3.0, 4.0, 8.0], [1.0, 2.0, 3.0])
    assert mean == 3.0
    assert (low, high) == pytest.approx((3.0 - 4.3027, 3.0 + 4.3027), abs=1e-3)  # t(0.975, 2) = 4.3027, s / sqrt(3) = 1


def test_a_claim_needs_its_bound_and_if_shown_an_interval_without_zero() -> None:
    arms = {"a": {"m": [3.0, 4.0, 8.0]}, "b": {"m": [1.0, 2.0, 3.0]}}
    assert judge(Claim("a", "b", "m", least=2.5), arms).holds
    assert not judge(Claim("a", "b", "m", least=3.5), arms).holds
    assert not judge(Claim("a", "b", "m", least=2.5, shown=True), arms).holds


def test_measurements_are_kept_and_the_result_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(protocol, "RESULTS", tmp_path / "accepted")
    monkeypatch.setattr(techniques, "ACCEPTED", tmp_path / "accepted")
    calls: list[int] = []

    def arm(seed: int, folder: Path) -> dict[str, float]:
        calls.append(seed)
        return {"m": 2.0 + 0.1 * seed}

    arms = {"on": arm, "off": lambda seed, folder: {"m": 1.0}}
    claims = (Claim("on", "off", "m", least=0.5, shown=True),)
    experiment = Experiment("made", ("lora",), "Does it help?", "equal", arms, claims, seeds=3)
    assert carry_out(experiment, None, lambda line: None).holds
    carry_out(experiment, None, lambda line: None)
    assert calls == [0, 1, 2], "what was measured is not measured again"
    (evidence,) = techniques.evidence_of("lora")
    assert evidence.holds and "m of on minus off: +1.1" in evidence.findings[0]
    assert techniques.evidence_of("ema") == ()
