"""Distillation as a technique: teachers of every kind, their kept answers, and what must not be compared."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from uplift.core.errors import DataError, RecipeError
from uplift.core.legality import clashes_of
from uplift.core.recipe import ClassifyTask
from uplift.core.values import Corpus, Encoded, Message, Origin, Progress, Sample
from uplift.data.chat import Encoder
from uplift.data.packing import pack
from uplift.learn.scoring import prompted, score_classes, score_labels
from uplift.techniques import on_policy, teacher as teachers
from uplift.techniques.answer_cache import AnswerCache
from uplift.techniques.distill.distill import Distill
from uplift.techniques.distill.match_attention import MatchAttention
from uplift.techniques.distill.match_hidden import MatchHidden, distance, even_pairs
from uplift.techniques.label_teacher import _asked, label_log_probabilities
from uplift.testing.passes import forward_pass, open_tiny, outputs, random_batch
from uplift.testing.tiny import CHAT_TEMPLATE, tiny_causal, tiny_encoder, tiny_recipe, tiny_rows
from uplift.testing.training import differences, train, train_in_two_parts

LABELS = ("negative", "positive")


def other_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose ids mean other words, and that cuts text elsewhere."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", "<|im_start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([row["text"] for row in tiny_rows("text", 20, seed=5)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Teachers beside the student of ``model_folders``."""
    root = tmp_path_factory.mktemp("teachers")
    found = {
        "other": tiny_causal(root / "other", seed=1),
        "third": tiny_causal(root / "third", seed=2, num_hidden_layers=3),
        "padded": tiny_causal(root / "padded", seed=1, vocab_size=384),
        "wide": tiny_causal(root / "wide", seed=3, hidden_size=48, num_hidden_layers=4),
        "foreign": tiny_causal(root / "foreign", seed=4),
        "encoder": tiny_encoder(root / "encoder", seed=5),
    }
    other_tokenizer().save_pretrained(found["foreign"])
    classifier = open_tiny(found["encoder"], "class")
    torch.nn.init.normal_(classifier.pretrained.classifier.weight, generator=torch.Generator().manual_seed(0))
    classifier.save(found["encoder"].with_name("classifier"))
    return found | {"classifier": found["encoder"].with_name("classifier")}


def begun(model: Any, **options: Any) -> Distill:
    """The technique, ready to be asked for its terms."""
    technique = Distill.model_validate({"weight": 1.0, **options})
    technique.edit(model)
    technique.begin(model, dict(model.parameters_by_name()))
    return technique


def gradient(model: Any, technique: Any, batch: Any) -> tuple[float, Tensor]:
    """Loss and its gradient (all parameters end to end) of one batch, the task's own term included."""
    model.zero_grad()
    forward = forward_pass(model, batch)
    added = sum(term.sum for term in technique.terms(forward, batch).values())
    loss = forward.task_loss + added
    loss.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters_by_name().values()]
    return float(loss.detach()), torch.cat([each.flatten() for each in found])


def reference(model: Any, teacher: Any, batch: Any, size: int = 320) -> tuple[float, Tensor]:
    """KL(teacher || student) over the trained places from plain transformers forwards of each sample alone."""
    model.zero_grad()
    total, begin = torch.zeros(()), 0
    for length in batch.lengths:
        part = slice(begin, begin + length)
        ids = batch.ids[:, part]
        own = model.pretrained(input_ids=ids).logits[0, :, :size].log_softmax(-1)
        with torch.no_grad():
            its = teacher.pretrained(input_ids=ids).logits[0, :, :size].log_softmax(-1)
        total = total + (F.kl_div(own, its, log_target=True, reduction="none").sum(-1) * batch.weights[0, part]).sum()
        begin += length
    total.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters_by_name().values()]
    return float(total.detach()), torch.cat([each.flatten() for each in found])


# -- teachers that speak -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("objective", ["forward", "reverse", "jsd"])
def test_a_model_is_its_own_teacher_without_loss_or_gradient(opener, objective) -> None:
    model, batch = opener(), random_batch()
    loss, found = gradient(model, begun(model, objective=objective, temperature=2.0), batch)
    assert abs(loss) < 1e-5 and float(found.abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["other", "third", "padded"])
