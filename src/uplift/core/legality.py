"""Which words a recipe gives its techniques, and which combinations are therefore refused before a model is loaded."""

from __future__ import annotations

from typing import Literal

from uplift.core.capability import Clash, find_clashes
from uplift.core.recipe import ClassifyTask, Recipe

Head = Literal["words", "classifier"]


def given_words(recipe: Recipe, head: Head | None = None) -> frozenset[str]:
    """The words that model, task, data and training give to the techniques' ``needs``.

    ``head`` settles ``task.head: auto`` once the model's kind is known; until then both heads count as given.
    """
    words = {recipe.task.use, "train_rows", "training" if recipe.train.steps != 0 else "no_training"}
    words.add(f"{recipe.train.schedule.use}_schedule")
    if recipe.data.validation is not None or recipe.data.split.validation > 0:
        words.add("validation")
    if not isinstance(recipe.task, ClassifyTask):
        words.add("language_head")
        return frozenset(words | {"prompt"} if recipe.task.use == "chat" else words)
    words.add("labels")
    asked = recipe.task.head if recipe.task.head != "auto" else head
    if asked != "classifier":
        words |= {"language_head", "prompt"}
    if asked != "words":
        words.add("class_head")
    return frozenset(words)


def clashes_of(recipe: Recipe, head: Head | None = None) -> list[Clash]:
    """All refused combinations. While the head is open, only what no head makes legal is refused."""
    declared = [(f"techniques[{index}]", item.use, item.declare()) for index, item in enumerate(recipe.techniques)]
    heads: list[Head] = [head] if head else ["words", "classifier"]
    return min((find_clashes(declared, given_words(recipe, each)) for each in heads), key=len)
