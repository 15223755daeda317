"""The shipped conformance suite over every technique there is. A new technique is tested by being there."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from uplift.core.registry import technique_modules
from uplift.testing.contract import CHECKS, Case

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def make(use: str) -> Case:
        return Case.named(use, tmp_path_factory.mktemp(use), RECIPES)

    return make


@pytest.mark.parametrize("use", sorted(technique_modules()))
@pytest.mark.parametrize("check", CHECKS)
def test_technique(check: str, use: str, case_of) -> None:
    CHECKS[check](case_of(use))