def test_loss_and_gradient_are_those_of_plain_forwards(opener, folders, name) -> None:
    model, batch = opener(), random_batch()
    loss, found = gradient(model, begun(model, teacher=str(folders[name])), batch)
    expected, wanted = reference(model, open_tiny(folders[name]), batch)
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_weight_divides_the_loss(opener, folders) -> None:
    model, batch = opener(), random_batch()
    whole, only = gradient(model, begun(model, teacher=str(folders["other"])), batch)
    task, plain = gradient(model, begun(model, weight=0.0), batch)
    half, mixed = gradient(model, begun(model, teacher=str(folders["other"]), weight=0.3), batch)
    assert half == pytest.approx(0.3 * whole + 0.7 * task, rel=1e-5)
    torch.testing.assert_close(mixed, 0.3 * only + 0.7 * plain, rtol=1e-4, atol=1e-5)


def test_two_teachers_are_the_mean_of_their_probabilities(opener, folders) -> None:
    model, batch, names = opener(), random_batch(), ("other", "third")
    loss, _ = gradient(model, begun(model, teacher=[str(folders[name]) for name in names]), batch)
    said = [outputs(open_tiny(folders[name]), batch)[0].softmax(-1) for name in names]
    mean, own = torch.stack(said).mean(0), outputs(model, batch)[0].log_softmax(-1)
    expected = ((mean * (mean.log() - own)).sum(-1) * batch.weights[0]).sum()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_never_trains(opener, folders) -> None:
    model, batch = opener(), random_batch()
    technique = Distill(teacher=str(folders["other"]), weight=1.0)
    technique.edit(model)
    train_steps_with_task(model, technique, batch)
    (teacher,) = technique._models
    assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    technique.observe(Progress(step=1), {"loss_distill": 0.5, "loss_task": 1.0})
    technique.observe(Progress(step=2), {"loss_distill": 0.4, "loss_task": 1.0})
    technique.finish(model)
    assert technique.effect().passed and technique.effect().value == pytest.approx(1.45)


def test_a_teacher_that_changed_is_found_out(opener, folders) -> None:
    model = opener()
    technique = begun(model, teacher=str(folders["third"]))
    for step in (1, 2):
        technique.observe(Progress(step=step), {"loss_distill": 0.5, "loss_task": 1.0})
    with torch.no_grad():
        next(technique._models[0].parameters()).view(-1)[0] += 1.0
    technique.finish(model)
    assert not technique.effect().passed and "teacher changed" in technique.effect().detail


def train_steps_with_task(model: Any, technique: Any, batch: Any) -> None:
    parameters = dict(model.parameters_by_name())
    technique.begin(model, parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    model.train()
    losses = []
    for _ in range(4):
        forward = forward_pass(model, batch)
        loss = sum(term.sum for term in technique.terms(forward, batch).values()) + forward.task_loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0], losses


def test_techniques_that_name_one_teacher_share_it(opener, folders) -> None:
    model, batch = opener(), random_batch()
    first, second = begun(model, teacher=str(folders["other"])), begun(model, teacher=str(folders["other"]))
    assert first._models[0] is second._models[0]
    forward = forward_pass(model, batch)
    assert forward.under(first._models[0]) is forward.under(second._models[0])


def test_another_tokenizer_is_refused(opener, folders) -> None:
    model = opener()
    with pytest.raises(RecipeError, match="another tokenizer") as caught:
        begun(model, teacher=str(folders["foreign"]))
    assert caught.value.fix
    assert not teachers.same_tokens(model.tokenizer, open_tiny(folders["foreign"]).tokenizer)


def test_before_a_change_of_structure_it_keeps_the_old_model(tmp_path) -> None:
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "distill"}, {"use": "block_expansion"}], train={"steps": 2})
    made = train(recipe, tmp_path / "runs").techniques
    assert isinstance(made[0], Distill) and made[0].unchanged


