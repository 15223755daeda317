"""The label audit finds what would be learned wrongly, before step 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from uplift.core.errors import DataError
from uplift.core.values import Message, Origin, Sample
from uplift.data.audit import Audit, audit, preview
from uplift.data.chat import Encoder

Family = Callable[[str], PreTrainedTokenizerFast]
WithTemplate = Callable[[str | None], PreTrainedTokenizerFast]


def chats(*pairs: tuple[str, str]) -> list[Sample]:
    return [
        Sample(f"s{i}", Origin("f", i + 1), (Message("user", q), Message("assistant", a, learn=True)))
        for i, (q, a) in enumerate(pairs)
    ]


def look(samples: list[Sample], encoder: Encoder) -> Audit:
    return audit([encoder.encode(sample) for sample in samples], encoder)


def test_sound_samples_have_no_problem_and_show_what_is_learned(family: Family) -> None:
    found = look(chats(*[(f"question {i}", f"answer {i}") for i in range(9)]), Encoder(family("chatml"), 128, "causal"))
    assert found.problems() == []
    found.raise_if_bad()
    assert len(found.previews) == 3
    assert found.previews[0] == "<|im_start|>user\nquestion 0<|im_end|>\n<|im_start|>assistant\n«answer 0<|im_end|>»"
    assert found.samples == 9 and 0 < found.learned_tokens < found.tokens and found.longest <= 128
    assert "9 samples" in str(found)


def test_masked_samples_are_listed_and_stop_past_five_per_cent(family: Family) -> None:
    encoder = Encoder(family("chatml"), 24, "causal")
    good, masked = ("a", "b"), ("question", "answer")
    few = look(chats(*[good] * 99, (masked[0], masked[1] * 99)), encoder)
    assert few.all_masked == 0 and few.answer_truncated == 1
    few.raise_if_bad()
    tight = Encoder(family("chatml"), 8, "causal")
    samples = chats(*[good] * 10)
    found = look(samples, tight)
    assert found.all_masked == 10 and found.prompt_fills == 10
    with pytest.raises(DataError, match="10 of 10 training samples teach nothing"):
        found.raise_if_bad()


def test_the_limit_is_five_per_cent(family: Family) -> None:
    encoder = Encoder(family("chatml"), 128, "causal")
    mixed = [encoder.encode(sample) for sample in chats(*[("a", "b")] * 100)]
    for count, stops in ((5, False), (6, True)):
        changed = [type(item)(item.id, item.ids, [0.0] * len(item.ids)) for item in mixed[:count]] + mixed[count:]
        found = audit(changed, encoder)
        assert found.all_masked == count and f"{count} of 100 samples teach nothing" in str(found)
        if stops:
            with pytest.raises(DataError):
                found.raise_if_bad()
        else:
            found.raise_if_bad()


def test_truncated_answers_and_missing_ends(family: Family, with_template: WithTemplate) -> None:
    encoder = Encoder(family("chatml"), 32, "causal")
    found = look(chats(("short", "yes"), ("short", "very long " * 30)), encoder)
    assert (found.answer_truncated, found.missing_end) == (1, 0)
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    found = look(chats(("q", "a")), Encoder(with_template(endless), 32, "causal"))
    assert found.missing_end == 1 and "no end-of-turn token" in str(found)


def test_double_starts_and_empty_samples(family: Family, with_template: WithTemplate) -> None:
    twice = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    encoder = Encoder(with_template(twice), 32, "causal")
    assert look(chats(("q", "a")), encoder).double_start == 1
    item = encoder.encode(chats(("q", "a"))[0])
    found = audit([type(item)("x", [], [])], encoder)
    assert found.empty == 1
    with pytest.raises(DataError):
        found.raise_if_bad()
    with pytest.raises(DataError):
        audit([], encoder).raise_if_bad()


def test_class_heads_need_labels_not_weights(family: Family) -> None:
    encoder = Encoder(family("chatml"), 8, "causal")
    items = [encoder.encode(Sample(f"s{i}", Origin("f", i), text="the film " * i, label=i % 2)) for i in range(1, 9)]
    found = audit(items, encoder, head="class")
    assert found.all_masked == 0 and found.missing_end == 0 and found.text_cut > 0
    found.raise_if_bad()
    assert found.previews[0].endswith("→ class 1")


def test_long_previews_show_the_learned_part(family: Family) -> None:
    encoder = Encoder(family("chatml"), 2000, "causal")
    shown = preview(encoder.encode(chats(("word " * 600, "yes"))[0]), encoder)
    assert shown.startswith("…") and shown.endswith("«yes<|im_end|>»") and len(shown) < 2000
