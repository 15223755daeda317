"""Attacks on models: the numbers are of the texts that were scored, budgets and balls hold, and the right words are found."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from uplift.core import report
from uplift.core.errors import DataError
from uplift.core.recipe import ATTACKS, Attack, ClassifyTask, Robustness
from uplift.core.values import Message, Origin, Sample
from uplift.data.chat import Encoder
from uplift.data.formats import content_text, labelled
from uplift.data.words import case_of
from uplift.evaluate.attacks import Answer, Words
from uplift.evaluate.embedding_attack import push
from uplift.evaluate.robustness import Assault, beside_base, measure_robustness, misleading_texts
from uplift.evaluate.tasks import label_scores
from uplift.evaluate.victim import Shaken, Victim, tokens_of_words
from uplift.learn.assemble import assemble, build_engine, finish_model
from uplift.learn.parallel import Parallel
from uplift.model.language_model import LanguageModel
from uplift.model.neighbours import Neighbours
from uplift.techniques.perturbation import norms_of_samples
from uplift.testing.tiny import tiny_encoder, tiny_encoder_tokenizer, tiny_recipe, tiny_wordnet
from uplift.testing.training import open_run

LABELS = ("negative", "positive")
TEXT_ATTACKS: tuple[Attack, ...] = tuple(attack for attack in ATTACKS if attack != "embedding")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A trained tiny model with its test rows."""

    model: LanguageModel
    task: ClassifyTask
    encoder: Encoder
    samples: list[Sample]

    @property
    def victim(self) -> Victim:
        return Victim(self.model, self.task, self.encoder, 512)

    def assault(self, samples: list[Sample] | None = None, seed: int = 0, **settings: Any) -> Assault:
        return Assault(self.victim, samples or self.samples, Robustness(**{"similarity": 0.5, **settings}), seed)

    def measure(self, seed: int = 0, **settings: Any) -> report.Robustness:
        options = Robustness(**{"similarity": 0.5, "eps": [0.0, 0.05, 0.2], "steps": 5, **settings})
        return measure_robustness(self.model, self.samples, self.task, self.encoder, options, seed=seed, batch_tokens=512)


def prepared(folder: Path, steps: int, **options: Any) -> Prepared:
    if options.pop("encoder", False):
        tiny_encoder(folder / "model")
    train = {"steps": steps, "lr": 5e-3, "batch_tokens": 1024, "evaluate_every": 100}
    recipe = tiny_recipe(folder, rows=240, train=train, task_options=options)
    parallel = Parallel(torch.device("cpu"))
    assembly = assemble(recipe, Path(), parallel)
    with open_run(recipe, folder / "runs") as run:
        build_engine(assembly, run, parallel, lambda *_: None, lambda audit: None).train()
    model = finish_model(assembly.model, assembly.techniques)
    model.eval()
    assert isinstance(recipe.task, ClassifyTask)
    return Prepared(model, recipe.task, assembly.encoder, [assembly.corpora["test"][index] for index in range(8)])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("decoder"), 40, head="classifier")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("encoder"), 40, encoder=True)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("words"), 100, head="words", prompt="{text}\n\n{labels}?")