def test_label_smoothing_is_refused(tmp_path) -> None:
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "distill"}, {"use": "label_smoothing"}])
    assert any("smooth already" in clash.why and clash.fix for clash in clashes_of(recipe))


def test_shuffled_answers_belong_to_other_places(opener, folders) -> None:
    model, batch = opener(), random_batch()
    technique = begun(model, teacher=str(folders["other"]), shuffle=True)
    forward = forward_pass(model, batch)
    said = technique._live(forward)
    seen = []
    forward.distilled = lambda teacher, objective, share: (seen.append(teacher), (torch.zeros(()), torch.zeros(())))[1]  # type: ignore[method-assign]
    technique.terms(forward, batch)
    whole, moved = (each.chunk(slice(0, len(said)), 1.0, 320)[0] for each in (said, seen[0]))
    assert not bool((whole == moved).all(-1).any()), "no place keeps its own answer"
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, moved.tolist())), "and none is lost"


# -- teachers with other tokens ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("align", ["uld", "spans"])
def test_a_teacher_with_other_tokens_is_compared_where_both_end(folders, tmp_path, align) -> None:
    options = {"use": "distill", "teacher": str(folders["foreign"]), "align": align, "weight": 0.7}
    recipe = tiny_recipe(tmp_path, "chat", techniques=[options], train={"steps": 8, "save_every": 4})
    whole = train(recipe, tmp_path / "whole")
    effect = whole.techniques[0].effect()
    assert effect.passed, effect
    done, total = whole.techniques[0]._seen
    assert done == total if align == "spans" else 0 < done <= total, "all tokens are inside of common spans"
    assert not differences(whole, train_in_two_parts(recipe, tmp_path / "parts", 5))


def test_a_foreign_copy_of_itself_has_no_distance(opener, folders) -> None:
    model = opener()
    turns = (Message("user", "What colour?"), Message("assistant", "Green, as ever.", learn=True))
    samples = [Sample(f"c{i}", Origin("rows", i), messages=turns) for i in range(2)]
    technique = Distill(teacher=str(folders["other"]), align="spans", weight=1.0)
    technique.samples(Corpus(samples, "train"))
    technique.begin(model, dict(model.parameters_by_name()))
    batch = packed(model, samples)
    away, found = gradient(model, technique, batch)
    technique._foreign.teacher = model  # type: ignore[union-attr]
    own, none = gradient(model, technique, batch)
    assert away > 0.01 and abs(own) < 1e-5 and float(found.abs().max()) > 1e-4 > float(none.abs().max())


@pytest.mark.parametrize("wrong", [{"cache": True}, {"shuffle": True}, {"objective": "jsd"}, {"teacher": []}])
def test_options_that_alignment_does_not_know_are_refused(wrong) -> None:
    with pytest.raises(ValidationError, match="align"):
        Distill.model_validate({"teacher": "x", "align": "spans", **wrong})


# -- the model's own answers -------------------------------------------------------------------------------------------
def chats(count: int = 6) -> list[Sample]:
    made = []
    for index, row in enumerate(tiny_rows("chat", count)):
        turns = tuple(Message(m["role"], m["content"], learn=m["role"] == "assistant") for m in row["messages"])
        made.append(Sample(f"c{index}", Origin("rows", index), messages=turns))
    return made


def test_without_own_answers_it_is_plain_distillation_bit_for_bit(folders, tmp_path) -> None:
    options = {"use": "distill", "teacher": str(folders["other"])}
    found = []
    for changes in ({}, {"on_policy": 0.0, "max_new_tokens": 7}):
        recipe = tiny_recipe(tmp_path, "chat", techniques=[{**options, **changes}], train={"steps": 4})
        found.append(train(recipe, tmp_path / str(len(found))))
    assert not differences(*found)


