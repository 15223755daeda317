"""Formats become samples; rows that do not fit are put aside with a rule and, where it helps, the nearest right word."""

from __future__ import annotations

from typing import Any

import pytest

from uplift.core.errors import DataError
from uplift.core.recipe import ChatTask, ClassifyTask, Split, TextTask
from uplift.core.values import Message, Origin, Sample
from uplift.data.formats import content_text, detect_format, to_samples
from uplift.data.rows import Row


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, Origin("f", index + 1)) for index, value in enumerate(values)]


USER, GPT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASKED, ANSWERED = Message("user", "q"), Message("assistant", "a", learn=True)


def chat(*values: dict[str, Any], system: str | None = None) -> list[tuple[Message, ...]]:
    converted = to_samples(rows(*values), ChatTask(system=system), "language")
    assert not converted.quarantined, converted.quarantined
    return [sample.messages for sample in converted.samples]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"messages": [USER]}, "messages"),
        ({"conversations": []}, "sharegpt"),
        ({"instruction": "i", "output": "o", "text": "t"}, "alpaca"),
        ({"prompt": "p", "completion": "c"}, "prompt_completion"),
        ({"text": "t", "label": 1}, "label"),
        ({"text": "t"}, "text"),
    ],
)
def test_detection(values: dict[str, Any], name: str) -> None:
    assert detect_format(rows(values, {"other": 1}, values)) == name


def test_detection_lists_the_columns() -> None:
    with pytest.raises(DataError, match="the columns are: body, stars"):
        detect_format(rows({"body": "x", "stars": 1}))


def test_chat_formats_agree() -> None:
    turns = (ASKED, ANSWERED)
    assert chat({"messages": [USER, GPT]}) == [turns]
    assert chat({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}) == [turns]
    assert chat({"instruction": "q", "input": "", "output": "a"}) == [turns]
    assert chat({"prompt": "q", "completion": "a"}) == [turns]
    assert chat({"prompt": [USER], "completion": [GPT]}) == [turns]
    assert chat({"instruction": "q", "input": "more", "output": "a"})[0][0].content == "q\n\nmore"


def test_system_turns_and_weights() -> None:
    system = Message("system", "s")
    assert chat({"messages": [USER, GPT]}, system="s") == [(system, ASKED, ANSWERED)]
    own = {"role": "system", "content": "own"}
    assert chat({"messages": [own, USER, GPT]}, system="s")[0][0].content == "own"
    assert chat({"system": "s", "instruction": "q", "output": "a"}) == [(system, ASKED, ANSWERED)]
    turns = chat({"messages": [USER, {**GPT, "weight": 0}, USER, GPT]})[0]
    assert [message.learn for message in turns] == [False, False, False, True]


