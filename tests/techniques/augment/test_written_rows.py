"""Rows that models write: two translators, a gap filler, a server; asked once, refused by reason, never what is tested."""

from __future__ import annotations

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from uplift.core.errors import DataError, ModelError, RecipeError
from uplift.core.recipe import ClassifyTask, HfModel
from uplift.core.values import Corpus, Generation, Origin, Sample, Setting
from uplift.data.chat import Encoder
from uplift.data.formats import content_text, labelled
from uplift.data.rewording import MADE_BY, SOURCE, SPANS
from uplift.learn.translation import Translator
from uplift.model.gap_filler import GapFiller
from uplift.techniques.augment.augment_model import AugmentModel, fill_in
from uplift.techniques.augment.back_translation import BackTranslation
from uplift.techniques.augment.synthetic import Synthetic
from uplift.techniques.sieve import Sieve, plain
from uplift.techniques.written_rows import Draft, remembered
from uplift.testing.passes import open_tiny
from uplift.testing.tiny import tiny_causal, tiny_encoder, tiny_encoder_tokenizer, tiny_rows

LABELS = ("negative", "positive")
TASK = ClassifyTask()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("writers")
    tiny_causal(root / "causal", initializer_range=0.3)
    tiny_encoder(root / "encoder")
    tokenizer = tiny_encoder_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **shape)).save_pretrained(root / "masked")
    tokenizer.save_pretrained(root / "masked")
    return root


def samples(count: int = 8, head: str = "language") -> list[Sample]:
    return [
        labelled(row["text"], LABELS.index(row["label"]), Origin("rows", index), TASK, head, LABELS)
        for index, row in enumerate(tiny_rows("classify", count))
    ]


def meet(technique, home: Path, output: Path, *, test: list[Sample] | None = None, model=None):
    """The technique where a recipe would have brought it."""
    model = model or open_tiny(home / "causal")
    model.labels = LABELS
    encoder = Encoder(model.tokenizer, 128, model.kind)
    technique.locate(home, output)
    technique.meet(Setting(model, encoder, TASK, {"validation": Corpus([], "validation"), "test": Corpus(test or [], "test")}))
    return technique


def added(technique, rows: list[Sample]) -> list[Sample]:
    return list(technique.samples(Corpus(rows, "train")))[len(rows) :]