def test_the_teacher_judges_what_the_model_wrote(opener, folders) -> None:
    model, samples = opener(), chats()
    batch = packed(model, samples)
    technique = begun(model, teacher=str(folders["other"]), on_policy=1.0, max_new_tokens=6, objective="reverse")
    loss, found = gradient(model, technique, batch)
    teacher, expected, begin = open_tiny(folders["other"]), 0.0, 0
    ends = Encoder(model.tokenizer, 128, "causal").end_ids
    written = on_policy.own_answers(model, batch, range(len(samples)), ends, 6)
    for sample, each, length in zip(samples, written, batch.lengths, strict=True):
        count = int(sum(each.weights))
        prompt = each.ids[: len(each.ids) - count]
        assert prompt == Encoder(model.tokenizer, 128, "causal").encode_prompt(sample) and 1 <= count <= 6
        ids = torch.tensor([each.ids])
        with torch.no_grad():
            own, its = (m.pretrained(input_ids=ids).logits[0, -count - 1 : -1].log_softmax(-1) for m in (model, teacher))
        weight = float(batch.weights[0, begin : begin + length].sum())
        expected += weight * float((own.exp() * (own - its)).sum(-1).mean())
        begin += length
    assert loss == pytest.approx(expected, rel=1e-4) and float(found.abs().max()) > 0
    assert technique._written == sum(int(sum(each.weights)) for each in written)


def test_own_answers_do_not_depend_on_company(opener) -> None:
    model, samples = opener(), chats()
    ends = Encoder(model.tokenizer, 128, "causal").end_ids
    together = on_policy.own_answers(model, packed(model, samples), range(len(samples)), ends, 8)
    for sample, expected in zip(samples, together, strict=True):
        (alone,) = on_policy.own_answers(model, packed(model, [sample]), [0], ends, 8)
        assert alone == expected
    later = replace(packed(model, samples), progress=Progress(step=7))
    assert on_policy.own_answers(model, later, range(len(samples)), ends, 8) != together, "every step draws anew"


def test_a_share_of_the_samples_is_drawn(opener) -> None:
    batch = random_batch(tuple([4] * 400))
    sizes = [len(on_policy.drawn(batch, share)) for share in (0.0, 0.25, 1.0)]
    assert sizes[0] == 0 and 60 < sizes[1] < 140 and sizes[2] == 400
    assert set(on_policy.drawn(batch, 0.25)) <= set(on_policy.drawn(batch, 0.5))


def test_a_run_on_its_own_answers_continues_bit_for_bit(folders, tmp_path) -> None:
    options = {"use": "distill", "teacher": str(folders["other"]), "on_policy": 0.5, "max_new_tokens": 6, "weight": 0.7}
    recipe = tiny_recipe(tmp_path, "chat", rows=48, techniques=[options], train={"steps": 4, "save_every": 2})
    whole = train(recipe, tmp_path / "whole")
    assert whole.techniques[0].effect().passed and "the model's own" in whole.techniques[0].effect().detail
    again = train_in_two_parts(recipe, tmp_path / "parts", 3)
    assert not differences(whole, again) and whole.techniques[0].effect() == again.techniques[0].effect()


@pytest.mark.parametrize(
    ("task", "techniques", "words"),
    [
        ("text", [], "no question in words"),
        ("chat", [{"use": "neftune"}], "own samples"),
    ],
)
def test_own_answers_need_questions_and_exact_embeddings(tmp_path, task, techniques, words) -> None:
    recipe = tiny_recipe(tmp_path, task, techniques=[{"use": "distill", "on_policy": 0.5}, *techniques])
    assert any(words in clash.why for clash in clashes_of(recipe)), clashes_of(recipe)


# -- kept answers ------------------------------------------------------------------------------------------------------
def calls_of(technique: Distill) -> list[int]:
    """Grows by one with every pass through the teacher."""
    seen: list[int] = []
    technique._models[0].pretrained.model.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kept_answers_with_all_words_are_the_live_ones(opener, folders, tmp_path, temperature) -> None:
    model, batch = opener(), random_batch()
    options: dict[str, Any] = {"teacher": str(folders["other"]), "temperature": temperature, "weight": 0.7}
    live = gradient(model, begun(model, **options), batch)
    technique = Distill.model_validate({**options, "cache": True, "keep": 320})
    technique.locate(Path(), tmp_path)
    technique.edit(model)
    technique.begin(model, dict(model.parameters_by_name()))
    calls = calls_of(technique)
    for expected_calls in (1, 1):
        loss, found = gradient(model, technique, batch)
        assert len(calls) == expected_calls, "the teacher is asked once"
        assert loss == pytest.approx(live[0], rel=1e-6)
        torch.testing.assert_close(found, live[1], rtol=1e-6, atol=1e-6)
    assert technique.state() and list(tmp_path.glob(".teachers/*/*.safetensors")), "on disk with every checkpoint"
    again = Distill.model_validate({**options, "cache": True, "keep": 320})
    again.locate(Path(), tmp_path)
    again.begin(model, dict(model.parameters_by_name()))
    calls = calls_of(again)
    torch.testing.assert_close(gradient(model, again, batch)[1], live[1], rtol=1e-6, atol=1e-6)
    assert not calls, "another run finds them"