@pytest.fixture(scope="module")
def long_words(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Labels of several tokens: a row has one document for each."""
    labels = {"negative": "bad bad", "positive": "very good"}
    return prepared(tmp_path_factory.mktemp("long"), 10, head="words", labels=labels)


@pytest.fixture(params=["decoder", "encoder", "words", "long_words"])
def any_head(request: pytest.FixtureRequest) -> Prepared:
    return cast(Prepared, request.getfixturevalue(request.param))


@pytest.fixture(params=["decoder", "encoder", "words"])
def trained(request: pytest.FixtureRequest) -> Prepared:
    return cast(Prepared, request.getfixturevalue(request.param))


@dataclasses.dataclass
class Ear:
    """Listens to what an assault asks, by row."""

    asked: dict[int, list[str]]

    @classmethod
    def on(cls, assault: Assault) -> Ear:
        ear, ask = cls({}), assault._ask

        def listening(batch: list[tuple[int, str]]) -> list[Answer]:
            for index, text in batch:
                ear.asked.setdefault(index, []).append(text)
            return ask(batch)

        assault._ask = listening  # type: ignore[method-assign]
        return ear


# -- texts -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("attack", TEXT_ATTACKS)
@pytest.mark.parametrize("queries", [7])
def test_budget_and_similarity_hold_for_every_row(trained: Prepared, attack: Attack, queries: int) -> None:
    assault = trained.assault(queries=queries, similarity=0.6)
    ear, near = Ear.on(assault), Neighbours(trained.model)
    found = assault.texts(attack)
    assert [each is not None for each in found] == assault.right.tolist()
    for index, each in enumerate(found):
        if each is None:
            continue
        text = content_text(assault.samples[index])
        assert each.queries == len(ear.asked.get(index, [])) + (attack == "gradient") <= queries
        assert min(each.words.similarity, *near.similar(text, [each.text])) >= 0.6 - 1e-6
        if each.words.changes:
            assert each.text in ear.asked[index]
        (answer,) = trained.victim.ask([trained.victim.with_text(assault.samples[index], each.text)])
        assert answer.right is not each.broken, "what is reported is what the model says of that text"


@pytest.mark.parametrize("attack", TEXT_ATTACKS)
def test_attacks_depend_on_seed_and_row_alone(decoder: Prepared, attack: Attack) -> None:
    whole = decoder.assault().texts(attack)
    assert decoder.assault().texts(attack) == whole
    some = decoder.assault(decoder.samples[3:7]).texts(attack)
    assert [each and each.text for each in some] == [each and each.text for each in whole[3:7]]
    if attack in {"typo", "swap"}:
        assert [each and each.text for each in decoder.assault(seed=1).texts(attack)] != [each and each.text for each in whole]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_constant_model_cannot_be_misled(decoder: Prepared, attack: Attack) -> None:
    weight = decoder.model.parameters_by_name()["score.weight"]
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.zero_()
        found = decoder.measure(attacks=[attack])
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert 0 < (found.clean.value or 0) < 1
    for each in found.attacks:
        assert each.result.success.value == 0 and each.result.robust.value == found.clean.value and each.examples == ()


def test_attacks_mislead_a_trained_model_and_leave_it_as_it_was(trained: Prepared) -> None:
    before = {name: parameter.detach().clone() for name, parameter in trained.model.parameters_by_name().items()}
    trained.model.train()
    try:
        found = trained.measure()
        assert trained.model.training and all(part.training for part in trained.model.modules())
    finally:
        trained.model.eval()
    for name, parameter in trained.model.parameters_by_name().items():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    assert (found.clean.value or 0) > 0.6
    assert all((each.result.success.value or 0) > 0 for each in found.attacks if each.attack in {"gradient", "drop"})
    assert report.Robustness.model_validate_json(found.model_dump_json()) == found


def test_examples_are_what_the_model_was_asked_and_said(trained: Prepared) -> None:
    assault = trained.assault(queries=40)
    ear = Ear.on(assault)
    shown = 0
    for attack in TEXT_ATTACKS:
        for example in assault.report_texts(attack, assault.texts(attack), None).examples:
            (index,) = [i for i, sample in enumerate(assault.samples) if content_text(sample) == example.clean]
            assert example.attacked in ear.asked[index] and example.attacked != example.clean
            scores = trained.victim.scores([trained.victim.with_text(assault.samples[index], example.attacked)])
            assert trained.model.labels[int(scores.argmax())] == example.predicted != example.label
            assert example.label == trained.model.labels[assault.samples[index].label or 0]
            shown += 1
    assert shown > 3


def test_numbers_follow_from_the_rows(decoder: Prepared) -> None:
    assault = decoder.assault()
    found = assault.texts("swap")
    scores = assault.report_texts("swap", found, None).result
    ended = [each for each in found if each is not None]
    hits = [each for each in ended if each.broken]
    assert scores.robust.value == pytest.approx((len(ended) - len(hits)) / len(found))
    assert scores.success.value == pytest.approx(len(hits) / len(ended))
    assert scores.queries == pytest.approx(np.mean([each.queries for each in ended]))
    assert scores.changed == pytest.approx(np.mean([each.words.share_changed for each in hits]))
    assert scores.similarity == min(each.similarity for each in hits)
    assert scores.transfer is None


# -- transfer ----------------------------------------------------------------------------------------------------------
def test_texts_that_mislead_a_model_mislead_its_copy(decoder: Prepared, encoder: Prepared) -> None:
    settings = Robustness(attacks=["drop", "swap"], similarity=0.5)
    shared = {"task": decoder.task, "settings": settings, "seed": 0, "batch_tokens": 512}

    def measured(own: Prepared, misleading: Any) -> report.Robustness:
        return measure_robustness(own.model, own.samples, encoder=own.encoder, misleading=misleading, **cast(Any, shared))

    taken = misleading_texts(decoder.model, decoder.samples, encoder=decoder.encoder, **cast(Any, shared))
    for each in measured(decoder, taken).attacks:
        count = sum(text is not None for text in taken[cast(Attack, each.attack)])
        assert each.result.transfer is not None and each.result.transfer.value == 0 and each.result.transfer_rows == count > 0
    same = {attack: [content_text(sample) for sample in decoder.samples] for attack in settings.attacks}
    for each in measured(decoder, same).attacks:
        assert each.result.transfer is not None and each.result.transfer.value == 1
    nothing = {attack: [None] * len(decoder.samples) for attack in settings.attacks}
    for each in measured(decoder, nothing).attacks:
        assert each.result.transfer == report.Interval(value=None, low=0, high=1) and each.result.transfer_rows == 0
    other = measured(encoder, taken)
    assert all(each.result.transfer is not None and each.result.transfer_rows > 0 for each in other.attacks)


def test_the_base_stands_beside_the_same_attacks(decoder: Prepared, words: Prepared) -> None:
    result, base = decoder.measure(attacks=["drop", "embedding"]), words.measure(attacks=["drop", "embedding"])
    both = beside_base(result, base)
    assert both.base_clean == base.clean and [each.base for each in both.attacks] == [each.result for each in base.attacks]
    assert [each.result for each in both.attacks] == [each.result for each in result.attacks]


# -- embeddings --------------------------------------------------------------------------------------------------------
def test_scores_without_a_shift_are_the_usual_ones(any_head: Prepared) -> None:
    targets = any_head.victim.targets(any_head.samples)
    usual = label_scores(any_head.model, any_head.samples, any_head.encoder, 512).log_probabilities
    for group, shaken in any_head.victim.shaken(targets):
        scores, gradient = shaken.scores_and_gradient(shaken.zeros())
        np.testing.assert_allclose(scores.numpy(), usual[group], atol=2e-4)
        assert gradient.shape == shaken.embeddings.shape and gradient.abs().sum() > 0


def test_only_the_text_of_a_row_is_shifted(any_head: Prepared) -> None:
    for sample, target in zip(any_head.samples, any_head.victim.targets(any_head.samples), strict=True):
        begin, end = target.span
        for document in target.documents:
            text = any_head.model.tokenizer.decode(list(document.ids)[begin:end])
            assert "".join(str(text).lower().split()) == "".join(content_text(sample).lower().split())
    assert len(targets := any_head.victim.targets(any_head.samples[:1])) == 1 and targets[0].truth == any_head.samples[0].label


def test_the_gradient_is_that_of_the_lead(any_head: Prepared) -> None:
    """Against differences: a small step along it changes the summed lead by its squared norm."""
    targets = any_head.victim.targets(any_head.samples[:3])
    shaken = Shaken(any_head.model, targets)
    truth = torch.tensor([target.truth for target in targets])[:, None]

    def lead(delta: Tensor) -> float:
        with torch.no_grad():
            scores = shaken.scores(delta).double()
        return float((scores.gather(1, truth) - scores.gather(1, 1 - truth)).sum())

    _, gradient = shaken.scores_and_gradient(shaken.zeros())
    size = 1e-2 / float(gradient.norm())
    slope = (lead(size * gradient) - lead(-size * gradient)) / (2 * size)
    assert slope == pytest.approx(float(gradient.double().pow(2).sum()), rel=0.03)


def test_pgd_does_at_least_what_noise_does(trained: Prepared) -> None:
    found = trained.measure(attacks=["embedding"])
    robust = {(each.attack, each.eps): each.result.robust.value or 0.0 for each in found.attacks}
    assert robust["noise", 0.0] == robust["pgd", 0.0] == found.clean.value
    for eps in (0.05, 0.2):
        assert robust["pgd", eps] <= robust["noise", eps] <= (found.clean.value or 0)
    assert robust["pgd", 0.2] < robust["noise", 0.2], "gradient steps find what noise does not"
    assert {each.result.queries for each in found.attacks} == {1.0, 6.0}


@pytest.mark.parametrize("eps", [0.0, 0.03, 0.5])
def test_no_shift_leaves_its_ball(any_head: Prepared, eps: float) -> None:
    victim = any_head.victim
    targets = victim.targets(any_head.samples)
    radius = np.concatenate([norms_of_samples(s.embeddings[None], s.lengths).numpy() for _, s in victim.shaken(targets)])
    found = push(victim, targets, eps, 4, seed=0)
    for pushed in found.values():
        assert (pushed.norms <= eps * radius * (1 + 1e-5)).all()
    np.testing.assert_allclose(found["noise"].norms, eps * radius, rtol=1e-4)
    alone = push(victim, targets[5:6], eps, 4, seed=0)
    assert all(alone[name].predicted[0] == found[name].predicted[5] for name in found), "each row has its own noise"


# -- words -------------------------------------------------------------------------------------------------------------
def test_neighbours_are_words_of_the_same_case(decoder: Prepared, encoder: Prepared) -> None:
    for own in (decoder, encoder):
        near = Neighbours(own.model)
        assert near.words and all(word.isalpha() and len(word) > 1 for word in near.words)
        found = near.nearest(["was", "Was", "WAS", "wAs", "unheardof"], 5)
        assert found["wAs"] == [] and len(found["was"]) == 5 and len(found["unheardof"]) == 5
        for word, others in found.items():
            assert all(case_of(other) == case_of(word) and other.lower() != word.lower() for other in others)
        word, index = next(iter(near.words.items()))
        assert near.ids(f" {word}") == [index]


def test_neighbours_are_the_nearest_by_cosine(decoder: Prepared) -> None:
    near = Neighbours(decoder.model)
    lower = [word for word in near.words if word.islower()]
    table = decoder.model.embed(torch.tensor([[near.words[word] for word in lower]]))[0].detach()
    own = table[lower.index("was")]
    cosines = (table @ own / table.norm(dim=1) / own.norm()).tolist()
    best = [word for _, word in sorted(zip(cosines, lower, strict=True), reverse=True) if word != "was"][:4]
    assert near.nearest(["was"], 4)["was"] == best


def test_similar_texts_by_their_embeddings(decoder: Prepared) -> None:
    near = Neighbours(decoder.model)
    same, other, empty = near.similar("the film was good", ["the film was good", "42 %", ""])
    assert same == pytest.approx(1.0) and other < same and empty == 0.0
    assert near.similar("anything", []) == []


def test_words_are_mapped_to_their_tokens(any_head: Prepared) -> None:
    near, tokenizer = Neighbours(any_head.model), any_head.model.tokenizer
    for sample, target in zip(any_head.samples, any_head.victim.targets(any_head.samples), strict=True):
        text = content_text(sample)
        whole = Words(text)
        ids = list(target.documents[0].ids)[slice(*target.span)]
        tokens = tokens_of_words(whole.spans, near.ids(text), near.offsets(text), ids)
        for place, places in enumerate(tokens[1:], start=1):
            assert str(tokenizer.decode([ids[i] for i in places])).strip().lower() == whole[place].lower()
    assert tokens_of_words([(0, 3)], [1, 2], [], [1, 2]) == [[]]


# -- a model whose best swap is known ----------------------------------------------------------------------------------
class Linear(nn.Module):
    """Class scores are a linear function of the sum of a text's embeddings: the gradient tells everything."""

    head_kind, kind, labels = "class", "encoder", LABELS
    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.tokenizer = tiny_encoder_tokenizer()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Embedding.from_pretrained(torch.randn(len(self.tokenizer), 8, generator=generator))
        self.weight = torch.randn(8, generator=generator)
        self.bias = 0.0

    def embed(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.table(ids))

    def hidden(self, embeddings: Tensor, positions: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return embeddings

    def class_logits(self, hidden: Tensor, lengths: tuple[int, ...]) -> Tensor:
        sums = torch.stack([part.sum(0) for part in hidden[0].split(list(lengths))])
        score = sums @ self.weight + self.bias
        return torch.stack([-score / 2, score / 2], dim=1)


def linear_cases() -> Iterator[tuple[Linear, Sample, str]]:
    """A linear model, a row that it has right, and the only swap of one word that makes it wrong."""
    for seed in range(5):
        model = Linear(seed)
        near = Neighbours(cast(LanguageModel, model))
        value = {word: float(model.table.weight[index] @ model.weight) for word, index in near.words.items()}
        text = " ".join(random.Random(seed).sample(sorted(value), 8))
        sample = labelled(text, 1, Origin("rows", 1), ClassifyTask(), "class", LABELS)
        pool = near.nearest(text.split(), 50)
        words = text.split()
        swaps = {
            " ".join([*words[:place], new, *words[place + 1 :]]): value[new] - value[old]
            for place, old in enumerate(words)
            for new in pool[old]
        }
        ordered = sorted(swaps, key=swaps.__getitem__)
        victim = Victim(cast(LanguageModel, model), ClassifyTask(), Encoder(model.tokenizer, 128, "encoder"), 512)
        (answer,) = victim.ask([sample])
        # Between the best and the second best swap lies the border.
        model.bias = -answer.lead - (swaps[ordered[0]] + swaps[ordered[1]]) / 2
        yield model, sample, ordered[0]


@pytest.mark.parametrize("case", range(5))
def test_the_gradient_finds_the_only_swap_that_works(case: int) -> None:
    model, sample, best = list(linear_cases())[case]
    encoder = Encoder(model.tokenizer, 128, "encoder")
    victim = Victim(cast(LanguageModel, model), ClassifyTask(), encoder, 512)
    assault = Assault(victim, [sample], Robustness(attacks=["gradient"], queries=5, similarity=0.0), 0)
    assert assault.right.all()
    (found,) = assault.texts("gradient")
    assert found is not None and found.broken and found.queries <= 5
    assert found.text == best


# -- prompts -----------------------------------------------------------------------------------------------------------
def test_another_text_changes_the_last_question_alone(words: Prepared) -> None:
    sample, victim = words.samples[0], words.victim
    shown = [Message("user", sample.messages[-2].content), Message("assistant", "positive")]
    prompted = sample.with_messages([*shown, *sample.messages])
    changed = victim.with_text(prompted, "Something else {labels}.")
    assert changed.messages[:2] == tuple(shown) and changed.messages[3] == sample.messages[-1] and changed.id == sample.id
    assert changed.messages[2].content == "Something else {labels}.\n\nnegative, positive?"
    lost = sample.with_messages([Message("user", "What?"), sample.messages[-1]])
    with pytest.raises(DataError, match="does not show"):
        victim.with_text(lost, "Something else.")


def test_rows_without_label_are_refused(decoder: Prepared) -> None:
    with pytest.raises(DataError, match="no label"):
        decoder.assault([dataclasses.replace(decoder.samples[0], label=None)])


def test_synonyms_come_from_the_named_wordnet(decoder, tmp_path) -> None:
    tiny_wordnet(tmp_path)
    samples = [labelled("a good film", 1, Origin("rows", 0), decoder.task, "classifier", LABELS)]
    assault = decoder.assault(samples, wordnet=str(tmp_path))
    assault.clean = [Answer(1.0, True)]
    assert assault.synonyms == {"a": [], "good": ["fine"], "film": ["movie"]} != assault.nearest
    with pytest.raises(ValidationError, match="for the `synonym` attack"):
        Robustness(attacks=["typo"], wordnet="dict")
    with pytest.raises(DataError, match="no WordNet"):
        _ = decoder.assault(wordnet=str(tmp_path / "elsewhere")).synonyms
