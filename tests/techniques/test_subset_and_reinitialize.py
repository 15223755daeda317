"""What a subset keeps, and which pretrained weights are forgotten: counts, nesting, bit-equality, permutations."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from uplift.core.errors import DataError, RecipeError
from uplift.core.values import Corpus, Origin, Sample
from uplift.techniques.data.subset import Subset, balanced_order
from uplift.techniques.placebo.reinitialize import Reinitialize, embedding_names, permuted
from uplift.testing.passes import open_tiny
from uplift.testing.tiny import tiny_causal


def samples_of(*counts: int) -> list[Sample]:
    """So many samples of each label, the labels one after the other."""
    return [
        Sample(f"{label}-{number}", Origin("rows", number + 1), text="x", label=label)
        for label, count in enumerate(counts)
        for number in range(count)
    ]


# -- subset ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [3, 6, 9, 30])
def test_classes_are_exactly_balanced(rows):
    corpus = Subset(rows=rows, seed=4).samples(Corpus(samples_of(40, 25, 12), "train"))
    assert Counter(sample.label for sample in corpus) == {label: rows // 3 for label in range(3)}


def test_counts_differ_by_one_and_the_odd_row_is_not_always_of_the_first_label():
    odd = set()
    for seed in range(12):
        counts = Counter(sample.label for sample in Subset(rows=7, seed=seed).samples(Corpus(samples_of(20, 20), "train")))
        assert sorted(counts.values()) == [3, 4]
        odd.add(counts.most_common(1)[0][0])
    assert odd == {0, 1}


def test_a_label_that_runs_out_leaves_its_share_to_the_others():
    counts = Counter(sample.label for sample in Subset(rows=20).samples(Corpus(samples_of(30, 4, 30), "train")))
    assert counts == {0: 8, 1: 4, 2: 8}


def test_smaller_subsets_are_parts_of_larger_ones_and_keep_the_order_of_the_data():
    every = samples_of(50, 30, 20)
    found = [[sample.id for sample in Subset(rows=rows, seed=1).samples(Corpus(every, "train"))] for rows in (2, 5, 8, 64, 99)]
    for smaller, larger in zip(found, found[1:], strict=False):
        assert set(smaller) < set(larger)
    place = {sample.id: index for index, sample in enumerate(every)}
    assert all([place[name] for name in names] == sorted(place[name] for name in names) for names in found)


def test_the_choice_depends_on_the_seed_and_the_rows_not_on_their_order():
    every = samples_of(30, 30)
    chosen = {every[index].id for index in balanced_order(every, 0)[:10]}
    turned = every[::-1]
    assert {turned[index].id for index in balanced_order(turned, 0)[:10]} == chosen
    assert {every[index].id for index in balanced_order(every, 1)[:10]} != chosen


def test_rows_without_labels_and_equal_rows_are_drawn_too():
    same = [Sample("same", Origin("rows", line), text="x") for line in range(1, 9)]
    assert sorted(balanced_order(same, 0)) == list(range(8))
    assert len(Subset(rows=5).samples(Corpus(same, "train"))) == 5


def test_only_the_training_part_shrinks_and_the_proof_counts():
    technique, every = Subset(rows=10), samples_of(20, 20)
    assert technique.samples(Corpus(every, "test")) is not None and len(technique.samples(Corpus(every, "test"))) == 40
    assert len(technique.samples(Corpus(every, "train"))) == 10
    effect = technique.effect()
    assert effect.passed and effect.value == 0.25 and "5 to 5 of each label" in effect.detail


def test_more_rows_than_there_are_is_refused_and_all_of_them_is_no_effect():
    with pytest.raises(DataError, match=r"asks for 41 rows, and there are 40"):
        Subset(rows=41).samples(Corpus(samples_of(20, 20), "train"))
    technique = Subset(rows=40)
    technique.samples(Corpus(samples_of(20, 20), "train"))
    assert not technique.effect().passed


# -- reinitialize ------------------------------------------------------------------------------------------------------
def after(model, **options):
    """(parameters before, parameters after, technique), from a model whose norms and biases are not at their start."""
    with torch.no_grad():
        for parameter in model.parameters_by_name().values():
            parameter.add_(torch.rand_like(parameter))
    before = {name: parameter.detach().clone() for name, parameter in model.parameters_by_name().items()}
    technique = Reinitialize(**options)
    assert technique.edit(model) is model
    return before, dict(model.parameters_by_name()), technique


def changed(before, now):
    return {name for name in before if not torch.equal(before[name], now[name])}


@pytest.mark.parametrize(("kind", "head"), [("causal", "language"), ("causal", "class"), ("encoder", "class")])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("keep", ["all", "none", "embeddings", "body"])
def test_exactly_what_is_not_kept_changes(opener, kind, head, keep, shuffle):
    model = opener(kind, head=head)
    vocabulary, everything = embedding_names(model), set(model.parameters_by_name())
    before, now, technique = after(model, keep=keep, shuffle=shuffle)
    expected = {"all": set(), "none": everything, "embeddings": everything - vocabulary, "body": vocabulary}[keep]
    assert changed(before, now) == expected
    effect = technique.effect()
    assert effect.passed == (keep != "all") and effect.value == len(expected) / len(everything) * (keep != "all")


def test_blocks_alone_are_replaced(opener):
    model = opener()
    before, now, technique = after(model, keep="all", blocks=[1])
    assert changed(before, now) == {name for name in before if name.startswith("model.layers.1.")}
    assert technique.effect().passed


def test_a_shuffled_tensor_is_a_permutation_of_itself(opener):
    before, now, _ = after(opener(), keep="none", shuffle=True)
    for name, old in before.items():
        assert torch.equal(old.flatten().sort().values, now[name].flatten().sort().values), name
        assert not torch.equal(old, now[name])


def test_permuting_is_seeded():
    values = torch.arange(60.0).reshape(5, 12)
    assert torch.equal(permuted(values, 3), permuted(values, 3)) and permuted(values, 3).shape == values.shape
    assert not torch.equal(permuted(values, 3), permuted(values, 4))


def test_new_values_are_those_of_the_architectures_own_initialiser(opener):
    model = opener()
    _, now, _ = after(model, keep="none")
    assert torch.equal(now["model.norm.weight"], torch.ones(32))
    spread = now["model.layers.0.mlp.up_proj.weight"].detach().std()
    assert abs(float(spread) - model.config.initializer_range) < 0.1 * model.config.initializer_range
    embeddings = now["model.embed_tokens.weight"]
    assert not embeddings[model.config.pad_token_id].any(), "the row of the padding token starts at zero"


def test_a_tied_head_stays_tied(opener):
    model = opener()
    after(model, keep="body")
    assert model.head_weight is model.pretrained.get_input_embeddings().weight


def test_an_untied_head_belongs_to_the_embeddings(tmp_path):
    for keep, head_moves in (("embeddings", False), ("body", True)):
        model = open_tiny(tiny_causal(tmp_path / keep, tie_word_embeddings=False))
        before, now, technique = after(model, keep=keep)
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(before)
        assert ("lm_head.weight" in changed(before, now)) == head_moves == ("model.embed_tokens.weight" in changed(before, now))
        assert technique.effect().passed


def test_the_draw_follows_the_seed_of_the_run_and_leaves_the_generator_alone(opener):
    found = []
    for seed in (5, 5, 6):
        model = opener()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        Reinitialize().edit(model)
        assert torch.equal(state, torch.get_rng_state())
        found.append(model.parameters_by_name()["model.layers.0.mlp.up_proj.weight"].detach().clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_new_model_is_what_transformers_would_make(opener):
    """Same seed, same configuration: bit for bit the weights of a model that was never trained."""
    model = opener()
    torch.manual_seed(9)
    technique = Reinitialize()
    technique.edit(model)
    again = opener()
    torch.manual_seed(9)
    seeds = []
    original, torch.manual_seed = torch.manual_seed, lambda seed: seeds.append(seed) or original(seed)
    try:
        Reinitialize().edit(again)
    finally:
        torch.manual_seed = original
    torch.manual_seed(seeds[0])
    plain = LlamaForCausalLM(model.config)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, model.parameters_by_name()[name]), name


def test_wrong_blocks_are_refused(opener):
    with pytest.raises(RecipeError, match="no block 2"):
        Reinitialize(keep="all", blocks=[0, 2]).edit(opener())
    with pytest.raises(ValidationError, match="with `keep: none` write no blocks"):
        Reinitialize(blocks=[0])


def test_a_model_beyond_its_configuration_is_refused(opener):
    model = opener()
    model.pretrained.added = torch.nn.Linear(2, 2)
    with pytest.raises(RecipeError, match="cannot draw this model anew"):
        Reinitialize(keep="body").edit(model)