def test_changed_tokens_or_masks_find_no_kept_answer(opener, folders, tmp_path) -> None:
    model = opener()
    technique = Distill(teacher=str(folders["other"]), cache=True, keep=8)
    technique.locate(Path(), tmp_path)
    technique.begin(model, dict(model.parameters_by_name()))
    calls, ids = calls_of(technique), [5, 9, 40, 41, 42]
    for changed, weights in ((ids, [0, 0, 1, 1, 1]), ([5, 9, 40, 41, 43], [0, 0, 1, 1, 1]), (ids, [0, 1, 1, 1, 1])):
        before = len(calls)
        batch = pack([Encoded("same", changed, [float(w) for w in weights])], device="cpu", progress=Progress(), seed=0)
        gradient(model, technique, batch)
        assert len(calls) == before + 1
    gradient(model, technique, pack([Encoded("x", ids, [0.0, 0, 1, 1, 1])], device="cpu", progress=Progress(), seed=0))
    assert len(calls) == 3, "the tokens alone say what is asked, not the sample's name or company"


def test_kept_answers_survive_a_damaged_disk_with_words(tmp_path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(b"one", (torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.int32)))
    cache.flush()
    opened = AnswerCache(tmp_path)
    log_p, words = opened.get(b"one") or (None, None)
    assert log_p is not None and log_p.shape == (2, 4) and words is not None and int(words.sum()) == 6
    assert opened.get(b"two") is None and (opened.hits, opened.misses) == (1, 1)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="damaged") as caught:
        AnswerCache(tmp_path)
    assert caught.value.fix


def test_a_cached_run_continues_bit_for_bit(tmp_path, folders) -> None:
    section = {"steps": 8, "save_every": 4, "batch_tokens": 256}
    found = []
    for name in ("whole", "parts"):
        options = {"use": "distill", "teacher": str(folders["other"]), "cache": True, "keep": 16}
        recipe = tiny_recipe(tmp_path, techniques=[options], train=section, output_dir=str(tmp_path / name))
        run = train if name == "whole" else lambda recipe, root: train_in_two_parts(recipe, root, 5)
        found.append(run(recipe, tmp_path / name))
    assert not differences(*found)
    assert found[0].techniques[0].effect().passed


# -- teachers of labels ------------------------------------------------------------------------------------------------
def reviews(count: int = 8) -> list[Sample]:
    rows = tiny_rows("classify", count)
    names = {"negative": 0, "positive": 1}
    return [
        Sample(f"s{i}", Origin("rows", i), text=row["text"], label=names[row["label"]], extras={"content": row["text"]})
        for i, row in enumerate(rows)
    ]


def packed(model: Any, samples: list[Sample]) -> Any:
    encoder = Encoder(model.tokenizer, 128, model.kind)
    return pack([encoder.encode(sample) for sample in samples], device="cpu", progress=Progress(), seed=0)


