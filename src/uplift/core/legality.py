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
    words.add("dropout_in_model")  # the model may have its own; who needs it looks when the model is open
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
    """All refused combinations, under ``techniques[i]`` or the key of another section.

    While the head is open, only what no head makes legal is refused.
    """
    declared = [(f"techniques[{index}]", item.use, item.declare()) for index, item in enumerate(recipe.techniques)]
    heads: list[Head] = [head] if head else ["words", "classifier"]
    found = min((find_clashes(declared, given_words(recipe, each)) for each in heads), key=len)
    return [*found, *_evaluation_clashes(recipe)]


def _evaluation_clashes(recipe: Recipe) -> list[Clash]:
    """Measurements that the task or the data do not allow."""
    if recipe.evaluate.robustness is None:
        return []
    key, found = "evaluate.robustness", []
    if not isinstance(recipe.task, ClassifyTask):
        why = f"an attack succeeds when the label changes, and `task: {{use: {recipe.task.use}}}` has no labels"
        fix = "use `task: {use: classify, ...}`, or remove `evaluate.robustness`"
        found.append(Clash(key, "attacks need a classification", why, fix))
    if recipe.data.test is None and recipe.data.split.test == 0:
        fix = "add `data.split.test: 0.1` or `data.test`, or remove `evaluate.robustness`"
        found.append(Clash(key, "there is nothing to attack", "the recipe has no test part", fix))
    return found
