from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from uplift.model.language_model import LanguageModel
from uplift.testing.passes import open_tiny
from uplift.testing.tiny import tiny_causal, tiny_encoder

Opener = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"causal": tiny_causal(root / "causal"), "encoder": tiny_encoder(root / "encoder")}


@pytest.fixture
def opener(model_folders: dict[str, Path]) -> Opener:
    """Opens a fresh tiny model: ``opener()``, ``opener(head="class")``, ``opener("encoder", head="class")``."""

    def open_fresh(kind: str = "causal", head: Literal["language", "class"] = "language") -> LanguageModel:
        return open_tiny(model_folders[kind], head)

    return open_fresh