@pytest.mark.parametrize("ask", ["auto", "words"])
def test_an_encoder_learns_from_a_language_model_asked_in_words(opener, folders, ask, tmp_path) -> None:
    student, samples = opener("encoder", head="class"), reviews()
    for cache in (False, True, True):
        technique = Distill(teacher=str(folders["other"]), weight=1.0, temperature=2.0, ask=ask, cache=cache)
        technique.locate(Path(), tmp_path)
        technique.samples(Corpus(samples, "train"))
        technique.begin(student, dict(student.parameters_by_name()))
        batch = packed(student, samples[:5])
        loss, found = gradient(student, technique, batch)
        model = open_tiny(folders["other"])
        asked = [_asked(sample, ClassifyTask(), LABELS) for sample in samples]
        items = prompted(asked, LABELS, Encoder(model.tokenizer, 1024, "causal"))
        p = torch.from_numpy(score_labels(model, items, 4096).normalised())[:5]
        z = outputs(student, batch).double()
        warm = (p.log() / 2.0).log_softmax(-1)
        expected = 4.0 * (warm.exp() * (warm - (z / 2.0).log_softmax(-1))).sum()
        assert loss == pytest.approx(float(expected), rel=1e-4) and float(found.abs().max()) > 0
        technique.finish(student)
        assert technique.unchanged and not technique._models
    assert len(list(tmp_path.glob(".teachers/*/*.safetensors"))) == 1


def test_a_classifier_of_the_same_labels_teaches_in_any_order(opener, folders) -> None:
    samples, teacher = reviews(), open_tiny(folders["classifier"], "class")
    straight = label_log_probabilities(teacher, samples, LABELS, "{text}", 128)
    turned = label_log_probabilities(teacher, samples, LABELS[::-1], "{text}", 128)
    torch.testing.assert_close(straight, turned.flip(1))
    encoder = Encoder(teacher.tokenizer, 128, "encoder")
    expected = score_classes(teacher, [encoder.encode(sample) for sample in samples], 4096).log_probabilities
    torch.testing.assert_close(straight, torch.from_numpy(expected).float())
    with pytest.raises(RecipeError, match="does not know the task's labels"):
        label_log_probabilities(teacher, samples, ("bad", "good"), "{text}", 128)
    with pytest.raises(RecipeError, match="does not know the task's labels"):
        label_log_probabilities(open_tiny(folders["encoder"], "class"), samples, LABELS, "{text}", 128)


def test_a_sample_the_teacher_has_not_read_is_refused(opener, folders) -> None:
    student, samples = opener("encoder", head="class"), reviews()
    technique = Distill(teacher=str(folders["classifier"]), weight=0.5)
    technique.samples(Corpus(samples[:4], "train"))
    technique.begin(student, dict(student.parameters_by_name()))
    with pytest.raises(DataError, match="has not seen"):
        gradient(student, technique, packed(student, samples))


def test_a_language_model_teaches_an_encoder_from_a_recipe(tmp_path, folders) -> None:
    encoder = tiny_encoder(tmp_path / "encoder")
    recipe = tiny_recipe(
        tmp_path,
        model={"id": str(encoder)},
        task_options={"head": "classifier"},
        techniques=[{"use": "distill", "teacher": str(folders["other"]), "weight": 0.5}],
        train={"steps": 6},
    )
    trained = train(recipe, tmp_path / "runs")
    assert trained.techniques[0].effect().passed, trained.techniques[0].effect()


# -- hidden states -----------------------------------------------------------------------------------------------------
def test_layers_are_paired_evenly_and_the_last_with_the_last() -> None:
    assert even_pairs(2, 2) == [(1, 1), (2, 2)]
    assert even_pairs(2, 4) == [(1, 2), (2, 4)] and even_pairs(4, 2) == [(2, 1), (4, 2)]
    assert even_pairs(3, 12) == [(1, 4), (2, 8), (3, 12)] and even_pairs(5, 3)[-1] == (5, 3)


def test_the_distance_of_states() -> None:
    states, teacher = torch.randn(5, 8), torch.randn(5, 8)
    assert float(distance(teacher, teacher, "mse").max()) == 0.0
    assert float(distance(3 * teacher, teacher, "cosine").abs().max()) < 1e-6
    expected = (states - teacher).pow(2).sum(1) / teacher.pow(2).sum(1)
    torch.testing.assert_close(distance(states, teacher, "mse"), expected)
    torch.testing.assert_close(distance(states, teacher, "cosine"), 1 - F.cosine_similarity(states, teacher))


