"""What ``explain`` and ``techniques`` say."""

from __future__ import annotations

import pytest

from uplift.core.errors import RecipeError
from uplift.core.legality import clashes_of, given_words
from uplift.core.recipe import Recipe
from uplift.core.registry import technique_modules
from uplift.verbs.explain import explain
from uplift.verbs.techniques import SEAMS, card_dict, technique, techniques


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"model": "m", "data": {"train": "a.csv"}, **changes})


def test_chains_follow_the_order_as_written() -> None:
    found = explain(recipe(techniques=[{"use": "ema"}, {"use": "label_smoothing"}, {"use": "l2_sp"}]))
    assert found.chains["after_update"] == ("ema", "l2_sp") and found.chains["gradients"] == ("l2_sp",)
    turned = explain(recipe(techniques=[{"use": "label_smoothing"}, {"use": "ema"}]))
    assert turned.chains["observe"] == tuple(use for use in ("label_smoothing", "ema") if "observe" in technique(use).seams)
    assert found.passes == 1 and found.cost >= 1


def test_adversarial_passes_are_counted() -> None:
    if "fgm" not in technique_modules():
        pytest.skip("this build has no `fgm`")
    found = explain(recipe(techniques=[{"use": "fgm"}]))
    assert found.cost > 1.5 and found.passes >= 2


def test_given_words() -> None:
    words = given_words(recipe())
    assert {"chat", "training", "train_rows", "language_head", "prompt"} <= words and "validation" not in words
    classify = recipe(task={"use": "classify"}, train={"steps": 0}, data={"train": "a", "split": {"validation": 0.1}})
    words = given_words(classify)
    assert {"labels", "no_training", "validation", "language_head", "class_head"} <= words and "training" not in words
    assert "class_head" not in given_words(classify, "words") and "prompt" not in given_words(classify, "classifier")


def test_clashes_name_what_is_missing() -> None:
    clashes = clashes_of(recipe(techniques=[{"use": "early_stopping"}], train={"steps": 0}))
    assert {clash.key for clash in clashes} == {"techniques[0]"}
    assert any("validation" in clash.why for clash in clashes) and any("trains nothing" in clash.why for clash in clashes)


def test_every_technique_has_a_complete_card() -> None:
    cards = techniques()
    assert {card.use for card in cards} == set(technique_modules())
    for card in cards:
        assert card.summary and card.cost >= 1 and card.seams, card.use
        assert set(card.seams) <= set(SEAMS)
        for option in card.options:
            assert option.meaning, f"{card.use}.{option.name} has no docstring"
            assert option.allowed != "any value", f"{card.use}.{option.name} has no range"
        assert card_dict(card)["options"] == [vars(option) for option in card.options]


def test_an_unknown_technique_has_a_nearest_name() -> None:
    with pytest.raises(RecipeError, match="label_smoothing"):
        technique("label_smothing")
