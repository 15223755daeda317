"""Our decoder gives the logits and gradients that a second public implementation gave for the same weights."""

from __future__ import annotations

import json

import pytest
from tests.golden.second_decoder import FAMILIES, FILE, taken

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))["families"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_litgpt(family: str) -> None:
    wanted, found = RECORDED[family], taken(family)
    assert max(abs(value) for value in wanted["logits"]) > 0.5
    assert found["logits"] == pytest.approx(wanted["logits"], abs=1e-5)
    assert found["gradients"].keys() == wanted["gradients"].keys()
    for name, values in wanted["gradients"].items():
        assert found["gradients"][name] == pytest.approx(values, abs=1e-5, rel=1e-5), name