@pytest.mark.parametrize("head", ["language", "class"])
def test_hidden_states_are_those_of_transformers(opener, folders, head) -> None:
    model, batch = opener(head=head), random_batch()
    technique = MatchHidden(teacher=str(folders["third"]), layers=[[1, 2], [2, 3]])
    technique.edit(model)
    technique.begin(model, dict(model.parameters_by_name()))
    forward = forward_pass(model, batch)
    (term,) = technique.terms(forward, batch).values()
    teacher, expected, begin = open_tiny(folders["third"]), 0.0, 0
    for length in batch.lengths:
        part = slice(begin, begin + length)
        ids, begin = batch.ids[:, part], begin + length
        with torch.no_grad():
            own, its = (m.pretrained.model(input_ids=ids, output_hidden_states=True).hidden_states for m in (model, teacher))
        weights = batch.weights[0, part] if head == "language" else torch.full((length,), 1.0 / length)
        # transformers lists the last one behind the final norm: only the first pair is looked at here
        expected += float((distance(own[1][0], its[2][0], "mse") * weights).sum())
    assert float(term.sum.detach()) > 0 and term.unit == forward.unit
    only = MatchHidden(teacher=str(folders["third"]), layers=[[1, 2]])
    only.edit(model)
    only.begin(model, dict(model.parameters_by_name()))
    forward = forward_pass(model, batch)
    (term,) = only.terms(forward, batch).values()
    assert float(term.sum.detach()) == pytest.approx(expected, rel=1e-5)


def test_projections_train_and_are_not_saved(tmp_path, folders) -> None:
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "match_hidden", "teacher": str(folders["wide"])}], train={"steps": 6})
    plain = train(tiny_recipe(tmp_path, train={"steps": 6}), tmp_path / "plain")
    whole = train(recipe, tmp_path / "whole")
    assert whole.weights.keys() == plain.weights.keys() and whole.techniques[0].effect().passed
    assert not differences(whole, train_in_two_parts(recipe, tmp_path / "parts", 4))
    found = [value for (_, name), value in sorted(whole.metrics.items()) if name == "loss_match_hidden"]
    assert found[-1] < found[0]
    frozen = tiny_recipe(
        tmp_path, techniques=[{"use": "block_expansion"}, {"use": "match_hidden", "teacher": str(folders["wide"])}]
    )
    with pytest.raises(RecipeError, match="cannot learn its projections"):
        train(frozen, tmp_path / "frozen")


def test_a_layer_that_is_not_there_is_refused(opener, folders) -> None:
    with pytest.raises(RecipeError, match="names a layer"):
        MatchHidden(teacher=str(folders["other"]), layers=[[1, 9]]).edit(opener())
    with pytest.raises(RecipeError, match="another tokenizer"):
        MatchHidden(teacher=str(folders["foreign"])).edit(opener())


def test_both_work_together_and_ask_the_teacher_once(opener, folders) -> None:
    model, batch = opener(), random_batch()
    hidden = MatchHidden(teacher=str(folders["third"]))
    hidden.edit(model)
    hidden.begin(model, dict(model.parameters_by_name()))
    technique = begun(model, teacher=str(folders["third"]))
    calls = calls_of(technique)
    forward = forward_pass(model, batch)
    terms = technique.terms(forward, batch) | hidden.terms(forward, batch)
    assert len(terms) == 2 and len(calls) == 1


# -- attention ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["language", "class"])
def test_attention_is_that_of_transformers(opener, folders, head) -> None:
    model, batch = opener(head=head), random_batch()
    technique = MatchAttention(teacher=str(folders["third"]), layers=[[1, 3], [2, 1]], relations=["attention"])
    technique.edit(model)
    technique.begin(model, dict(model.parameters_by_name()))
    forward = forward_pass(model, batch)
    (term,) = technique.terms(forward, batch).values()
    teacher, expected, begin = open_tiny(folders["third"]), 0.0, 0
    for each in (model, teacher):
        each.pretrained.set_attn_implementation("eager")
    for length in batch.lengths:
        part = slice(begin, begin + length)
        ids, begin = batch.ids[:, part], begin + length
        with torch.no_grad():
            own, its = (m.pretrained.model(input_ids=ids, output_attentions=True).attentions for m in (model, teacher))
        weights = batch.weights[0, part] if head == "language" else torch.full((length,), 1.0 / length)
        for mine, other in ((0, 2), (1, 0)):
            p, q = its[other][0], own[mine][0]
            between = torch.where(p > 0, p * (p.log() - q.log()), torch.zeros_like(p)).sum(-1).mean(0)
            expected += 0.5 * float((between * weights).sum())
    assert float(term.sum.detach()) == pytest.approx(expected, rel=1e-4) and term.unit == forward.unit


