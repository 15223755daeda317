"""Every two legal techniques train together; every other pair is refused with a reason and a remedy."""

from __future__ import annotations

from itertools import combinations

import pytest

from uplift.core.legality import clashes_of
from uplift.testing.pairs import PROOF_STEPS, all_pairs, check_pair, pair_recipe
from uplift.testing.tiny import tiny_recipe

REFUSED = {
    frozenset(pair)
    for pair in (
        ("lora", "l2_sp"),
        ("lora", "l1_proximal"),
        ("lora", "linear_probe"),
        ("linear_probe", "l2_sp"),
        ("linear_probe", "l1_proximal"),
        ("linear_probe", "layerwise_lr"),
        ("ema", "l1_proximal"),
    )
}
"""Besides these and the ones below, only what needs no training (few_shot) cannot be joined with what needs it."""
SELECTED = ["bitfit", "block_expansion", "lisa", "norm_tuning", "spectrum", "surgical"]
CHOOSERS = [*SELECTED, "gradual_unfreezing", "linear_probe", "lp_ft"]
"""Each of these alone says what trains."""
CHOSEN_AWAY = {
    "freeze": ["block_expansion", "gradual_unfreezing", "lisa", "lp_ft", "spectrum", "surgical"],
    "lora": SELECTED,
    "adalora": SELECTED,
    "bottleneck": SELECTED,
    "ia3": SELECTED,
    "vera": SELECTED,
    "quantized_base": SELECTED,
    "p_tuning": [*SELECTED, "gradual_unfreezing", "lp_ft", "freeze", "layerwise_lr"],
    "prefix_tuning": [*SELECTED, "gradual_unfreezing", "lp_ft", "freeze", "layerwise_lr"],
    "prompt_tuning": [*SELECTED, "gradual_unfreezing", "lp_ft", "freeze", "layerwise_lr"],
    "layerwise_lr": ["block_expansion", "lp_ft", "surgical"],
    "l1_proximal": ["bitfit", "block_expansion", "norm_tuning"],
    "mixout": ["bitfit", "gradual_unfreezing", "lisa", "lp_ft", "norm_tuning"],
    "kl_reference": ["lp_ft"],
    "l2": ["bitfit", "ia3", "norm_tuning", "vera"],
}
"""What these techniques need does not train, or not all the time, under those."""
REFUSED |= {frozenset(pair) for pair in combinations(CHOOSERS, 2)}
REFUSED |= {
    frozenset(pair)
    for pair in (
        ("linear_probe", "mixout"),
        ("linear_probe", "kl_reference"),
        ("l2", "l2_sp"),
        ("swa", "ema"),
        ("swa", "l1_proximal"),
    )
}
REFUSED |= {frozenset((one, other)) for one, others in CHOSEN_AWAY.items() for other in others}
ADAPTERS = ["adalora", "bottleneck", "ia3", "lora", "p_tuning", "prefix_tuning", "prompt_tuning", "vera"]
"""There is one of them at a time; the base stays as it is, also when it is quantized under a LoRA."""
MOVES_THE_BASE = ["l1_proximal", "l2_sp", "linear_probe", "mixout"]
REFUSED |= {frozenset(pair) for pair in combinations(ADAPTERS, 2)}
REFUSED |= {frozenset((one, other)) for one in [*ADAPTERS, "quantized_base"] for other in MOVES_THE_BASE}
REFUSED |= {frozenset(("quantized_base", other)) for other in [*SELECTED, "ia3"]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("pairs")


@pytest.mark.parametrize(("first", "second"), all_pairs())
def test_two_steps_together(first: str, second: str, directory) -> None:
    result = check_pair(first, second, directory)
    expected = frozenset((first, second)) in REFUSED or "few_shot" in (first, second)
    assert isinstance(result, list) == expected, result


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), all_pairs())
def test_both_prove_themselves(first: str, second: str, directory) -> None:
    check_pair(first, second, directory, PROOF_STEPS)


@pytest.mark.parametrize("pair", sorted(sorted(pair) for pair in REFUSED))
def test_refusals_do_not_depend_on_the_order(pair: list[str], directory) -> None:
    for first, second in (pair, pair[::-1]):
        assert clashes_of(pair_recipe(first, second, directory))


@pytest.mark.parametrize(
    ("techniques", "changes", "words"),
    [
        (["early_stopping"], {"data": {"split": {"validation": 0.0}}}, "no validation data"),
        (["linear_probe"], {"task_options": {"head": "words"}}, "no classification head"),
        (["few_shot"], {}, "the recipe also trains"),
        (["few_shot"], {"train": {"steps": 0}, "task_options": {"head": "classifier"}}, "no question in words"),
        (["lora"], {"train": {"steps": 0}}, "trains nothing"),
        (["lora", "lora"], {}, "already owns adapter"),
        (["ema", "ema"], {}, "already owns"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(techniques, changes, words, directory) -> None:
    recipe = tiny_recipe(directory, techniques=techniques, **changes)
    found = clashes_of(recipe)
    assert any(words in clash.why for clash in found), found
    assert all(clash.fix for clash in found)
