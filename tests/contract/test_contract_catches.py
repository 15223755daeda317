"""The conformance suite fails techniques that break a rule: without this, a green suite would say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Progress, Term
from uplift.testing.contract import (
    Case,
    check_accumulation,
    check_documented,
    check_effect,
    check_off_is_absent,
    check_recipe,
    check_resume,
    check_unknown_keys,
)

TRAINING = Capabilities(needs=frozenset({"training"}))


class Silent(Technique):
    """Does nothing, says that it worked only when asked to lie."""

    use: Literal["silent"] = "silent"
    strength: float = 0.5
    capabilities: ClassVar[Capabilities] = TRAINING
    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    def effect(self) -> Effect:
        return Effect("silent", "something", 0.0, False)


class Boastful(Silent):
    """Claims an effect before anything happened."""

    use: Literal["boastful"] = "boastful"

    def effect(self) -> Effect:
        return Effect("boastful", "everything", 1.0, True)


class AlwaysOn(Technique):
    """Its off switch does not switch off."""

    use: Literal["always_on"] = "always_on"
    strength: Annotated[float, Field(ge=0)] = 0.1
    capabilities: ClassVar[Capabilities] = TRAINING
    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    @torch.no_grad()
    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        for parameter in parameters.values():
            parameter.mul_(1 - 1e-4 - self.strength * 1e-3)


class Forgetful(Technique):
    """Keeps a counter that no checkpoint carries."""

    use: Literal["forgetful"] = "forgetful"
    capabilities: ClassVar[Capabilities] = TRAINING
    _steps: int = PrivateAttr(0)

    @torch.no_grad()
    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        self._steps += 1
        for parameter in parameters.values():
            parameter.mul_(1 - 1e-4 * self._steps)


class MeanOfMeans(Technique):
    """A term that is a mean over the micro-batch, so cutting the batch changes it."""

    use: Literal["mean_of_means"] = "mean_of_means"
    capabilities: ClassVar[Capabilities] = TRAINING

    def terms(self, forward: Any, batch: Any) -> dict[str, Term]:
        return {"mean": Term(forward.losses.cross_entropy / forward.count, forward.count, forward.unit)}


class Neighbourly(Technique):
    """Noise of the whole row, so packing changes it."""

    use: Literal["neighbourly"] = "neighbourly"
    capabilities: ClassVar[Capabilities] = TRAINING

    def embed(self, embeddings: Any, batch: Any) -> Any:
        return embeddings + 0.1 * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("technique", "check", "words"),
    [
        (Silent, check_effect, "did not prove itself"),
        (Silent, check_off_is_absent, "changes nothing"),
        (Silent, check_unknown_keys, "without a range"),
        (Silent, check_documented, "no `When:`"),
        (Silent, check_recipe, "is missing"),
        (Boastful, check_effect, "before anything was done"),
        (AlwaysOn, check_off_is_absent, "changes: "),
        (Forgetful, check_resume, "continues differently"),
        (MeanOfMeans, check_accumulation, "change the gradient"),
        (Neighbourly, check_accumulation, "change the gradient"),
    ],
)
def test_a_broken_technique_is_caught(technique, check, words, tmp_path) -> None:
    with pytest.raises(AssertionError, match=words):
        check(Case(technique, tmp_path, tmp_path))