def test_relations_follow_their_formula_and_are_zero_against_oneself(opener, folders) -> None:
    """Values of a wider teacher with other heads: softmax(V V' / sqrt(d)) over the tokens before, in equally many heads."""
    model, batch = opener(), random_batch()
    technique = MatchAttention(teacher=str(folders["wide"]), relations=["values"])
    technique.edit(model)
    technique.begin(model, dict(model.parameters_by_name()))
    forward = forward_pass(model, batch)
    (term,) = technique.terms(forward, batch).values()
    states = [forward.attended[2].values[0], forward.under(technique._models[0]).attended[4].values[0]]
    widths = [each.shape[0] * each.shape[2] for each in states]
    heads = max(n for n in range(1, 5) if widths[0] % n == 0 and widths[1] % n == 0)
    expected, begin = 0.0, 0
    for length in batch.lengths:
        part, begin = slice(begin, begin + length), begin + length
        chances = []
        for state, width in zip(states, widths, strict=True):
            wide = state[:, part].permute(1, 0, 2).reshape(length, heads, width // heads)
            scores = torch.einsum("ihd,jhd->hij", wide, wide) / math.sqrt(width // heads)
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            chances.append(scores.masked_fill(later, float("-inf")).softmax(-1))
        q, p = chances
        between = torch.where(p > 0, p * (p.log() - q.log()), torch.zeros_like(p)).sum(-1).mean(0)
        expected += float((between * batch.weights[0, part]).sum().detach())
    assert float(term.sum.detach()) == pytest.approx(expected, rel=1e-4) and expected > 0
    itself = MatchAttention(relations=["queries", "keys", "values", "attention"])
    own = opener()
    itself.edit(own)
    itself.begin(own, dict(own.parameters_by_name()))
    (term,) = itself.terms(forward_pass(own, batch), batch).values()
    assert abs(float(term.sum.detach())) < 1e-6


def test_attention_comes_nearer_and_goes_on_after_a_stop(tmp_path, folders) -> None:
    recipe = tiny_recipe(
        tmp_path, techniques=[{"use": "match_attention", "teacher": str(folders["wide"]), "strength": 10.0}], train={"steps": 6}
    )
    whole = train(recipe, tmp_path / "whole")
    assert whole.techniques[0].effect().passed
    assert not differences(whole, train_in_two_parts(recipe, tmp_path / "parts", 4))
    found = [value for (_, name), value in sorted(whole.metrics.items()) if name == "loss_match_attention"]
    assert found[-1] < found[0]


def test_heads_that_do_not_fit_are_refused(opener, folders, tmp_path) -> None:
    fewer = folders | {"fewer": tiny_causal(tmp_path / "fewer", num_attention_heads=2, num_key_value_heads=1, head_dim=16)}

    def begin(teacher: str = "wide", **options: Any) -> None:
        model, technique = opener(), MatchAttention(teacher=str(fewer[teacher]), **options)
        technique.edit(model)
        technique.begin(model, dict(model.parameters_by_name()))

    with pytest.raises(RecipeError, match="does not fit"):
        begin(heads=7)
    with pytest.raises(RecipeError, match="cannot compare `attention`"):
        begin("fewer", relations=["attention"])
    begin("fewer")
    with pytest.raises(RecipeError, match="names a layer"):
        begin(layers=[[1, 9]])
    with pytest.raises(RecipeError, match="another tokenizer"):
        begin("foreign")
    with pytest.raises(ValidationError, match="named once"):
        begin(relations=["keys", "keys"])
