"""A copy of the model that stays as it is: what references and teachers are made of."""

from __future__ import annotations

from copy import deepcopy
from typing import Any


def frozen_copy(model: Any) -> Any:
    """A copy of a ``LanguageModel`` that shares no weight with it, never trains and has no dropout.

    A copy even under an adapter: some adapters change the base when they are made, so the base alone is not the start.
    """
    copy = deepcopy(model)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return copy.eval()
