"""Every two legal techniques train together; every other pair is refused with a reason and a remedy."""

from __future__ import annotations

import zlib
from collections import Counter
from itertools import combinations, product

import pytest

from uplift.core.legality import clashes_of
from uplift.testing.pairs import PROOF_STEPS, all_pairs, check_pair, pair_recipe
from uplift.testing.tiny import tiny_recipe

VECTORS = ["bitfit", "norm_tuning"]
CHOSEN = [*VECTORS, "block_expansion", "lisa", "spectrum", "surgical"]
GROWING = ["deepen", "upcycle", "widen"]
PROMPTS = ["p_tuning", "prefix_tuning", "prompt_tuning"]
ADAPTERS = ["adalora", "bottleneck", "ia3", "lora", *PROMPTS, "vera"]
REFUSED = {
    frozenset(pair)
    for pair in (
        # Each of these alone says what trains.
        *combinations([*CHOSEN, "gradual_unfreezing", "linear_probe", "lp_ft"], 2),
        # There is one adapter at a time.
        *combinations(ADAPTERS, 2),
        # Under an adapter, or rounded, the base stays as it is: nothing in it to choose, to pull, to mix or to make zero.
        *product([*ADAPTERS, "quantized_base"], [*CHOSEN, "linear_probe", "l1_proximal", "l2_sp", "mixout"]),
        # Factors go into the weights by multiplication, and those were rounded without them.
        ("quantized_base", "ia3"),
        # A prompt trains as one piece below all blocks: no turns, no rates by depth, nothing left to freeze.
        *product(PROMPTS, ["freeze", "gradual_unfreezing", "layerwise_lr", "lp_ft"]),
        # Both say which blocks stand still.
        *product(["freeze"], ["block_expansion", "gradual_unfreezing", "lisa", "lp_ft", "spectrum", "surgical"]),
        # So little trains, or at first, that there is hardly more than one rate.
        *product(["layerwise_lr"], ["block_expansion", "linear_probe", "lp_ft", "surgical"]),
        # What they pull, shrink or mix does not train, is new, or begins to train during the run.
        *product(["l1_proximal"], [*VECTORS, "block_expansion", "linear_probe"]),
        *product(["l2"], [*VECTORS, "ia3", "vera"]),
        ("l2_sp", "linear_probe"),
        *product(["mixout"], [*VECTORS, "gradual_unfreezing", "linear_probe", "lisa", "lp_ft"]),
        # One needs a language head, the others a classification head.
        *product(["kl_reference", "z_loss"], ["linear_probe", "lp_ft"]),
        # A teacher's answers are smooth already.
        ("distill", "label_smoothing"),
        # Nothing changes below a head that trains alone.
        *product(["match_attention", "match_hidden"], ["linear_probe"]),
        # These train no router, or need linear layers where a mixture has experts.
        *product(["router_balance"], [*ADAPTERS, "linear_probe", "quantized_base", "widen"]),
        # A model grows once at a time, and all of the grown one trains.
        *combinations(GROWING, 2),
        *product(GROWING, [*CHOSEN, *ADAPTERS, "freeze", "gradual_unfreezing", "linear_probe", "lp_ft", "quantized_base"]),
        # Rates by width are for the matrices of a new decoder, and nobody else sets them.
        *product(["mup"], [*ADAPTERS, *VECTORS, "layerwise_lr", "linear_probe", "lp_ft", "quantized_base"]),
        # Weights are rounded once, and those that are rounded in training must train, alone and as themselves.
        ("qat", "quantize"),
        *product(["sparsify"], ["qat", "quantize"]),
        # Zeros are filled by an adapter, are what new blocks must grow from, or have no place in what grew.
        *product(["sparsify"], [*ADAPTERS, "quantized_base", "block_expansion", "l1_proximal", "deepen", "upcycle", "widen"]),
        # One cuts and the other grows; a model just after the cut is nothing to stay near.
        *product(["prune"], ["block_expansion", "deepen", "kl_reference", "upcycle", "widen"]),
        *product(["qat"], [*ADAPTERS, *VECTORS, "linear_probe", "mixout", "quantized_base"]),
        # An adapter that stays beside the weights was not trained for the rounded ones.
        ("quantize", "bottleneck"),
        # Two pulls on the same weights.
        ("l2", "l2_sp"),
        # A blend of two texts has two labels and is no text; it needs a classification head, and what writes needs words.
        *product(["mixup"], ["cutoff", "distill", "fgm", "freelb", "label_smoothing", "pgd", "r_drop", "random_noise"]),
        *product(["mixup"], ["kl_reference", "mup", "smart", "virtual_adversarial", "z_loss"]),
        *product(["augment_model", "back_translation", "synthetic"], ["linear_probe", "lp_ft", "mixup"]),
        # The model's own answers are scored under the embeddings they were drawn from, by a language head.
        *product(["discriminator_reward"], ["cutoff", "fgm", "freelb", "neftune", "pgd", "random_noise", "smart"]),
        *product(["discriminator_reward"], ["linear_probe", "lp_ft", "mixup", "virtual_adversarial"]),
        # A new model has no part that knows enough to stand still.
        *product(["surgical"], ["mup", "reinitialize"]),
        # New embeddings know no likeness of words.
        *product(["augment_words"], ["mup", "reinitialize"]),
        # One average is evaluated, and the average of a weight that becomes zero is not zero.
        *combinations(["ema", "l1_proximal", "swa"], 2),
    )
}
"""Besides these, only what needs no training (few_shot) cannot be joined with what needs it."""
UNTRAINED = {"few_shot", "quantize"}
"""What works on a model as it is."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("pairs")


def refused(first: str, second: str) -> bool:
    """Whether these two cannot be joined."""
    trains = not {first, second} <= UNTRAINED
    return frozenset((first, second)) in REFUSED or (trains and "few_shot" in (first, second))


def sampled(first: str, second: str) -> bool:
    """Whether the fast tier tries them: all that cost no training, and about every fourth of the others."""
    free = refused(first, second) or {first, second} <= UNTRAINED
    return free or zlib.crc32(" ".join(sorted((first, second))).encode()) % 4 == 0


SAMPLE = [pair for pair in all_pairs() if sampled(*pair)]


@pytest.mark.parametrize(("first", "second"), SAMPLE)
def test_two_steps_together(first: str, second: str, directory) -> None:
    result = check_pair(first, second, directory)
    assert isinstance(result, list) == refused(first, second), result


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), all_pairs())
def test_both_prove_themselves(first: str, second: str, directory) -> None:
    result = check_pair(first, second, directory, PROOF_STEPS)
    assert isinstance(result, list) == refused(first, second), result


def test_the_fast_tier_trains_every_technique_with_several_others() -> None:
    partners = Counter(use for pair in SAMPLE if not refused(*pair) for use in pair)
    possible = Counter(use for pair in all_pairs() if not refused(*pair) for use in pair)
    assert all(partners[use] >= min(3, count) for use, count in possible.items()), partners


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
