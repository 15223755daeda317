"""Which parameters a rule means: by shell-style pattern, and the classification head by its usual names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from uplift.core.errors import RecipeError

CLASS_HEADS = ("score", "classifier", "pre_classifier", "classification_head")
"""What transformers calls the head of its ``*ForSequenceClassification`` models."""


def matching(names: Iterable[str], patterns: Sequence[str], use: str) -> frozenset[str]:
    """Names that match any of the shell-style ``patterns``. Raises RecipeError naming a pattern that matches nothing."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            examples = ", ".join(f"`{name}`" for name in names[:6])
            raise RecipeError(
                f"`{use}`: no parameter matches `{pattern}`",
                why=f"the model has names such as {examples}",
                fix="use `*` as a wildcard",
            )
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def class_head(names: Iterable[str]) -> frozenset[str]:
    """Those names that belong to a classification head (also under an adapter's wrapping)."""
    return frozenset(name for name in names if any(part in CLASS_HEADS for part in name.split(".")[:3]))