class Scripted:
    """An author that says what it is told, in order, and remembers what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), []

    def write(self, questions, seeds, max_new_tokens, temperature):
        self.asked += questions
        said = [self.texts.pop(0) if self.texts else "" for _ in questions]
        return [Generation(text, 1, 1, "length" if text.endswith("...") else "stop") for text in said]


# -- asked once --------------------------------------------------------------------------------------------------------
def test_rows_are_written_once_and_others_wait_for_them(tmp_path):
    made = []

    def make():
        made.append(1)
        time.sleep(0.3)
        return [Draft(0, 0, "text", 1)]

    found = []
    ask = [threading.Thread(target=lambda: found.append(remembered(tmp_path, {"a": 1}, make))) for _ in range(3)]
    [thread.start() for thread in ask]
    [thread.join() for thread in ask]
    assert len(made) == 1 and len(found) == 3 and all(rows == [Draft(0, 0, "text", 1)] for rows, _ in found)
    rows, file = remembered(tmp_path, {"a": 2}, make)
    assert len(made) == 2 and file != found[0][1] and json.loads(file.read_text())["asked"] == {"a": 2}
    file.write_text("{")
    with pytest.raises(DataError, match="damaged") as caught:
        remembered(tmp_path, {"a": 2}, make)
    assert "remove" in caught.value.fix


def test_a_run_that_goes_on_trains_on_the_same_rows(home, tmp_path, monkeypatch):
    rows, options = samples(), {"max_new_tokens": 8, "temperature": 1.5}
    monkeypatch.setattr(AugmentModel, "author", lambda self, spec: Scripted(*(f"said {i}" for i in range(8))))
    first = meet(AugmentModel(**options), home, tmp_path)
    made = added(first, rows)
    assert [content_text(each) for each in made] == [f"said {i}" for i in range(8)] and first.effect().passed

    def again(self, spec):
        raise AssertionError("asked again")

    monkeypatch.setattr(AugmentModel, "author", again)
    second = meet(AugmentModel(**options), home, tmp_path)
    assert added(second, rows) == made and second.effect() == first.effect()
    for other in ({"seed": 1}, {"prompt": "{text}"}, {"copies": 2}):
        with pytest.raises(AssertionError, match="asked again"):
            added(meet(AugmentModel(**options, **other), home, tmp_path), rows)
    with pytest.raises(AssertionError, match="asked again"):  # other test rows: what may be written has changed
        added(meet(AugmentModel(**options), home, tmp_path, test=samples(3)), rows)


# -- a causal model ----------------------------------------------------------------------------------------------------
def test_what_a_local_model_writes_of_a_row_does_not_depend_on_the_others(home, tmp_path):
    rows = samples(10)
    technique = AugmentModel(temperature=1.0, max_new_tokens=24)
    whole = {d.source: (d.text, d.refused) for d in meet(technique, home, tmp_path).drafts(rows)}
    for index in (0, 4, 9):
        (alone,) = meet(AugmentModel(temperature=1.0, max_new_tokens=24), home, tmp_path / "b").drafts([rows[index]])
        assert (alone.text, alone.refused) == whole[index]
    assert len({text for text, _ in whole.values()}) > 5


def test_the_prompt_names_the_label_and_test_texts_never_come_back(home, tmp_path, monkeypatch):
    rows, held = samples(6), samples(20)[14:]
    texts = [content_text(held[0]).upper(), content_text(rows[1]), "", "fresh words", "fresh  Words", "cut off..."]
    author = Scripted(*texts)
    monkeypatch.setattr(AugmentModel, "author", lambda self, spec: author)
    technique = meet(AugmentModel(), home, tmp_path, test=held)
    (made,) = added(technique, rows)
    for question, row in zip(author.asked, rows, strict=True):
        assert content_text(row) in question and f"label {LABELS[row.label]}." in question
    assert content_text(made) == "fresh words" and made.label == rows[3].label and made.extras[SOURCE] == rows[3].id
    detail = technique.effect().detail
    assert "1 of 6 written rows kept" in detail and technique.effect().value == pytest.approx(1 / 6)
    assert "1 held out" in detail and "2 duplicate" in detail and "1 empty text" in detail and "1 unfinished" in detail


def test_when_nothing_written_is_fit_training_does_not_begin(home, tmp_path, monkeypatch):
    monkeypatch.setattr(AugmentModel, "author", lambda self, spec: Scripted("", "cut off..."))
    with pytest.raises(DataError, match="none of the 2 rows") as caught:
        added(meet(AugmentModel(), home, tmp_path), samples(2))
    assert caught.value.why == "refused: 1 empty text, 1 unfinished" and "rows.json" in str(caught.value.where)


def test_a_model_that_cannot_write_is_refused(home, tmp_path):
    classifier = open_tiny(home / "encoder", "class")
    with pytest.raises(RecipeError, match="cannot write"):
        added(meet(AugmentModel(), home, tmp_path, model=classifier), samples(2, "class"))
    with pytest.raises(ModelError, match="writes nothing"):
        added(meet(AugmentModel(model=HfModel(id="encoder")), home, tmp_path), samples(2))
    with pytest.raises(RecipeError, match="fills no gaps"):
        added(meet(AugmentModel(model=HfModel(id="causal"), method="fill"), home, tmp_path), samples(2))
    with pytest.raises(RecipeError, match="not fit|this length"):
        added(meet(AugmentModel(max_new_tokens=500), home, tmp_path), samples(2))


# -- a masked model ----------------------------------------------------------------------------------------------------
def test_gaps_are_filled_with_other_whole_words(home, tmp_path):
    rows = samples(12)
    technique = AugmentModel(model=HfModel(id="masked"), alpha=0.3)
    made = added(meet(technique, home, tmp_path), rows)
    words = set(GapFiller(HfModel(id="masked"), home, CPU)._words)
    assert len(made) >= 10
    for each in made:
        old = next(content_text(row) for row in rows if row.id == each.extras[SOURCE]).split()
        new = content_text(each).split()
        differing = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        assert len(differing) == round(0.3 * len(old)) and all(b.strip(".,").lower() in words for _, b in differing)
    again = AugmentModel(model=HfModel(id="masked"), alpha=0.3)
    assert added(meet(again, home, tmp_path / "again"), rows) == made


def test_the_gap_filler_is_told_the_label(home, tmp_path, monkeypatch):
    shown, rows = [], samples(6)
    best = GapFiller.best
    monkeypatch.setattr(GapFiller, "best", lambda self, texts, count: shown.extend(texts) or best(self, texts, count))
    added(meet(AugmentModel(model=HfModel(id="masked"), alpha=0.3), home, tmp_path), rows)
    for text, row in zip(shown, rows, strict=True):
        words = content_text(row).split()
        assert text.startswith(f"{LABELS[row.label]}: ") and text.count("[MASK]") == round(0.3 * len(words))


def test_the_likeliest_words_of_a_gap_come_first(home):
    filler, text = GapFiller(HfModel(id="masked"), home, CPU), "the film was [MASK] ."
    ((gap,), (short,)) = filler.best([text, "a [MASK]"], 5)
    ids = filler._tokenizer(text, return_tensors="pt")
    logits = filler._model(**ids).logits[0, ids["input_ids"][0].tolist().index(filler._tokenizer.mask_token_id)]
    log_p = {word: logits.log_softmax(-1)[filler._tokenizer.convert_tokens_to_ids(word)].item() for word in filler._words}
    assert [word for _, word in gap] == sorted(log_p, key=lambda word: -log_p[word])[:5] and len(short) == 5
    assert gap[0][0] == pytest.approx(max(log_p.values()), abs=1e-4)


def test_gaps_leave_labelled_spans_whole(home, tmp_path):
    row = samples(1)[0]
    text = content_text(row)
    spans = ((0, len(text.split()[0]), "SUBJECT"), (len(text) - 8, len(text) - 1, "END"))
    row = Sample(**{**vars(row), "extras": {**row.extras, SPANS: spans}})
    technique = AugmentModel(model=HfModel(id="masked"), alpha=1.0, copies=5)
    for made in added(meet(technique, home, tmp_path), [row]):
        assert [content_text(made)[a:b] for a, b, _ in made.extras[SPANS]] == [text[a:b] for a, b, _ in spans]


def test_a_gap_is_never_filled_with_the_word_that_was_there():
    gap = [(-0.1, "good"), (-2.0, "fine"), (-3.0, "bad")]
    drawn = [fill_in(gap, "Good", 1.0, random.Random(seed)) for seed in range(300)]
    assert set(drawn) == {"Fine", "Bad"} and 180 < drawn.count("Fine") < 250  # odds e : 1
    assert fill_in(gap, "good", 0.0, random.Random(0)) == "fine" and fill_in(gap[:1], "good", 1.0, random.Random(0)) is None


# -- two translators ---------------------------------------------------------------------------------------------------
WORDS = {"good": "bon", "fine": "bon", "film": "cine", "movie": "cine", "the": "le", "was": "fut"}
BACK = {"bon": "fine", "cine": "movie", "le": "the", "fut": "was"}


TEXTS = ["the film was good", "good film the good", "the movie was fine", "was the good movie"]


SHAPE = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}


def told(texts: list[str], table: dict[str, str]) -> list[str]:
    return [" ".join(table[word] for word in text.split()) for text in texts]


def toy_translator(folder: Path, texts: list[str], table: dict[str, str]) -> None:
    """A one-layer BART, trained until it translates these texts without a mistake."""
    vocabulary = ["<pad>", "</s>", "<unk>", *sorted({*WORDS, *BACK})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SHAPE.items()}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None}
    config = BartConfig(vocab_size=len(vocabulary), d_model=32, dropout=0.0, init_std=0.1, **sides, **ends)
    model = BartForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, targets = (torch.tensor(fast(each)["input_ids"]) for each in (texts, told(texts, table)))
    for _ in range(200):
        loss = model(input_ids=ids, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.01
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)


def test_rows_go_through_two_trained_translators_and_come_back_in_other_words(home, tmp_path):
    texts = TEXTS
    toy_translator(home / "there", texts, WORDS)
    toy_translator(home / "back", told(texts, WORDS), BACK)
    rows = [labelled(text, 1, Origin("rows", i), TASK, "language", LABELS) for i, text in enumerate(texts)]
    options = {"model": HfModel(id="there"), "back": HfModel(id="back"), "temperature": 0.0, "max_new_tokens": 8}
    technique = meet(BackTranslation(**options), home, tmp_path)
    made = added(technique, rows)
    # The first and the third row come back as the third, which is a training row.
    assert [content_text(each) for each in made] == ["fine movie the fine", "was the fine movie"]
    assert all(each.label == 1 and each.extras[MADE_BY] == ("back_translation",) for each in made)
    assert "2 duplicate" in technique.effect().detail and technique.effect().passed
    translator = Translator(HfModel(id="there"), home, CPU)
    together = translator.write(texts, [3, 4, 5, 6], 8, 1.5)
    for index, text in enumerate(texts):
        (alone,) = translator.write([text], [3 + index], 8, 1.5)
        assert alone.text == together[index].text
    cut = translator.write(["the film was good"], [0], 2, 0.0)[0]
    assert cut.finished == "length" and cut.text == "le cine"


def test_language_models_are_asked_to_translate_in_words(home, tmp_path, monkeypatch):
    there, back = Scripted("un bon film", ""), Scripted("a fine movie")
    monkeypatch.setattr(BackTranslation, "author", lambda self, spec: there if spec is None and not there.asked else back)
    technique = meet(BackTranslation(ask="To {language}: {text}", ask_back="To {language}: {text}"), home, tmp_path)
    rows = samples(2)
    (made,) = added(technique, rows)
    assert there.asked == [f"To French: {content_text(row)}" for row in rows]
    assert back.asked == ["To English: un bon film"] and content_text(made) == "a fine movie"
    assert "1 empty text" in technique.effect().detail


# -- new rows ----------------------------------------------------------------------------------------------------------
def test_written_rows_pass_every_filter_or_are_counted(home, tmp_path, monkeypatch):
    rows, held = samples(10), samples(30)[20:]
    said = {
        "A wholly new remark about the harbour lights.": "",
        content_text(rows[0]).upper(): "duplicate",
        content_text(held[0]): "held_out",
        "A wholly new remark  about the HARBOUR lights.": "duplicate",
        "A wholly new remark about the harbour lights again.": "near_duplicate",
        "": "empty_text",
        "half a sentence...": "unfinished",
        "It disagrees with its label, says the judge.": "other_label",
    }
    author = Scripted(*said)
    monkeypatch.setattr(Synthetic, "author", lambda self, spec: author)
    monkeypatch.setattr(
        Synthetic, "_agreement", lambda self, author, texts, wanted: [0.1 if "disagrees" in text else 0.9 for text in texts]
    )
    technique = meet(Synthetic(rows=4, attempts=1, examples=2), home, tmp_path, test=held)
    (made,) = added(technique, rows)
    file = json.loads(technique._file.read_text())
    assert {row["text"]: row["refused"] for row in file["rows"]} == {plain(text): why for text, why in said.items()}
    assert made.extras[MADE_BY] == ("synthetic",) and made.label == 0 and made.messages[-1].content == "negative"
    for number, question in enumerate(author.asked):
        label = LABELS[number // 4]
        assert f"label {label}:" in question
        shown = [line[2:] for line in question.splitlines() if line.startswith("- ")]
        assert len(shown) == 2 and {row.label for row in rows if content_text(row) in shown} == {number // 4}
    effect = technique.effect()
    assert effect.passed and "1 of 8 written rows kept" in effect.detail and "distinct-2 1.00" in effect.detail


def test_it_asks_again_for_what_was_refused_and_stops_when_there_is_enough(home, tmp_path, monkeypatch):
    author = Scripted("one two three", "", "four five six", "seven eight nine", "never asked")
    monkeypatch.setattr(Synthetic, "author", lambda self, spec: author)
    technique = meet(Synthetic(rows=1, attempts=5, agree=0.0), home, tmp_path)
    made = added(technique, samples(4))
    assert [(content_text(each), each.label) for each in made] == [("one two three", 0), ("four five six", 1)]
    assert len(author.asked) == 3


def test_the_writer_judges_labels_itself(home, tmp_path):
    technique = meet(Synthetic(rows=3, attempts=2, agree=0.5), home, tmp_path)
    sure = technique._agreement(technique.author(None), ["good", "", "bad"], [1, 0, 1])
    flipped = technique._agreement(technique.author(None), ["good", "", "bad"], [0, 0, 0])
    assert sure[1] == 1.0 and sure[0] + flipped[0] == pytest.approx(1.0, abs=1e-5)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # noqa: N802 (the library's name)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.seen.append(body)
        number = len(self.server.seen)
        said = f"\u201cRemark number {number} of {body['seed']}.\u201d" if "Write one more" in text else "I say: Positive."
        data = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        """Quiet."""


def test_a_server_writes_and_judges(home, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = {"endpoint": f"http://127.0.0.1:{server.server_port}/v1", "endpoint_model": "big", "rows": 2, "attempts": 1}
        technique = meet(Synthetic(**options), home, tmp_path)
        made = added(technique, samples(6))
        assert len(server.seen) == 8 and {body["model"] for body in server.seen} == {"big"}
        assert [each.label for each in made] == [1, 1] and all(content_text(m).startswith("Remark") for m in made)
        assert "2 other label" in technique.effect().detail
        again = meet(Synthetic(**options), home, tmp_path)
        assert added(again, samples(6)) == made and len(server.seen) == 8
    finally:
        server.shutdown()
        server.server_close()


# -- the sieve ---------------------------------------------------------------------------------------------------------
def test_long_overlaps_with_the_test_part_are_found_whatever_surrounds_them():
    words = [f"word{i}" for i in range(40)]
    sieve = Sieve([], [" ".join(words[10:30]), "too short"])
    assert sieve.judge("Well, " + ", ".join(words[12:25]).upper() + " indeed") == "held_out"
    assert sieve.judge(" ".join(words[12:24]) + " and more") == "", "12 words in a row are not 13"
    assert sieve.judge("Too  SHORT") == "held_out" and sieve.judge("it is too short") == ""


def test_repeated_phrases_are_refused_beyond_the_share():
    texts = [f"the plot was thin but the {thing} held it all together" for thing in ("cast", "music", "light")]
    assert [Sieve([], [], said=1.0).judge(text) for text in texts] == [""] * 3
    strict = Sieve([], [], said=0.5)
    assert [strict.judge(text) for text in texts] == ["", "said_before", "said_before"]
    assert strict.distinct == 1.0


def test_answers_lose_quotes_and_broken_characters_alone():
    assert plain('"A fine film."') == "A fine film." and plain("\u201cyes\u201d") == "yes"
    assert plain('"Good" and "bad"') == '"Good" and "bad"' and plain("it\ufffd is\x00 ok\n") == "it is ok"
    assert Sieve([], []).judge("lone \ud800") == "surrogate"


def test_synthetic_refuses_two_authors():
    with pytest.raises(ValueError, match="give one of them"):
        Synthetic(endpoint="http://localhost/v1", model=HfModel(id="x"))
