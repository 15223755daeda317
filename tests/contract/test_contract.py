"""The shipped conformance suite over every technique there is. A new technique is tested by being there."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest

from uplift.core.registry import technique_modules
from uplift.testing.contract import CHECKS, Case

WRITING = {"augment_model", "back_translation", "discriminator_reward", "synthetic"}
"""They write texts in every run, token by token."""
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def make(use: str) -> Case:
        return Case.named(use, tmp_path_factory.mktemp(use), RECIPES)

    return make


def cases():
    for check, use in product(CHECKS, sorted(technique_modules())):
        long = check == "resume" and use in WRITING
        yield pytest.param(check, use, marks=pytest.mark.slow if long else ())


@pytest.mark.parametrize(("check", "use"), cases())
def test_technique(check: str, use: str, case_of) -> None:
    CHECKS[check](case_of(use))