@pytest.mark.parametrize(
    ("values", "rule", "said"),
    [
        ({"messages": [USER, {"role": "asistant", "content": "a"}]}, "role", "did you mean `assistant`"),
        ({"messages": [USER, {"role": None, "content": "a"}]}, "role", "None"),
        ({"messages": [USER, {"role": "assistant", "contnt": "a"}]}, "missing_field", "no `content`"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty_text", "messages[1].content"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "null", "messages[1].content"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "wrong_type", "int"),
        ({"messages": [USER, {**GPT, "tool_calls": [{}]}]}, "unsupported_field", "tool_calls"),
        ({"messages": [USER, "a"]}, "wrong_type", "str"),
        ({"messages": []}, "empty_text", "no turns"),
        ({"messages": "q"}, "wrong_type", "list of turns"),
        ({"messages": [USER]}, "no_answer", "no assistant"),
        ({"messages": [USER, GPT, {"role": "system", "content": "s"}]}, "role_order", "system"),
        ({"message": [USER, GPT]}, "missing_field", "did you mean `message`"),
    ],
)
def test_bad_conversations(values: dict[str, Any], rule: str, said: str) -> None:
    good = {"messages": [USER, GPT]}
    converted = to_samples(rows(good, values, good), ChatTask(), "language")
    assert len(converted.samples) == 2
    [bad] = converted.quarantined
    assert (bad.rule, bad.origin.line) == (rule, 2) and said in bad.detail


def test_classification_both_ways() -> None:
    task = ClassifyTask(labels={"0": "bad", "1": "good"}, prompt="{labels}? {text} {other}")
    data = rows({"text": "{labels} {text}", "label": 1}, {"text": "x", "label": "0"})
    words, classes = to_samples(data, task, "language"), to_samples(data, task, "class")
    assert words.labels == classes.labels == ("bad", "good")
    assert [sample.label for sample in words.samples] == [sample.label for sample in classes.samples] == [1, 0]
    assert words.samples[0].messages == (
        Message("user", "bad, good? {labels} {text} {other}"),
        Message("assistant", "good", learn=True),
    )
    assert words.samples[0].text is None and classes.samples[0].text == "{labels} {text}"
    # Both heads must see the same split, so ids and contents agree.
    for a, b in zip(words.samples, classes.samples, strict=True):
        assert a.id == b.id and content_text(a) == content_text(b)


def test_labels_have_one_order_and_one_spelling() -> None:
    data = rows(*({"text": f"t{value}", "label": value} for value in (10, "9", 9.0, 2, True)))
    converted = to_samples(data, ClassifyTask(), "class")
    assert converted.labels == ("2", "9", "10", "true")
    assert [sample.label for sample in converted.samples] == [2, 1, 1, 0, 3]
    merged = to_samples(data, ClassifyTask(labels={"10": "many", "9": "few", "2": "few", "true": "few"}), "class")
    assert merged.labels == ("few", "many")


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"text": "x", "label": None}, "null"),
        ({"text": "x", "label": [1]}, "wrong_type"),
        ({"text": "x", "label": 1.5}, "wrong_type"),
        ({"text": "x", "label": ""}, "empty_text"),
        ({"text": "x"}, "missing_field"),
        ({"text": "x", "label": "poss"}, "unknown_label"),
        ({"text": "  ", "label": "pos"}, "empty_text"),
        ({"text": "a\0", "label": "pos"}, "nul"),
        ({"text": "\ud800", "label": "pos"}, "surrogate"),
        ({"label": "pos"}, "missing_field"),
    ],
)
def test_bad_labels_and_texts(values: dict[str, Any], rule: str) -> None:
    data = rows({"text": "a", "label": "pos"}, values, {"text": "b", "label": "neg"})
    converted = to_samples(data, ClassifyTask(labels={"pos": "pos", "neg": "neg"}), "class")
    assert [(bad.rule, bad.origin.line) for bad in converted.quarantined] == [(rule, 2)]
    assert len(converted.samples) == 2


def test_what_is_no_classification() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        to_samples(rows({"text": "a", "label": 1}, {"text": "b", "label": 1}), ClassifyTask(), "class")
    with pytest.raises(DataError, match="does not look like a label"):
        to_samples(rows(*({"text": "a", "label": f"free {i}"} for i in range(50))), ClassifyTask(), "class")
    with pytest.raises(DataError, match="no column `text`, did you mean `txt`"):
        to_samples(rows({"txt": "a", "label": 1}), ClassifyTask(), "class")
    with pytest.raises(DataError, match="no answers to learn"):
        to_samples(rows({"text": "a", "label": 1}), ChatTask(), "language")


def test_ids_follow_content_and_count_repeats() -> None:
    data = rows(*({"text": text, "label": label} for text, label in [("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")]))
    samples = to_samples(data, ClassifyTask(), "class").samples
    assert samples[0].id == samples[1].id == samples[3].id != samples[2].id
    assert [sample.extras.get("occurrence", 0) for sample in samples] == [0, 1, 0, 2]
    one, two, three = (
        to_samples(rows({"messages": [{"role": "user", "content": q}, {**GPT, "content": a}]}), ChatTask(), "language").samples[
            0
        ]
        for q, a in [("q", "a"), ("q", "b"), ("p", "a")]
    )
    assert one.id == two.id != three.id
    assert content_text(one) == "q"


def test_groups() -> None:
    data = rows({"text": "a", "doc": 1}, {"text": "b", "doc": None}, {"text": "c", "doc": "x"})
    converted = to_samples(data, TextTask(), "language", split=Split(by="group", group="doc"))
    assert [sample.group for sample in converted.samples] == ["1", "x"]
    assert [bad.rule for bad in converted.quarantined] == ["missing_field"]
    with pytest.raises(DataError, match="data.split.group"):
        to_samples(data, TextTask(), "language", split=Split(by="group", group="document"))


def test_plain_text_keeps_every_character() -> None:
    text = "  Ünï \n\n <|im_end|> {x}\t"
    [sample] = to_samples(rows({"text": text}), TextTask(), "language").samples
    assert isinstance(sample, Sample) and sample.text == text
